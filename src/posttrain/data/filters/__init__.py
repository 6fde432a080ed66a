"""Rules that drop rows: one small file each, one line each in :data:`FILTERS`; ``posttrain.data.filters.step`` runs them."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.filters.base import Conversation, Filter, Measurement
from posttrain.data.filters.form import Length, Structure
from posttrain.data.filters.garbled import Garbled
from posttrain.data.filters.harmful import Harmful
from posttrain.data.filters.language import LanguageFilter
from posttrain.data.filters.private import Pii, Secrets
from posttrain.data.filters.repetition import Repetition
from posttrain.data.filters.replies import Refusal, Template

__all__ = ["FILTERS", "Conversation", "Filter", "Measurement"]

FILTERS: Mapping[str, type[Filter]] = {
    "structure": Structure,
    "length": Length,
    "garbled": Garbled,
    "language": LanguageFilter,
    "repetition": Repetition,
    "template": Template,
    "refusal": Refusal,
    "harmful": Harmful,
    "pii": Pii,
    "secrets": Secrets,
}
"""Every filter, in the order in which they give the reason of a dropped row."""
