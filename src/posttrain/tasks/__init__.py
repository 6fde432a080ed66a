"""Benchmarks: one file each, a configuration with tasks and a score (`base.Benchmark`).

To add one, write its file and name it in the union below: recipes and ``posttrain eval`` accept it, and the contract tests
(tests/contract/test_benchmarks.py) try it from then on.
"""

from __future__ import annotations

from typing import Annotated

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


__all__ = ["AnyBenchmark", "Benchmark"]
