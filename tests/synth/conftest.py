"""A loop over scripted engines, with no filters of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
import pytest

from posttrain.data.rows import frame_rows
from posttrain.generate.engine import Engine
from posttrain.generate.fake import FakeEngine
from posttrain.synth.loop import Found, Limits, Loop
from posttrain.synth.prompts import load_prompts
from posttrain.types import Message, Row, SftRow


class Silent:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def tick(self, label: str, done: int, total: int) -> None: ...

    def record(self, record: Mapping[str, Any]) -> None: ...


Synthesise = Callable[..., Found]


def synthesise(
    pipeline: Any,
    engine: Engine | Mapping[str, Engine] | Any,
    rows: Sequence[Row] = (),
    *,
    language: str = "en",
    seed: int = 0,
    rater: Any = None,
    **limits: Any,
) -> Found:
    engines = engine if isinstance(engine, Mapping) else dict.fromkeys(pipeline.roles, engine)
    return Loop(
        pipeline=pipeline,
        engines=engines,
        prompts=load_prompts(language, None),  # type: ignore[arg-type]
        language=language,
        limits=Limits(**{"rows_wanted": 4, "round_size": 4} | limits),
        seed=seed,
        source="made",
        filters=lambda frame, number: (frame, [], []),
        display=Silent(),
        rows=rows,
        rater=rater,
    ).run()


@pytest.fixture(name="synthesise")
def synthesise_fixture() -> Synthesise:
    return synthesise


def texts(found: Found) -> list[list[str]]:
    """What every row says, turn by turn."""
    return [[turn.content for turn in row.messages] for row in frame_rows(found.rows)]


def scripted(script: Any) -> FakeEngine:
    return FakeEngine(script)


def row(text: str, reply: str = "fine") -> SftRow:
    from posttrain.types import Origin

    return SftRow((Message("user", text), Message("assistant", reply)), Origin("rows.jsonl", 1), "rows")


def reasons(found: Found) -> dict[str, int]:
    return dict(found.ledger.dropped)


def ids(found: Found) -> list[str]:
    return found.rows["id"].to_list()


EMPTY = pl.DataFrame()
