"""What a page says of a synthesis, from its files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from posttrain.artifacts import Ledger, StageDir, read_json
from posttrain.generate.cost import by_server
from posttrain.report import numbers
from posttrain.report.charts import Bars, Histogram, Piece
from posttrain.report.ledger import funnel
from posttrain.report.reading import json_lines, parse
from posttrain.report.values import (
    Answer,
    Beside,
    Block,
    Card,
    Cell,
    Facts,
    Headline,
    Notice,
    Number,
    Replies,
    Section,
    Table,
    Unit,
)
from posttrain.report.words import plural
from posttrain.synth.records import DROPPED, ENDS, FACTS, Loss, SynthFacts
from posttrain.synth.variety import Topic

SHOWN = 10
"""Rows and dropped answers that are shown."""
ALIKE = 0.3
"""Share of instructions with one first word from which that is said."""
_MEASURES: tuple[tuple[str, str, Unit], ...] = (
    ("rows", "Rows compared", "count"),
    ("distinct_1", "Distinct words of instructions", "share"),
    ("distinct_2", "Distinct pairs of words", "share"),
    ("first_words", "Distinct first words", "share"),
    ("first_word_share", "Instructions that begin with the most frequent word", "share"),
    ("nearest", "ROUGE-L with the nearest instruction, mean", "number"),
    ("instruction_words", "Words of an instruction, median", "count"),
    ("reply_words", "Words of a reply, median", "count"),
)


def synth_section(out: StageDir) -> Section:
    """What was made, by whom, at what cost, and what became of every answer."""
    facts = parse(SynthFacts, read_json(out.file(FACTS)), out.file(FACTS))
    ledger = Ledger.read(out.file("ledger.json"))
    kept = [row for side in ("train", "held_out") for row in _rows(out.file("rows", f"{side}.parquet"))]
    blocks: list[Block] = [
        Facts((*_facts(facts), ("Overlap with benchmarks", _overlap(ledger)))),
        funnel(f"{out.path.name}-funnel", [(step.name, step) for step in ledger.steps], shares=True),
        *([_losses(ledger)] if ledger.dropped else []),
        *_varied(facts, out.path.name),
        _lengths(kept, out.path.name),
        _cards("Rows kept, drawn by chance", [_kept_card(row) for row in _drawn(kept)]),
        _cards("Dropped answers, drawn by chance", [_dropped_card(one) for one in _drawn(_dropped(out))]),
    ]
    made, threads = facts.kept, facts.threads
    headline = Headline(
        "Rows made",
        Number(made, "count"),
        f"of {plural(threads, 'thread')} by {facts.pipeline}; it ended with {ENDS[facts.stopped]}",
    )
    return Section(
        f"Synthesis: {out.path.name}",
        out.path.name,
        tuple(blocks),
        summary=f"{facts.pipeline} made {plural(made, 'row')} out of {plural(facts.requests, 'request')}.",
        headlines=(headline,),
    )


def _facts(facts: SynthFacts) -> Iterator[tuple[str, Cell]]:
    yield "Pipeline", f"{facts.pipeline} ({facts.language})"
    for role, engine in facts.engines.items():
        where = f"{engine.engine} {engine.endpoint}".strip()
        yield f"Who: {role}", f"{engine.model.rpartition('@')[0] or engine.model} ({where})"
    yield "Rows kept", Number(facts.kept, "count", note=f"of {facts.rows_wanted:,} wanted")
    yield "Requests", Number(facts.requests, "count", note=f"{facts.cached:,} answered from the cache")
    if facts.servers:
        yield "Answers by server", by_server(facts.servers)
    yield "Tokens read", Number(facts.prompt_tokens, "count")
    yield "Tokens written", Number(facts.completion_tokens, "count")
    yield "Money", None if facts.money is None else Number(facts.money, digits=4)
    yield "It ended with", ENDS[facts.stopped]


def _overlap(ledger: Ledger) -> Number | None:
    """Rows that held prompts of benchmarks."""
    step = next((step for step in ledger.steps if step.name == "decontaminate"), None)
    return (
        None if step is None else Number(sum(step.dropped.values()), "count", note=f"of {step.rows_in:,} rows, dropped")
    )


def _losses(ledger: Ledger) -> Table:
    """What was dropped, by step and reason."""
    rows: list[tuple[Cell, ...]] = [
        (step.name, reason, Number(count, "count"), Number(count / max(1, step.rows_in + step.added), "share"))
        for step in ledger.steps
        for reason, count in sorted(step.dropped.items(), key=lambda item: -item[1])
    ]
    return Table("Dropped, by reason", ("step", "reason", "answers", "of what came in"), tuple(rows))


def _varied(facts: SynthFacts, name: str) -> Iterator[Block]:
    """Diversity beside the real set, verbs with objects, topics."""
    if facts.variety is None:
        return
    made, real = facts.variety.made, facts.variety.yardstick
    columns = ("measure", "these rows", *((facts.variety.yardstick_name,) if real else ()))
    rows: list[tuple[Cell, ...]] = [
        (title, *(Number(getattr(one, key), unit) for one in (made, real) if one)) for key, title, unit in _MEASURES
    ]
    if made.first_word_share > ALIKE:
        yield Notice(
            "warning",
            "many instructions begin alike",
            (
                f"{numbers.percent(made.first_word_share)} begin with {made.first_word!r}. More temperatures, system prompts, seeds or topics make them differ; "
                "a near-duplicate filter behind this stage takes the rest.",
            ),
        )
    yield Table("Diversity and length" + (", at equal size beside a real set" if real else ""), columns, tuple(rows))
    charts: list[Block] = []
    if made.pairs:
        lanes = tuple(
            (pair, numbers.count(count), ((Piece(count, "s1", f"{count:,} instructions"),),))
            for pair, count in made.pairs.items()
        )
        caption = "The most frequent ones, by rules of thumb (docs/synthesis.md)."
        charts.append(Bars(name=f"{name}-verbs", title="Verbs with their objects", lanes=lanes, caption=caption))
    if facts.variety.topics:
        charts.append(_topics(facts.variety.topics, name, real is not None))
    if charts:
        yield Beside(tuple(charts)) if len(charts) > 1 else charts[0]


def _topics(groups: Sequence[Topic], name: str, real: bool) -> Bars:
    lanes = []
    for one in groups:
        bars = [(Piece(one.made, "s1", f"{one.made:,} of these rows"),)]
        if real:
            bars.append((Piece(one.yardstick, "s2", f"{one.yardstick:,} of the real set"),))
        text = f"{one.made:,}" + (f" / {one.yardstick:,}" if real else "")
        lanes.append((", ".join(one.terms), text, tuple(bars)))
    return Bars(
        name=f"{name}-topics",
        title="Topics",
        lanes=tuple(lanes),
        legend=(("these rows", "s1"), ("real set", "s2")) if real else (),
        caption="Groups of instructions that share words, named by the words that tell them apart.",
    )


def _lengths(rows: Sequence[Mapping[str, Any]], name: str) -> Block:
    """How long instructions and replies are."""
    from posttrain.data.text import tokens

    charts = []
    for role, title in (("user", "Words of an instruction"), ("assistant", "Words of a reply")):
        lengths = [
            len(tokens(next((turn["content"] for turn in row["messages"] if turn["role"] == role), ""))) for row in rows
        ]
        top = max(10, sorted(lengths)[int(0.98 * (len(lengths) - 1))] + 1)
        width = max(1, -(-top // 16))
        edges = tuple(float(edge) for edge in range(0, width * 16 + 1, width))
        heights = [0] * 16
        for length in lengths:
            heights[min(15, length // width)] += 1
        charts.append(
            Histogram(
                name=f"{name}-{role}-words",
                title=title,
                edges=edges,
                heights=tuple(heights),
                x_label="words",
                whole=True,
            )
        )
    return Beside(tuple(charts))


# ---- examples --------------------------------------------------------------------------------------------------------


def _drawn(items: Sequence[Any]) -> list[Any]:
    """Ten by chance, in their order; always the same ones of the same items."""
    places = random.Random(0).sample(range(len(items)), min(SHOWN, len(items)))
    return [items[place] for place in sorted(places)]


def _cards(title: str, cards: Sequence[Card]) -> Block:
    return Section(
        title,
        title.split(",")[0].lower().replace(" ", "-"),
        (Replies("", tuple(cards)),),
        folded=True,
        gist=plural(len(cards), "row"),
    )


def _kept_card(row: Mapping[str, Any]) -> Card:
    said = json.loads(row["meta"]).get("synth", {})
    turns = tuple(turn["content"] for turn in row["messages"] if turn["role"] == "user")
    replies = tuple(turn["content"] for turn in row["messages"] if turn["role"] == "assistant")
    answers = [Answer("chosen" if row["rejected"] else "reply", replies)]
    if row["rejected"]:
        answers.append(Answer("rejected", tuple(turn["content"] for turn in row["rejected"])))
    nearest = max((score for _, score in said.get("similar", ())), default=None)
    note = "" if nearest is None else f"ROUGE-L {nearest:.2f} with the nearest in the pool"
    return Card(row["id"], turns, tuple(answers), category=str(said.get("topic") or ""), note=note)


def _dropped_card(loss: Loss) -> Card:
    return Card(f"thread {loss.thread}", (loss.reason,), (Answer("said", (loss.text[:1200],), detail=loss.detail),))


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.exists():
        columns = ["id", "messages", "rejected", "meta"]
        yield from pl.read_parquet(path, columns=columns).iter_rows(named=True)


def _dropped(out: StageDir) -> list[Loss]:
    """Every answer that gave no row. Raises RunError where the file is missing or damaged."""
    path = out.file(DROPPED)
    return [parse(Loss, value, path) for value in json_lines(path)]
