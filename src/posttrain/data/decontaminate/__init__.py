"""Rows that hold evaluation prompts: found by n-grams, and proposed by meaning. See docs/data-decontamination.md."""

from __future__ import annotations

from posttrain.data.decontaminate.config import Benchmark, DecontaminateStep, EmbeddingTier

__all__ = ["Benchmark", "DecontaminateStep", "EmbeddingTier"]
