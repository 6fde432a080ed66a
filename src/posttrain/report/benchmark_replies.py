"""Replies to benchmarks side by side: which of them stand on the page, and by what they can be found.

A benchmark may have thousands of long replies. The page holds as many as fit a budget, prompts of every category in turn, and says
which file has all.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from posttrain.report import numbers
from posttrain.report.benchmark_records import BenchmarkRow
from posttrain.report.benchmarks import BenchmarkFacts
from posttrain.report.facts import EvalFacts, Outcome, outcome_of

PAGE_BYTES = 7_000_000
"""Room for the replies to all benchmarks of a run, their markup included."""
TEXT_CHARACTERS = 6_000
"""Of one reply or prompt; what is longer is cut, which the page says."""
TAKE_MARKUP, CARD_MARKUP = 420, 700
"""Bytes of markup around a reply and a prompt, roughly."""
MOST_LABELS = 24
"""Verdicts offered as a filter, the most frequent ones; the search finds the others."""
MARKDOWN_PROMPTS = 5
"""Prompts of each benchmark in the Markdown."""

FIXED = "fixed prompts"
"""The filter's name for the prompts that are no benchmark."""


@dataclass(frozen=True, slots=True)
class Take:
    """What one model said to one sample of a prompt, and what came of it."""

    sample: int
    texts: tuple[tuple[str, int], ...]
    """One a turn: the text as shown, and its full length in characters."""
    cut: bool
    """Whether a turn ended at the limit of tokens."""
    failure: str | None
    label: str
    good: bool | None
    detail: str
    values: str
    """``Mean rating: 7.00; Rating, turn 2: 8.00``."""


