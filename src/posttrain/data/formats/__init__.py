"""Foreign rows become typed rows: one :class:`Format` each, in the table :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from posttrain.data.formats import conversations, keys, preferences
from posttrain.data.formats.base import Foreign, RowError
from posttrain.data.formats.columns import as_option, proposed
from posttrain.data.formats.conversations import MULTIPLE_CHOICE, MULTIPLE_CHOICE_FROM_1, PROMPTS, counts_from_one
from posttrain.data.formats.drafts import AnyDraft, Format, Ranked
from posttrain.data.formats.preferences import (
    FEEDBACK,
    LABEL_KEYS,
    RESPONSES,
    judged_by_number,
    numbers_are_classes,
)
from posttrain.data.formats.turns import role_of
from posttrain.data.streams import printable
from posttrain.errors import DataError
from posttrain.table import Table
from posttrain.types import Origin, Row

__all__ = ["FORMATS", "Format", "NoFormatError", "RowError", "detect_format", "read_record"]

AnyFormat = Format[AnyDraft]
_CONVERSATIONS: tuple[AnyFormat, ...] = conversations.FORMATS
_PREFERENCES: tuple[AnyFormat, ...] = preferences.FORMATS

FORMATS: Table[AnyFormat] = Table("row format", {f.name: f for f in (*_CONVERSATIONS, *_PREFERENCES, PROMPTS)})
"""Conversation formats, the more telling ones first: a row with ``messages`` and ``prompt`` is read by its messages. Then
the formats of preferences; a row that one of them knows is not a conversation for :func:`detect_format`."""


_JUDGING = frozenset(
    (
        *(*keys.SIDES, *LABEL_KEYS, *(side for pair in RESPONSES for side in pair)),
        *("response_j", "response_k", "winner", "replies", "prompt_turns"),
    )
)
"""Every key by which a record compares or judges replies."""
_LONGEST_KEY = 60


class NoFormatError(DataError):
    """No row format fits a file: an error where it is all there is, and its rows are dropped where other files give rows."""


def detect_format(records: Sequence[Foreign], where: str) -> AnyFormat:
    """The format that fits most of the first records of a file (the earlier one in the table where two fit alike).

    A record that compares or judges answers fits no conversation format, for its conversation alone would be half of it. What
    is null or empty counts as absent, unless no record fits any format without it: then rows that lack their values are told
    as what they should have been. Raises NoFormatError with the keys found where none fits.
    """
    plain = [keys.plain(record) for record in records]
    numbers_judge = not numbers_are_classes(plain)
    for view in (keys.present, dict):
        fits = {form.name: 0 for form in FORMATS.values()}
        for record in plain:
            for form in _fitting(record, view(record), numbers_judge):
                fits[form.name] += 1
        best = max(fits, key=lambda name: fits[name])
        if fits[best]:
            from_one = FORMATS[best] is MULTIPLE_CHOICE and counts_from_one(map(view, plain))
            return MULTIPLE_CHOICE_FROM_1 if from_one else FORMATS[best]
    raise NoFormatError(
        f"no row format fits (keys found: {_keys_of(records)})",
        where=where,
        fix=f"{_hint(records)}; known formats: {', '.join(FORMATS)} (docs/data-formats.md)",
    )


def read_record(record: Foreign, name: str, detected: bool, origin: Origin, source: str) -> Row | Ranked:
    """What a record says, read as the format ``name``.

    Where that format was ``detected`` from other records of the file, one that does not fit it is read as the first that fits,
    if that gives the same kind of rows. Raises RowError; ``other_kind`` where it says something of another kind.
    """
    record = keys.plain(record)
    form, said = FORMATS[name], keys.present(record)
    fits = form.detect(said)
    if detected and not (fits and _is_surely(form, said)):
        # a number as label judges a reply where it does so in all of the file; in a file of conversations it is a class
        fitting = list(_fitting(record, said, numbers_judge=form.kind != "conversations"))
        same = form if form in fitting else next((other for other in fitting if other.kind == form.kind), None)
        if same is None and fitting and fitting[0].kind != "prompts":
            detail = f"read as {fitting[0].name!r} it gives {fitting[0].kind}, the file {form.kind}"
            raise RowError("other_kind", detail)
        if same is not None and same is not form:
            form, fits = same, True
    # where a column that is needed is empty the record is read as it is, so that the reason is what it lacks
    return form.parse(said if fits else record, origin, source)


def _is_surely(form: AnyFormat, said: Foreign) -> bool:
    """Whether a record that fits a format needs no look at the others: nearly all do not, and the look takes long."""
    if form.kind == "conversations":
        return said.keys().isdisjoint(_JUDGING) and not isinstance(said.get("prompt"), dict)
    return form.kind != "prompts"


def _fitting(record: Foreign, said: Foreign, numbers_judge: bool) -> Iterator[AnyFormat]:
    """The formats that fit what a record says (``said``), conversations only where it is nothing else.

    A blank text where a reply should be makes a row that lacks its reply, not a prompt that waits for one. ``numbers_judge``: whether a label that is 0 or 1 says that a reply is bad or good.
    """
    others = [form for form in _PREFERENCES if form.detect(said)]
    if others == [FEEDBACK] and not numbers_judge and judged_by_number(said):
        others = []
    lacking = any(isinstance(record.get(key), str) for key in keys.REPLIES)
    talks = _CONVERSATIONS if lacking else (*_CONVERSATIONS, PROMPTS)
    yield from others or [form for form in talks if form.detect(said)]


def _keys_of(records: Sequence[Foreign]) -> str:
    found = list(dict.fromkeys(key for record in records for key in record))
    names = (key if len(key) <= _LONGEST_KEY else key[:_LONGEST_KEY] + "..." for key in found[:12])
    return printable(", ".join(names)) + (", ..." if len(found) > 12 else "")


def _hint(records: Sequence[Foreign]) -> str:
    """What to do about records that no format fits."""
    if all("parent_id" in record for record in records):
        return "these are single messages of trees: give the file of whole trees, or put each conversation into one row"
    if all(isinstance(record.get("turns"), list) for record in records):
        return """turns of the user alone wait for replies in between; for the first: --columns '{"user": "turns.0"}'"""
    if all(role_of(record) is not None for record in records):
        return 'these are the turns of one conversation, not rows: put them into one row, {"conversations": [...]}'
    if {key for record in records for key in record} == {"text"}:
        return "text alone is not a conversation; give a prompt and a reply"
    if any(len(key) > _LONGEST_KEY or "\n" in key for record in records for key in record):
        return (
            "the first line looks like a row, not like the names of the columns: put a line with their names before it"
        )
    columns = proposed(records)
    if columns:
        return f"say which column is what, for example {printable(as_option(columns))} (in a recipe: columns: {{...}})"
    return "say which column is what with columns, or rename the keys to those of a known format"
