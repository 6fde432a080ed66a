"""Preferences by hand: which of two replies is better, asked of one or several people, kept line by line.

::

    <runs>/.labels/<set>/set.json         what is asked, of what, the seed of the lots, how much everyone labels
    <runs>/.labels/<set>/items.jsonl      a line an item: prompt, the two replies a and b, who wrote them (never shown)
    <runs>/.labels/<set>/answers.jsonl    a line an answer, only ever appended to: who, which, what stood left, how long, when
    <runs>/.labels/<set>/pairs.jsonl      what was preferred, as pairs that a data stage reads

Which reply stands left is drawn anew for every item and every annotator, from the seed. Some items (``overlap``) everybody gets, in one
order, so that agreement is known early; the others go to whoever comes first, in an order of each one's own, so that two people who label
at once rarely meet. An answer is one line written at once under a lock of the kernel: a kill loses at most the one in flight.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from posttrain.artifacts import append_json, write_error, write_text
from posttrain.board.label_sets import ANSWERS, LabelSet, Side, read_items, read_set
from posttrain.errors import ConfigError, RunError
from posttrain.report.reading import parse
from posttrain.table import grouped
from posttrain.types import message_dict

PAIRS = "pairs.jsonl"
LONGEST_NAME = 40
LONGEST_SECONDS = 86_400.0

Answer = Literal["left", "right", "tie", "skip"]
Choice = Literal["a", "b", "tie", "skip"]


@dataclass(frozen=True, slots=True)
class Given:
    """An answer: a line of ``answers.jsonl``."""

    item: str
    annotator: str
    answer: Answer
    choice: Choice
    left: Side
    """The reply that stood left."""
    seconds: float
    """From the moment the item was shown."""
    at: float


class Answers(NamedTuple):
    """All answers that stand, as an undone one does not."""

    of: Mapping[str, Sequence[Given]]
    """Annotator -> answers, in their order."""
    damaged: int
    """Lines that can't be read: a kill in the middle of one leaves it behind."""

    def by_item(self) -> dict[str, list[Given]]:
        """Item -> its answers."""
        return grouped((one.item, one) for given in self.of.values() for one in given)


# ---- answers -------------------------------------------------------------------------------------------------------


def annotator_of(name: str) -> str:
    """A name as it is kept. Raises ConfigError where there is none, or it can't be shown on one line."""
    found = " ".join(name.split())
    if not found or len(found) > LONGEST_NAME or not found.isprintable():
        raise ConfigError(
            "a name is needed" if not found else "this name can't be used",
            where="annotator",
            fix=f"give one of up to {LONGEST_NAME} letters",
        )
    return found


def read_answers(folder: Path) -> Answers:
    """All answers that stand."""
    path = folder / ANSWERS
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    standing: dict[str, dict[str, Given]] = {}
    damaged = 0
    for line in filter(None, lines):
        try:
            record = json.loads(line)
            if "undo" in record:
                standing.get(record["annotator"], {}).pop(record["undo"], None)
            else:
                one = parse(Given, record, path)
                given = standing.setdefault(one.annotator, {})
                given.pop(one.item, None)  # the last one of an item counts, and stands last
                given[one.item] = one
        except (ValueError, KeyError, TypeError, RunError):
            damaged += 1
    return Answers({who: tuple(given.values()) for who, given in standing.items() if given}, damaged)


def _lot(*parts: str | int) -> float:
    """A number from 0 to 1 that these texts draw, always the same."""
    drawn = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(drawn[:8], "big") / 2**64


def left_of(about: LabelSet, annotator: str, item: str) -> Side:
    """Which reply stands left for this annotator: a lot drawn from the seed."""
    return "a" if _lot(about.seed, "left", annotator, item) < 0.5 else "b"


def is_shared(about: LabelSet, item: str) -> bool:
    """Whether everybody gets this item: drawn from the seed."""
    return _lot(about.seed, "shared", item) < about.overlap