@dataclass(frozen=True, slots=True)
class Card:
    """One prompt with the replies of all models."""

    prompt_id: str
    category: str
    language: str
    turns: tuple[tuple[str, int], ...]
    """As ``texts`` of a take."""
    answers: tuple[tuple[str, tuple[Take, ...]], ...]
    """Model and its samples."""
    outcome: Outcome
    """First model against last, where verdicts are good or bad."""
    labels: tuple[str, ...]
    size: int
    """Bytes on the page, roughly."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """The cards of one benchmark that are shown, in the order of its prompts."""

    benchmark: BenchmarkFacts
    cards: tuple[Card, ...]
    prompts: int
    """All of them."""

    @property
    def whole(self) -> bool:
        """Whether every prompt is shown."""
        return len(self.cards) == self.prompts


@dataclass(frozen=True, slots=True)
class Filters:
    """What the replies of an eval stage can be filtered by."""

    benchmarks: tuple[str, ...]
    categories: tuple[str, ...]
    languages: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    labels: tuple[str, ...]


def shelves(evaluation: EvalFacts, room: int = PAGE_BYTES) -> tuple[Shelf, ...]:
    """Return the replies of every benchmark that has rows; small benchmarks are whole, large ones share what is left of ``room``."""
    decks = [(benchmark, cards(benchmark)) for benchmark in evaluation.benchmarks if benchmark.rows]
    shares = fair_shares([sum(card.size for card in deck) for _, deck in decks], room)
    return tuple(
        Shelf(benchmark, chosen(deck, share), len(deck)) for (benchmark, deck), share in zip(decks, shares, strict=True)
    )


def filters(evaluation: EvalFacts, shown: Sequence[Shelf]) -> Filters:
    """Return the values of every filter in order of appearance, verdicts by how many prompts have them."""
    found = [card for shelf in shown for card in shelf.cards]
    labels = Counter(label for card in found for label in card.labels)
    fixed = (FIXED,) if evaluation.prompts else ()
    return Filters(
        benchmarks=(*fixed, *(shelf.benchmark.name for shelf in shown)),
        categories=_distinct([*evaluation.classes, *(card.category for card in found)]),
        languages=_distinct([*evaluation.languages, *(card.language for card in found)]),
        outcomes=tuple(dict.fromkeys([*evaluation.outcomes, *(card.outcome for card in found)])),
        labels=tuple(label for label, _ in labels.most_common(MOST_LABELS)),
    )


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


# ---- what fits -----------------------------------------------------------------------------------------------------


def fair_shares(sizes: Sequence[int], room: int) -> list[int]:
    """Return how much of ``room`` each may take: all it needs, or an equal part of what those that need less leave."""
    shares, left = [0] * len(sizes), room
    ordered = sorted(range(len(sizes)), key=lambda place: sizes[place])
    for number, place in enumerate(ordered):
        shares[place] = min(sizes[place], left // (len(ordered) - number))
        left -= shares[place]
    return shares


def chosen(deck: Sequence[Card], room: int) -> tuple[Card, ...]:
    """Return the cards that fit, in their order: the first of every category, then the second of every category, ..."""
    by_category: dict[str, deque[int]] = {}
    for place, card in enumerate(deck):
        by_category.setdefault(card.category, deque()).append(place)
    places, waiting = [], deque(by_category.values())
    while waiting:
        places.append(waiting[0].popleft())
        if waiting[0]:
            waiting.rotate(-1)
        else:
            waiting.popleft()
    kept = []
    for place in places:
        room -= deck[place].size
        if room < 0:
            break
        kept.append(place)
    return tuple(deck[place] for place in sorted(kept))


# ---- cards ---------------------------------------------------------------------------------------------------------


def cards(benchmark: BenchmarkFacts) -> list[Card]:
    """Return every prompt of a benchmark with the replies of all models."""
    by_prompt: dict[str, list[BenchmarkRow]] = {}
    for row in benchmark.rows:
        by_prompt.setdefault(row.prompt_id, []).append(row)
    place = {model: number for number, model in enumerate(benchmark.record.models)}
    units = {measure.key: (measure.label, measure.unit) for measure in benchmark.record.measures}
    return [
        _card(prompt_id, sorted(rows, key=lambda row: (place.get(row.model, len(place)), row.sample)), place, units)
        for prompt_id, rows in by_prompt.items()
    ]


def _card(
    prompt_id: str, rows: Sequence[BenchmarkRow], models: Iterable[str], units: Mapping[str, tuple[str, str]]
) -> Card:
    answers: dict[str, list[Take]] = {}
    for row in rows:
        answers.setdefault(row.model, []).append(_take(row, units))
    first = rows[0]
    turns = tuple(map(_shortened, first.turns))
    takes = [take for own in answers.values() for take in own]
    texts = [text for text, _ in turns] + [text for take in takes for text, _ in take.texts]
    texts += [take.detail for take in takes]
    return Card(
        prompt_id=prompt_id,
        category=first.category or "",
        language=first.language or "",
        turns=turns,
        answers=tuple((model, tuple(own)) for model, own in answers.items()),
        outcome=_outcome(answers, tuple(models)),
        labels=tuple(dict.fromkeys(take.label for take in takes if take.label)),
        size=sum(len(text.encode()) for text in texts) + CARD_MARKUP + TAKE_MARKUP * len(takes),
    )


def _take(row: BenchmarkRow, units: Mapping[str, tuple[str, str]]) -> Take:
    values = [
        f"{units[key][0]}: {numbers.in_unit(value, units[key][1])}"
        for key, value in row.values.items()
        # a plain yes or no is what the verdict says already
        if key in units and value is not None and not (row.shown and units[key][1] == "share" and value in (0, 1))
    ]
    return Take(
        sample=row.sample,
        texts=tuple(map(_shortened, row.replies)),
        cut="length" in row.finishes,
        failure=row.failure,
        label=row.shown.label if row.shown else "",
        good=row.shown.good if row.shown else None,
        detail=row.shown.detail if row.shown else "",
        values="; ".join(values),
    )


def _shortened(text: str) -> tuple[str, int]:
    return text[:TEXT_CHARACTERS], len(text)


def _outcome(answers: Mapping[str, Sequence[Take]], models: Sequence[str]) -> Outcome:
    """Say what became of the first sample between the first and the last model of the benchmark."""
    ends = [answers[model][0].good if model in answers else None for model in (models[0], models[-1])]
    return outcome_of(ends[0], ends[1], alone=len(models) == 1)


def markdown_cards(benchmark: BenchmarkFacts, shown: Sequence[Shelf]) -> tuple[Card, ...]:
    """Return the few prompts of a benchmark that stand in the Markdown."""
    return next((shelf.cards[:MARKDOWN_PROMPTS] for shelf in shown if shelf.benchmark is benchmark), ())
