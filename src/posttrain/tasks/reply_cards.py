"""Replies side by side: which of them stand on the page.

A benchmark may have thousands of long replies. The page holds as many as fit a budget, prompts of every category in turn, and says
which file has all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from posttrain.report import numbers
from posttrain.report.benchmark_records import BenchmarkRow
from posttrain.report.benchmarks import BenchmarkFacts
from posttrain.report.facts import EvalFacts, PromptReplies, check_words, outcome_of
from posttrain.report.html import TEXT_CHARACTERS
from posttrain.report.values import Answer, Block, Card, Replies, Section, Text
from posttrain.report.words import join, plural

PAGE_BYTES = 7_000_000
"""Room for the replies to all benchmarks of a run, their markup included."""
ANSWER_MARKUP, CARD_MARKUP = 420, 700
"""Bytes of markup around a reply and a prompt, roughly."""
MARKDOWN_PROMPTS = 5
"""Prompts of each benchmark in the Markdown."""
CLASSES = {"knowledge": "Knowledge questions", "rewriting": "Instruction rewriting", "reasoning": "Chain of thought"}


def replies_section(evaluation: EvalFacts, suffix: str, anchor: str, room: int = PAGE_BYTES) -> Section | None:
    """Return all replies of an eval stage side by side; small benchmarks are whole, large ones share what is left of ``room``."""
    decks = [(benchmark, benchmark_cards(benchmark)) for benchmark in evaluation.benchmarks if benchmark.rows]
    shares = fair_shares([sum(map(size, deck)) for _, deck in decks], room)
    kept = [(benchmark, chosen(deck, share), len(deck)) for (benchmark, deck), share in zip(decks, shares, strict=True)]
    fixed = tuple(_fixed_card(prompt) for prompt in evaluation.prompts)
    if not fixed and not kept:
        return None
    said = f"Answered by {join(evaluation.models)}."
    if fixed:
        said += (
            f" {plural(len(fixed), 'fixed prompt')}: checks are simple programs, so a right reply may be worded so that its check fails, "
            "and a passed check says nothing about style."
        )
    if kept:
        said += " Verdicts on replies to benchmarks are those of the benchmark: rules, or a judge in its own words."
    blocks: list[Block] = [Text(said)]
    blocks += [
        Text(
            f"{benchmark.name}: {len(cards):,} of {plural(number, 'prompt')} stand here, of every category in turn, so that the page stays "
            f"light; all are in {benchmark.rows_file}.",
            "aside",
        )
        for benchmark, cards, number in kept
        if len(cards) < number
    ]
    every = (*fixed, *(card for _, cards, _ in kept for card in cards))
    blocks.append(Replies("Replies", every, filters=True, markdown=MARKDOWN_PROMPTS if kept else None))
    return Section(f"Replies{suffix}", anchor, tuple(blocks), folded=True, gist=plural(len(every), "prompt"))


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
        room -= size(deck[place])
        if room < 0:
            break
        kept.append(place)
    return tuple(deck[place] for place in sorted(kept))


def size(card: Card) -> int:
    """Return the bytes of a card on the page, roughly."""
    texts = [*card.turns, *(text for answer in card.answers for text in (*answer.texts, answer.detail))]
    return sum(len(text[:TEXT_CHARACTERS].encode()) for text in texts) + CARD_MARKUP + ANSWER_MARKUP * len(card.answers)


# ---- cards ---------------------------------------------------------------------------------------------------------


def _fixed_card(prompt: PromptReplies) -> Card:
    answers = tuple(
        Answer(
            reply.model,
            (reply.reply,),
            "" if reply.check is None else "right" if reply.check.passed else "wrong",
            reply.check.passed if reply.check else None,
            (f"cut at the limit of {reply.tokens or ''} tokens",) if reply.finish_reason == "length" else (),
            cut=reply.finish_reason == "length",
        )
        for reply in prompt.replies
    )
    check = prompt.check
    return Card(
        prompt.prompt_id,
        (prompt.prompt,),
        answers,
        group=CLASSES.get(prompt.class_name, prompt.class_name),
        category=prompt.class_name,
        language=prompt.language,
        outcome=prompt.outcome,
        note=f"Check: {check_words(check.kind, check.expected)}" if check else "",
    )


def benchmark_cards(benchmark: BenchmarkFacts) -> list[Card]:
    """Return every prompt of a benchmark with the replies of all models."""
    by_prompt: dict[str, list[BenchmarkRow]] = {}
    for row in benchmark.rows:
        by_prompt.setdefault(row.prompt_id, []).append(row)
    place = {model: number for number, model in enumerate(benchmark.record.models)}
    units = {measure.key: (measure.label, measure.unit) for measure in benchmark.record.measures}
    found = []
    for prompt_id, rows in by_prompt.items():
        ordered = sorted(rows, key=lambda row: (place.get(row.model, len(place)), row.sample))
        found.append(_benchmark_card(benchmark, prompt_id, ordered, units))
    return found


def _benchmark_card(
    benchmark: BenchmarkFacts, prompt_id: str, rows: Sequence[BenchmarkRow], units: Mapping[str, tuple[str, str]]
) -> Card:
    models, first = benchmark.record.models, rows[0]
    several = any(row.sample for row in rows)
    good: dict[str, bool | None] = {}
    for row in rows:  # the first sample of each model
        good.setdefault(row.model, row.shown.good if row.shown else None)
    outcome = outcome_of(good.get(models[0]), good.get(models[-1]), alone=len(models) == 1)
    return Card(
        prompt_id,
        first.turns,
        tuple(_answer(row, units, several=several) for row in rows),
        group=benchmark.name,
        category=first.category or "",
        language=first.language or "",
        outcome="" if outcome == "not checked" else outcome,
    )


def _answer(row: BenchmarkRow, units: Mapping[str, tuple[str, str]], *, several: bool) -> Answer:
    values = [
        f"{units[key][0]}: {numbers.in_unit(value, units[key][1])}"
        for key, value in row.values.items()
        # a plain yes or no is what the verdict says already
        if key in units and value is not None and not (row.shown and units[key][1] == "share" and value in (0, 1))
    ]
    cut = "length" in row.finishes
    notes = [
        f"no {'further ' if row.replies else ''}reply: {row.failure}" if row.failure else "",
        "cut at the limit of tokens" if cut else "",
        "; ".join(values),
    ]
    return Answer(
        f"{row.model}, sample {row.sample + 1}" if several else row.model,
        row.replies,
        row.shown.label if row.shown else "",
        row.shown.good if row.shown else None,
        tuple(note for note in notes if note),
        row.shown.detail if row.shown else "",
        cut,
    )
