"""Rows with scores, and a select step run on them as the data chain runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from posttrain.artifacts import canonical_json
from posttrain.config import Document, build
from posttrain.data.rows import LINEAGE, rows_frame, write_rows
from posttrain.data.select.step import SelectStep
from posttrain.data.steps import Decisions, StepRun, apply
from posttrain.types import Message, Origin, SftRow

RUN = StepRun(resolve=lambda name: None)


class Scored(NamedTuple):
    """One row: prompt, answer, scores by name, source, meta."""

    prompt: str
    answer: str = "An answer of six words here."
    scores: Mapping[str, float] = {}
    source: str = "a"
    meta: Mapping[str, Any] = {}
    by: str = "base@0000"


class Selected(NamedTuple):
    """What a step left behind."""

    kept: list[str]
    """Prompts of the kept rows, sorted."""
    reasons: dict[str, str]
    """Prompt -> reason of the dropped rows."""
    twins: dict[str, str]
    """Prompt -> prompt of the row kept instead."""
    verdicts: dict[str, dict[str, tuple[float | None, str, bool]]]
    """Prompt -> check -> (value, limit, passed), of kept and dropped rows."""
    facts: Mapping[str, Any]
    decisions: Decisions


def frame_of(rows: Sequence[Scored]) -> pl.DataFrame:
    typed = [
        SftRow(
            (Message("user", row.prompt), Message("assistant", row.answer)),
            Origin(f"{row.source}.jsonl", number),
            row.source,
            meta=row.meta,
        )
        for number, row in enumerate(rows, 1)
    ]
    scores = [[{"name": n, "value": v, "by": row.by} for n, v in row.scores.items()] for row in rows]
    return rows_frame(typed).with_columns(pl.Series("scores", scores, dtype=LINEAGE["scores"]))


def step_of(rule: Mapping[str, Any], **keys: Any) -> SelectStep:
    return build(SelectStep, Document("select.yaml", {"kind": "select", "rule": dict(rule), **keys}, {(): 1}))


@pytest.fixture
def decide(tmp_path: Path) -> Callable[..., Decisions]:
    """``decide(frame of rows, {"method": ...}, seed=0, **keys of the step)``, from rows.parquet in ``tmp_path``."""

    def run(rows: pl.DataFrame, rule: Mapping[str, Any], seed: int = 0, **keys: Any) -> Decisions:
        write_rows(tmp_path / "rows.parquet", rows)
        return step_of(rule, **keys).decide(tmp_path / "rows.parquet", seed, RUN)

    return run


@pytest.fixture
def select(tmp_path: Path, decide: Callable[..., Decisions]) -> Callable[..., Selected]:
    """``select(rows, {"method": ...}, seed=0, **keys of the step)``; rows: ``Scored`` values or a frame of rows."""

    def run(rows: Sequence[Scored] | pl.DataFrame, rule: Mapping[str, Any], seed: int = 0, **keys: Any) -> Selected:
        out = tmp_path / "out"
        decisions = decide(rows if isinstance(rows, pl.DataFrame) else frame_of(rows), rule, seed, **keys)
        path = tmp_path / "rows.parquet"
        out.mkdir(exist_ok=True)
        apply("select", path, decisions, out)
        kept, dropped = pl.read_parquet(out / "rows.parquet"), pl.read_parquet(out / "rejects.parquet")
        prompt = pl.col("messages").list.first().struct.field("content").alias("prompt")
        prompts = dict(pl.concat([kept.select("id", prompt), dropped.select("id", prompt)]).iter_rows())
        verdicts = {
            record["prompt"]: {v["check"]: (v["value"], v["limit"], v["passed"]) for v in record["verdicts"]}
            for part in (kept, dropped)
            for record in part.select(prompt, "verdicts").iter_rows(named=True)
        }
        canonical_json(decisions.facts)  # facts must be JSON
        return Selected(
            sorted(kept.select(prompt)["prompt"]),
            dict(dropped.select(prompt, "reason").iter_rows()),
            {p: prompts[t] for p, t in dropped.select(prompt, "twin").iter_rows() if t is not None},
            verdicts,
            decisions.facts,
            decisions,
        )

    return run


@pytest.fixture
def frame() -> Callable[[Sequence[Scored]], pl.DataFrame]:
    """``frame(rows)``: ``Scored`` values as a frame of rows."""
    return frame_of


@pytest.fixture
def scored() -> type[Scored]:
    """``scored(prompt, answer, scores, source, meta, by)``."""
    return Scored
