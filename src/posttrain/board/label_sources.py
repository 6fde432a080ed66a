"""Where prompts with two replies come from: a file of pairs, a file of replies to compare, what two models said in an evaluation."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from posttrain.board.label_sets import Item, item_of
from posttrain.board.row_readers import source_of
from posttrain.board.row_sets import RowSet
from posttrain.board.row_source import Shown, Sieve
from posttrain.board.row_table import readable
from posttrain.errors import ConfigError
from posttrain.judge.items import read_items as read_judged
from posttrain.types import Message, PairRow, content_id

MOST_ROWS = 100_000
"""Of a file that are looked at for items."""


class Found(NamedTuple):
    """Items of a source, and the rows that gave none by reason."""

    items: list[Item]
    left_out: Counter[str]


def items_of(rows: RowSet, most: int, seed: int, models: tuple[str, str] | None = None) -> Found:
    """At most so many items of a file, drawn by the seed.

    ``models``: of a file of replies the two that are compared. Raises ConfigError, DataError where the file can't be read or holds nothing
    of the kind.
    """
    if models is not None:
        found, left_out = _of_models(rows, models)
    elif _has_replies(rows):
        found, left_out = _of_comparisons(rows)
    else:
        found, left_out = _of_pairs(rows)
    if len(found) > most:
        left_out["not_drawn"] += len(found) - most
        found = random.Random(seed).sample(found, most)
    return Found(found, left_out)


def models_of(rows: RowSet) -> list[str]:
    """The models whose replies a file holds, in their order."""
    with readable():
        return list(dict.fromkeys(str(one.facts.get("model", "")) for one in _rows(rows) if one.row is not None))


def _rows(rows: RowSet) -> Iterator[Shown]:
    found = (one for one in source_of(rows).rows(0, Sieve()) if isinstance(one, Shown))
    return islice(found, MOST_ROWS)


def _of_pairs(rows: RowSet) -> tuple[list[Item], Counter[str]]:
    found, left_out = list[Item](), Counter[str]()
    with readable():
        for one in _rows(rows):
            if isinstance(one.row, PairRow):
                found.append(item_of(one.row))
            else:
                left_out[one.reason or "no_pair"] += 1
    return found, left_out


def _has_replies(rows: RowSet) -> bool:
    """Whether the first record is a comparison: of two replies (docs/judges.md), or a vote of the chat."""
    with readable():
        first = next(_rows(rows), None)
    return first is not None and isinstance(first.record, dict) and first.record.keys() >= {"reply_a", "reply_b"}


def _of_comparisons(rows: RowSet) -> tuple[list[Item], Counter[str]]:
    """Comparisons, whatever their verdict. Of a vote of the chat what was said before counts, if it was the same to both."""
    read = read_judged(rows.path, "pair")
    left_out = Counter({"bad_line": len(read.bad)} if read.bad else {})
    before = {one.at + 1: _before(one.record) for one in _rows(rows)}
    found = []
    for one in read.items:
        said = before.get(one.origin.line)
        if said is None or len(one.turns) > 1:
            left_out["several_turns"] += 1
        elif one.replies_a[-1].strip() == one.replies_b[-1].strip():
            left_out["equal_sides"] += 1
        else:
            prompt = said or (Message("user", one.turns[0]),)
            names = one.model_a, one.model_b
            found.append(_item(prompt, one.replies_a[0], one.replies_b[0], names, str(one.origin)))
    return found, left_out


def _before(record: Any) -> tuple[Message, ...] | None:
    """The messages before both replies of a vote; nothing of another comparison; None where the two models were told different things."""
    if not isinstance(record, dict) or "messages_a" not in record:
        return ()
    if record["messages_a"] != record.get("messages_b"):
        return None
    return tuple(Message(one["role"], str(one["content"])) for one in record["messages_a"])


def _of_models(rows: RowSet, models: tuple[str, str]) -> tuple[list[Item], Counter[str]]:
    """What two models said to the same prompts."""
    if models[0] == models[1]:
        raise ConfigError("two different models are needed", where="models", fix="choose another one")
    left_out, said = Counter[str](), dict[tuple[str, int], dict[str, Shown]]()
    with readable():
        for one in _rows(rows):
            name = str(one.facts.get("model", ""))
            if one.row is not None and name in models:
                key = (str(one.facts.get("prompt_id", one.at)), int(one.facts.get("sample", 0)))
                said.setdefault(key, {})[name] = one
    found = []
    for both in said.values():
        if len(both) < 2:
            left_out["one_reply"] += 1
            continue
        turns = [both[name].row.messages for name in models]  # type: ignore[union-attr]  # there is one
        if any(len(one) != 2 or not one[1].content.strip() for one in turns):
            left_out["several_turns" if any(len(one) > 2 for one in turns) else "no_reply"] += 1
        elif turns[0][1].content.strip() == turns[1][1].content.strip():
            left_out["equal_sides"] += 1
        else:
            first = both[models[0]]
            found.append(_item(turns[0][:1], turns[0][1].content, turns[1][1].content, models, str(first.origin)))
    return found, left_out


def _item(prompt: tuple[Message, ...], a: str, b: str, names: tuple[str, str], place: str) -> Item:
    first, second = Message("assistant", a), Message("assistant", b)
    return Item(content_id((*prompt, first, second)), prompt, (first,), (second,), *names, place=place)


def compared(items: Iterable[Item]) -> tuple[str, str] | None:
    """The two names that all items compare; None where they differ."""
    names = {(one.name_a, one.name_b) for one in items}
    return names.pop() if len(names) == 1 else None
