"""Selection: which of the good rows are worth training on. See docs/data-selection.md."""

from __future__ import annotations

from posttrain.data.select.config import SelectStep

__all__ = ["SelectStep"]
