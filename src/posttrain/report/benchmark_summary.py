"""The parts of summary.json that tell of benchmarks and of all models at a glance."""

from __future__ import annotations

import dataclasses
from typing import Any

from posttrain.report.benchmarks import BenchmarkFacts
from posttrain.report.overview import Overview


def benchmark(facts: BenchmarkFacts) -> dict[str, Any]:
    """Return the content of a benchmark's JSON file, with a verdict in each difference and the win rates as the page shows them."""
    return {
        **dataclasses.asdict(facts.record),
        "name": facts.name,
        "differences": [{**dataclasses.asdict(one.record), "verdict": one.verdict} for one in facts.differences],
        "win_rates": [dataclasses.asdict(one) for one in facts.contests],
        "unread_judges": [entry.name for entry in facts.unread_judges],
        "rows_file": facts.rows_file if facts.rows else None,
    }


def overview(found: Overview) -> dict[str, Any]:
    """Return the table of all models, numbers unrounded."""
    return {
        "models": list(found.models),
        "lines": [
            {
                "group": group.title,
                "label": line.label,
                "of": line.of,
                "unit": line.unit,
                "better": line.better,
                "counted": line.counted,
                "baseline": line.baseline,
                "models": {model: dataclasses.asdict(entry) for model, entry in line.entries.items()},
            }
            for group in found.groups
            for line in group.lines
        ],
    }
