"""What each trained model of a run took: the stages behind it, the models they had in memory, time, memory, steadiness.

Read from manifests and metrics alone, of stages of whatever kind: the identities of its inputs say which stages a stage was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from posttrain.errors import RunError
from posttrain.report.reading import Stage
from posttrain.report.values import Label, Line, Number

GROUP = "What each model took"


def way_to(stage: Stage, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages that a stage was made from, in the order of the recipe, and itself behind them."""
    by_digest = {one.manifest.digest: one for one in stages if one.manifest and one.manifest.digest}
    found, waiting = {stage.name}, [stage]
    while waiting:
        manifest = waiting.pop().manifest
        inputs = manifest.inputs.values() if manifest else ()
        before = [by_digest[digest] for digest in inputs if isinstance(digest, str) and digest in by_digest]
        waiting += [one for one in before if one.name not in found]
        found |= {one.name for one in before}
    return (*(one for one in stages if one.name in found - {stage.name}), stage)


def way_lines(stages: Sequence[Stage], models: Collection[str]) -> Iterator[Line]:
    """A line a cost, for those of the models that stages of this run trained; none where fewer than two were."""
    ways = {one.name: way_to(one, stages) for one in stages if one.name in models and _result(one).get("roles")}
    if len(ways) < 2:
        return
    own = {name: way[-1] for name, way in ways.items()}
    measures: dict[str, tuple[str, Callable[[str], Number]]] = {
        "Stages": ("its own the last", lambda n: _counted([one.name for one in ways[n]])),
        "Models in memory": ("of its own stage", lambda n: _models(_result(own[n]))),
        "Time": (
            "of these stages together",
            lambda n: Number(sum(one.seconds or 0.0 for one in ways[n]), "seconds"),
        ),
        "Peak memory": ("of these stages", lambda n: Number(max(_memory(one) for one in ways[n]), "bytes")),
        "Steadiness": ("largest gradient norm, times the median", lambda n: Number(_jump(own[n]), digits=1)),
    }
    for label, (detail, of) in measures.items():
        cells = {name: number for name in ways if (number := of(name)).value is not None}
        if cells:
            yield Line(GROUP, Label(label, detail), cells)


def _result(stage: Stage) -> dict[str, Any]:
    return (stage.manifest.result or {}) if stage.manifest else {}


def _counted(names: Sequence[str]) -> Number:
    return Number(len(names), "count", note=", ".join(names))


def _models(result: dict[str, Any]) -> Number:
    return Number(result.get("models_in_memory"), "count", note=", ".join(result["roles"]))


def _memory(stage: Stage) -> int:
    return (stage.manifest.peak_memory_bytes or 0) if stage.manifest else 0


def _jump(stage: Stage) -> float | None:
    """Of the steps that moved the weights."""
    with suppress(RunError):
        norms = [line["grad_norm"] for line in stage.folder.metrics() if line.get("grad_norm")]
        return max(norms) / median(norms) if norms else None
    return None
