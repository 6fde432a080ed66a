"""Rows of one kind as rows of another, and the agreement of files on one kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.data.formats.base import RowError
from posttrain.data.rows import rows_kind
from posttrain.errors import DataError
from posttrain.types import Message, PromptRow, Row, RowKind, SftRow, UnpairedRow


def rows_as(row: Row, kind: RowKind) -> tuple[Row, ...]:
    """The row as rows of a kind that can be made of it: of everything prompts, of all with replies conversations, of a pair also two
    judgements.

    The prompt of a conversation is what stands before its last reply. Raises RowError: ``undesirable`` where it says what not to
    imitate, ``empty_prompt`` where nothing stands before a reply.
    """
    beside = (row.origin, row.source, row.tools, row.meta)
    if kind == "prompts":
        prompt = _before_reply(row.messages) if isinstance(row, SftRow) else row.prompt
        if not any(turn.content.strip() for turn in prompt if turn.role != "system"):
            raise RowError("empty_prompt", "nothing stands before the reply")
        return (PromptRow(prompt, *beside),)
    if isinstance(row, SftRow | PromptRow) or kind == "pairs":
        return (row,)
    if kind == "feedback":
        if isinstance(row, UnpairedRow):
            return (row,)
        return tuple(
            UnpairedRow(row.prompt, completion, desirable, *beside)
            for completion, desirable in ((row.chosen, True), (row.rejected, False))
        )
    if isinstance(row, UnpairedRow) and not row.desirable:
        raise RowError("undesirable", "the reply was judged undesirable, and conversations are there to be imitated")
    return (SftRow(row.messages, *beside),)


def _before_reply(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return messages[:end]


def kind_of_files(files: Sequence[Path]) -> RowKind | None:
    """What the rows of all these rows files say; None where there are none. Raises DataError where they are of two kinds."""
    kinds = [(str(path), kind) for path in files if (kind := rows_kind(path)) is not None]
    for file, kind in kinds:
        if kind != kinds[0][1]:
            raise disagreement(file, kind, *kinds[0])
    return kinds[0][1] if kinds else None


def disagreement(file: str, kind: RowKind, first: str, first_kind: RowKind) -> DataError:
    """The error of two files whose rows are of two kinds."""
    return DataError(
        f"these rows are {kind}, and those of {first} are {first_kind}",
        where=file,
        fix="give each kind a data stage of its own, or say what all become (rows: conversations, rows: prompts, or of pairs rows: feedback);"
        " see docs/data-preferences.md",
    )