def queue(about: LabelSet, items: Iterable[str], answers: Answers, annotator: str) -> Iterator[str]:
    """What this annotator is still to label, in order: those for all and the others, mixed in proportion.

    One that is not for all is passed over where somebody else has decided it (not merely skipped it).
    """
    own = {one.item for one in answers.of.get(annotator, ())}
    decided = {one.item for given in answers.of.values() for one in given if one.answer != "skip"}
    shared, others = list[str](), list[str]()
    done_shared = 0
    for item in items:
        common = is_shared(about, item)
        done_shared += common and item in own
        if item not in own and (common or item not in decided):
            (shared if common else others).append(item)
    others.sort(key=lambda item: _lot(about.seed, "order", annotator, item))
    total = len(own)
    while shared or others:
        first = bool(shared) and (not others or done_shared <= about.overlap * total)
        yield (shared if first else others).pop(0)
        done_shared, total = done_shared + first, total + 1


def give(folder: Path, annotator: str, item: str, answer: str, seconds: float) -> Given:
    """Keep an answer. Raises ConfigError where it is none, the item is unknown, or this annotator has answered it already."""
    if answer not in get_args(Answer):
        raise ConfigError(f"{answer!r} is no answer", where="answer", fix=f"one of {', '.join(get_args(Answer))}")
    about = read_set(folder)
    if item not in read_items(folder):
        raise ConfigError("this set has no such item", where=item, fix="load the page again")
    left = left_of(about, annotator, item)
    sides: dict[str, Choice] = {"left": left, "right": "b" if left == "a" else "a", "tie": "tie", "skip": "skip"}
    waited = seconds if 0 <= seconds <= LONGEST_SECONDS else 0.0
    given = Given(item, annotator, answer, sides[answer], left, round(waited, 2), round(time.time(), 3))  # type: ignore[arg-type]  # checked
    with _locked(folder):
        if any(one.item == item for one in read_answers(folder).of.get(annotator, ())):
            raise ConfigError("this was answered already", where=item, fix="go on with the next, or undo")
        append_json(folder / ANSWERS, asdict(given))
    return given


def undo(folder: Path, annotator: str) -> str | None:
    """Take the last answer of an annotator back; returns its item, None where nothing is left to undo."""
    with _locked(folder):
        given = read_answers(folder).of.get(annotator, ())
        if not given:
            return None
        append_json(folder / ANSWERS, {"undo": given[-1].item, "annotator": annotator, "at": round(time.time(), 3)})
        return given[-1].item


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the set for this one answer. The lock is the kernel's: a killed process leaves none behind."""
    try:
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise write_error(error, folder) from error


# ---- what comes of it ----------------------------------------------------------------------------------------------


class Exported(NamedTuple):
    """What became of the items."""

    pairs: int
    ties: int
    skipped: int
    """Items that nobody decided, and somebody skipped."""
    split: int
    """Items over which the annotators are divided evenly."""
    unlabelled: int


class Verdict(NamedTuple):
    """What the annotators make of an item together."""

    choice: Choice | Literal["split"]
    """``split``: as many for one as for the other, or for a tie."""
    votes: int
    """For that choice."""
    of: int


def verdict(given: Sequence[Given]) -> Verdict:
    """What most annotators say of an item; who skips says nothing."""
    counts = Counter(one.choice for one in given if one.choice != "skip")
    if not counts:
        return Verdict("skip", 0, 0)
    (first, votes), *others = counts.most_common()
    total = counts.total()
    return Verdict("split", votes, total) if others and others[0][1] == votes else Verdict(first, votes, total)


def pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """The preferences as records of the format ``pairs``, which a data stage reads, in the order of the set."""
    by_item = read_answers(folder).by_item()
    for item in read_items(folder).values():
        found = verdict(by_item.get(item.id, ()))
        if found.choice not in ("a", "b"):
            continue
        better: Side = "a" if found.choice == "a" else "b"
        worse: Side = "b" if better == "a" else "a"
        record = {
            "prompt": list(map(message_dict, item.prompt)),
            "chosen": list(map(message_dict, item.side(better))),
            "rejected": list(map(message_dict, item.side(worse))),
            **({"tools": list(item.tools)} if item.tools else {}),
        }
        yield record | {"label_item": item.id, "label_votes": found.votes, "label_of": found.of}


def export(folder: Path) -> Exported:
    """Write ``pairs.jsonl``. Ties, skips and items over which the annotators are divided are left out and counted."""
    by_item, items = read_answers(folder).by_item(), read_items(folder)
    write_text(folder / PAIRS, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in pairs(folder)))
    counts = Counter("unlabelled" if one not in by_item else verdict(by_item[one]).choice for one in items)
    return Exported(counts["a"] + counts["b"], counts["tie"], counts["skip"], counts["split"], counts["unlabelled"])
