"""Rows that hold evaluation prompts: found by n-grams, and proposed by meaning. See docs/data-decontamination.md."""

from __future__ import annotations

from posttrain.data.decontaminate.benchmarks import Benchmark
from posttrain.data.decontaminate.proposals import EmbeddingTier
from posttrain.data.decontaminate.step import DecontaminateStep

__all__ = ["Benchmark", "DecontaminateStep", "EmbeddingTier"]
