"""Rules that drop rows: one small file each, one line each in :data:`FILTERS`; ``posttrain.data.filters.step`` runs them."""

from __future__ import annotations

from typing import Any

from posttrain.data.filters.base import Conversation, Filter, Measurement
from posttrain.data.filters.garbled import GARBLED
from posttrain.data.filters.harmful import HARMFUL
from posttrain.data.filters.language import LANGUAGE
from posttrain.data.filters.length import LENGTH
from posttrain.data.filters.pii import PII
from posttrain.data.filters.refusal import REFUSAL
from posttrain.data.filters.repetition import REPETITION
from posttrain.data.filters.secrets import SECRETS
from posttrain.data.filters.structure import STRUCTURE
from posttrain.data.filters.template import TEMPLATE
from posttrain.table import Table

__all__ = ["FILTERS", "Conversation", "Filter", "Measurement"]

FILTERS: Table[Filter[Any]] = Table(
    "filter",
    {f.name: f for f in (STRUCTURE, LENGTH, GARBLED, LANGUAGE, REPETITION, TEMPLATE, REFUSAL, HARMFUL, PII, SECRETS)},
)
"""Every filter, in the order in which they give the reason of a dropped row."""
