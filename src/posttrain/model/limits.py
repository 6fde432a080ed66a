"""Examples are held against what a model has weights for before anything is computed: later the device would fail in the middle of a run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from posttrain.errors import ConfigError, ModelError
from posttrain.model.forward import causal_lm
from posttrain.model.lengths import limits_of
from posttrain.types import Tokens


def check_fits(model: nn.Module, sequences: Sequence[Tokens], where: str) -> None:
    """Raise ModelError for an id the model has no vector for, ConfigError for a length it has no positions for.

    where: the config path or option that limits the length.
    """
    inner = causal_lm(model)
    known = limits_of(inner)
    for sequence in sequences:
        if (largest := int(sequence.ids_T.max(initial=0))) >= known.vocabulary:
            raise ModelError(
                f"row {sequence.row_id} holds the token id {largest}, but the model knows 0 to {known.vocabulary - 1}: the tokenizer "
                "is larger than the embedding",
                where=str(getattr(inner.config, "_name_or_path", "")) or None,
                fix="give the model the tokenizer it was made with (the chat template may use tokens that were added later)",
            )
    longest = max(map(len, sequences), default=0)
    if known.positions is not None and longest > known.positions:
        raise ConfigError(
            f"the longest example has {longest:,} tokens, but the model has learned {known.positions:,} positions",
            where=where,
            fix=f"set it to {known.positions} or less",
        )
