"""The configuration of an evaluation stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen


@dataclass(frozen=True, kw_only=True)
class EvalStage:
    """Compare models: held-out likelihood or held-out preferences, and replies to fixed prompts."""

    kind: Literal["eval"]
    data: str
    """The data stage whose held-out rows are scored: conversations by their likelihood, pairs by which reply is favoured."""
    models: Annotated[tuple[str, ...], MinLen(1)]
    """``base`` and names of train stages; later ones are compared with the first."""
    reference: str | None = None
    """Pairs only: the model whose log-probabilities rewards are measured from; null = the first of ``models``."""
    prompts: str | None = "builtin"
    """``builtin`` (posttrain's own 36+ prompts), a YAML file of the same form, or null for no replies."""
    max_new_tokens: Annotated[int, Ge(1)] = 96
    """Longest reply in tokens."""
    batch_tokens: Annotated[int, Ge(1)] = 4096
    """Tokens computed at once when scoring held-out rows."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    resamples: Annotated[int, Ge(100)] = 10_000
    """Bootstrap resamples."""
    max_length: Annotated[int, Ge(2)] = 1024
    """Longest held-out conversation in tokens; longer ones are dropped and counted."""
    template: str | None = None
    """A Jinja chat template file that replaces the tokenizer's own (give the train stage the same)."""
    device: str = "auto"
