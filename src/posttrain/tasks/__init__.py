"""Benchmarks: one file each, a configuration with tasks and a score (`base.Benchmark`).

To add one, write its file and name it in the union below: recipes and ``posttrain eval`` accept it, and the contract tests
(tests/contract/test_benchmarks.py) try it from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Discriminator

from posttrain.tasks.alpaca_eval import AlpacaEvalBenchmark
from posttrain.tasks.arena_hard import ArenaHardBenchmark
from posttrain.tasks.base import Benchmark
from posttrain.tasks.diversity import DiversityBenchmark
from posttrain.tasks.gsm8k import Gsm8kBenchmark
from posttrain.tasks.ifeval import IfevalBenchmark
from posttrain.tasks.mt_bench import MtBenchBenchmark
from posttrain.tasks.overlap import OverlapBenchmark
from posttrain.tasks.pairwise import PairwiseBenchmark
from posttrain.tasks.rows import BUILTIN
from posttrain.tasks.safety import SafetyBenchmark

AnyBenchmark = Annotated[
    AlpacaEvalBenchmark
    | ArenaHardBenchmark
    | DiversityBenchmark
    | Gsm8kBenchmark
    | IfevalBenchmark
    | MtBenchBenchmark
    | OverlapBenchmark
    | PairwiseBenchmark
    | SafetyBenchmark,
    Discriminator("name"),
]
"""What a stage's ``benchmarks`` may hold, told apart by ``name``."""


def benchmark_files(benchmark: Benchmark) -> dict[str, str]:
    """The files a benchmark's configuration names, by key."""
    found = {key: getattr(benchmark, key) for key in benchmark.file_keys}
    return {key: value for key, value in found.items() if value not in (None, BUILTIN)}


def with_files(benchmark: AnyBenchmark, files: Mapping[str, Any]) -> AnyBenchmark:
    """The benchmark with other files, by key."""
    return replace(benchmark, **files)


__all__ = ["AnyBenchmark", "Benchmark", "benchmark_files", "with_files"]
