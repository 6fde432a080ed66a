"""Held-out rows under several models: likelihood of conversations, preferences of pairs, feedback on single replies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.records import Source, TaskRecord


def held_out_record(
    key: str, title: str, models: Iterable[str], rows: int, settings: IntervalSettings, **more: Any
) -> TaskRecord:
    """The record of ``<key>.json``: of every model, and of every later one against the first. ``more``: what was measured."""
    models = tuple(models)
    return TaskRecord(
        key=key,
        task=key,
        title=title,
        area="held_out",
        source=Source(None, None, rows),
        models=models,
        baseline=models[0],
        confidence=settings.confidence,
        resamples=settings.resamples,
        **more,
    )
