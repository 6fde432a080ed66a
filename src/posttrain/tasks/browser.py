"""Replies side by side: which of them stand on the page.

A benchmark may have thousands of long replies. The page holds as many as fit a budget, prompts of every category in turn, and says
which file has all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from posttrain.report import numbers
from posttrain.report.figure import file_name
from posttrain.report.values import Answer, Block, Card, Replies, Section, Text
from posttrain.report.words import join, plural
from posttrain.table import grouped
from posttrain.tasks.facts import TaskFacts, outcome_of
from posttrain.tasks.records import TaskRow
from posttrain.tasks.rows import turns_of

PAGE_BYTES = 7_000_000
"""Room for the replies of a run, their markup included."""
TEXT_CHARACTERS = 6_000
"""Of one reply or prompt; what is longer is cut, which the page says."""
TAKE_MARKUP, CARD_MARKUP = 420, 700
"""Bytes of markup around a reply and a prompt, roughly."""
MARKDOWN_PROMPTS = 5
"""Prompts of each measurement in the Markdown."""


def replies_section(
    stage: str, several: Sequence[TaskFacts], suffix: str = "", room: int = PAGE_BYTES
) -> Section | None:
    """Replies to everything that was asked; small sets of prompts are whole, large ones share what is left of ``room``."""
    decks = [(one, cards(one)) for one in several if any(row.turns for row in one.rows)]
    if not decks:
        return None
    shares = fair_shares([sum(map(_size, deck)) for _, deck in decks], room)
    kept = [(one, deck, chosen(deck, share)) for (one, deck), share in zip(decks, shares, strict=True)]
    models = dict.fromkeys(model for one in several for model in one.record.models)
    prompts = sum(len(deck) for _, deck in decks)
    blocks: list[Block] = [
        Text(
            f"{plural(prompts, 'prompt')}, answered by {join(list(models))}. Checks are simple programs: a right reply may be worded so that its "
            "check fails, and a passed check says nothing about style. Other verdicts are those of the benchmark: rules, or a judge in its own words."
        )
    ]
    blocks += [
        Text(
            f"{one.name}: {len(own):,} of {len(deck):,} prompts stand here, of every category in turn, so that the page stays light; "
            f"all stand in {one.rows_file}.",
            "aside",
        )
        for one, deck, own in kept
        if len(own) < len(deck)
    ]
    every = tuple(card for _, _, own in kept for card in own)
    blocks.append(Replies("Replies", every, filters=True, markdown=MARKDOWN_PROMPTS))
    return Section(
        f"Replies{suffix}", file_name("replies", stage), tuple(blocks), folded=True, gist=plural(len(every), "prompt")
    )


# ---- what fits -----------------------------------------------------------------------------------------------------


def fair_shares(sizes: Sequence[int], room: int) -> list[int]:
    """How much of ``room`` each may take: all it needs, or an equal part of what those that need less leave."""
    shares, left = [0] * len(sizes), room
    ordered = sorted(range(len(sizes)), key=lambda place: sizes[place])
    for number, place in enumerate(ordered):
        shares[place] = min(sizes[place], left // (len(ordered) - number))
        left -= shares[place]
    return shares


def chosen(deck: Sequence[Card], room: int) -> tuple[Card, ...]:
    """The cards that fit, in their order: the first of every category, then the second of every category, ..."""
    turns = turns_of(card.category for card in deck)
    first = list(dict.fromkeys(card.category for card in deck))
    kept = []
    for place in sorted(range(len(deck)), key=lambda place: (turns[place], first.index(deck[place].category))):
        room -= _size(deck[place])
        if room < 0:
            break
        kept.append(place)
    return tuple(deck[place] for place in sorted(kept))


def _size(card: Card) -> int:
    texts = [*card.turns, *(text for answer in card.answers for text in (*answer.texts, answer.detail))]
    return sum(len(text.encode()) for text in texts) + CARD_MARKUP + TAKE_MARKUP * len(card.answers)


# ---- cards ---------------------------------------------------------------------------------------------------------


def cards(facts: TaskFacts) -> list[Card]:
    """Every prompt with the replies of all models."""
    by_prompt = grouped((row.prompt_id, row) for row in facts.rows)
    place = {model: number for number, model in enumerate(facts.record.models)}
    units = {measure.key: (measure.label, measure.unit) for measure in facts.record.measures}
    return [
        _card(facts.name, sorted(rows, key=lambda row: (place.get(row.model, len(place)), row.sample)), place, units)
        for rows in by_prompt.values()
    ]


def _card(group: str, rows: Sequence[TaskRow], models: Iterable[str], units: Mapping[str, tuple[str, str]]) -> Card:
    first, ends = rows[0], tuple(models)
    verdicts = {row.model: row.remark.good for row in rows if row.remark and row.sample == 0}
    outcome = outcome_of(verdicts.get(ends[0]), verdicts.get(ends[-1]), alone=len(ends) == 1)
    alone = {row.model for row in rows if row.sample} ^ {row.model for row in rows}
    return Card(
        name=first.prompt_id,
        turns=tuple(map(_shortened, first.turns)),
        answers=tuple(_answer(row, units, numbered=row.model not in alone) for row in rows),
        group=group,
        category=first.category or "",
        language=first.language or "",
        outcome="" if outcome == "not checked" else outcome,
    )


def _answer(row: TaskRow, units: Mapping[str, tuple[str, str]], *, numbered: bool) -> Answer:
    values = [
        f"{units[key][0]}: {numbers.in_unit(value, units[key][1])}"
        for key, value in row.values.items()
        # a plain yes or no is what the remark says already
        if key in units and not (row.remark and units[key][1] == "share" and value in (0, 1))
    ]
    failed = [] if row.failure is None else [f"no {'further ' if row.replies else ''}reply: {row.failure}"]
    return Answer(
        name=f"{row.model}, sample {row.sample + 1}" if numbered else row.model,
        texts=tuple(map(_shortened, row.replies)),
        label=row.remark.label if row.remark else "",
        good=row.remark.good if row.remark else None,
        notes=(*failed, *(["; ".join(values)] if values else [])),
        detail=row.remark.detail if row.remark else "",
        cut="length" in row.finishes,
    )


def _shortened(text: str) -> str:
    if len(text) <= TEXT_CHARACTERS:
        return text
    return f"{text[:TEXT_CHARACTERS]}\n[the first {TEXT_CHARACTERS:,} of {len(text):,} characters]"
