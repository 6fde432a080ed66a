"""How much of each source goes into the training set (Tulu 3, arXiv 2411.15124, section 4.1.2).

Every source gets a target: all it has, a number or share (``counts``), or its part of the whole (``weights``). Very large sets are
capped, ``share`` sub-samples every source alike, ``leave_out`` takes sources away for an ablation. Rows of the splits
``validation`` and ``test`` are never touched, so mixes made after the split are judged on the same held-out rows.

The rows of a source are laid end to end in the order of a seeded hash of their content id, each as long as it counts (its
weight, times its tokens where the mix is by tokens). A row stays where its middle lies inside the target: a smaller
target keeps a part of what a larger one keeps, whatever order the rows came in. More than there is comes from repetition, only
when asked for: then no row is added, but the lineage column ``weight`` says how many times a row counts, and training
repeats it that many times in an epoch (``mix_rows.row_repeats``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le

from posttrain.errors import DataError
from posttrain.table import did_you_mean

if TYPE_CHECKING:
    from posttrain.data.steps import Decisions, StepRun


@dataclass(frozen=True, kw_only=True)
class MixStep:
    """Decide how much of each source is trained on: weights, counts, caps, sub-samples."""

    kind: Literal["mix"]
    by: Literal["rows", "tokens"] = "rows"
    """What amounts are counted in; tokens are those of the comparison tokenizer, over the whole conversation; of pairs also the rejected reply."""
    weights: dict[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    """Source -> its part of the mix, relative to the other weights. Without ``total``: the largest mix of these proportions."""
    counts: dict[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    """Source -> how much of it: a share of what it has below 1, otherwise a number of rows (or tokens)."""
    total: Annotated[float, Gt(0)] | None = None
    """Size of the whole mix; what ``counts`` and sources that are not named leave of it goes to ``weights``."""
    cap: Annotated[float, Gt(0)] | None = None
    """No source gives more than this (down-sampling of very large sets)."""
    caps: dict[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """Source -> the most it gives, in place of ``cap``."""
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    """Keep this share of every source's target: a sub-sample stratified by source."""
    leave_out: tuple[str, ...] = ()
    """Sources that give nothing."""
    upsample: bool = False
    """Whether a target above what a source has is met by repeating its rows; otherwise it is an error."""
    max_repeats: Annotated[int, Ge(1)] = 4
    """The most times one row may count when repeated (beyond four epochs repeated rows teach little)."""

    def decide(self, rows: Path, seed: int, run: StepRun) -> Decisions:
        """Which rows stay and how many times each counts. Raises DataError where the targets can't be met."""
        from posttrain.data.mix_rows import decide  # here: reading a recipe needs no polars

        return decide(self, rows, seed, run)


def targets(step: MixStep, available: Mapping[str, float]) -> dict[str, float]:
    """Source -> amount wanted of it, given the amounts there are. Whole numbers where the mix is by rows.

    Raises DataError for an unknown source, and where a target is more than there is and may not be repeated.
    """
    _check_names(step, available)
    room = {name: min(amount, _cap(step, name)) for name, amount in available.items()}
    counted = {name: count * room[name] if count < 1 else count for name, count in step.counts.items()}
    whole = {name: room[name] for name in available if name not in step.weights and name not in counted}
    wanted = {**whole, **counted, **_by_weight(step, room, sum(whole.values()) + sum(counted.values()))}
    for name, amount in wanted.items():
        _check_amount(step, name, amount, available[name])
    final = {name: 0.0 if name in step.leave_out else wanted[name] * step.share for name in available}
    return _rounded(final) if step.by == "rows" else final


# ---- targets -------------------------------------------------------------------------------------------------------


def _check_names(step: MixStep, available: Mapping[str, float]) -> None:
    for key in ("weights", "counts", "caps", "leave_out"):
        for name in getattr(step, key):
            if name not in available:
                raise DataError(
                    f"there is no source {name!r} among the rows{did_you_mean(name, available)}",
                    where=f"mix.{key}",
                    fix=f"sources here: {', '.join(available) or 'none'}",
                )
    for name in step.weights:
        if name in step.counts:
            raise DataError(f"{name!r} has a weight and a count", where="mix.counts", fix="keep one of the two")
    if step.weights and not any(step.weights.values()):
        raise DataError("all weights are 0", where="mix.weights", fix="give at least one source a weight above 0")
    if len(step.weights) == 1 and step.total is None and len(available) > 1:
        (name,) = step.weights
        raise DataError(
            f"weights are relative to each other, and {name!r} alone has one: it would have no effect",
            where="mix.weights",
            fix=f"give other sources weights, too, or give total, or say how much of it with counts: {{{name}: 0.5}}",
        )
    if step.total is not None and not step.weights:
        raise DataError("total is shared out by weights, and there are none", where="mix.total", fix="give weights")


def _cap(step: MixStep, name: str) -> float:
    cap = step.caps.get(name, step.cap)
    return math.inf if cap is None else cap


def _by_weight(step: MixStep, room: Mapping[str, float], taken: float) -> dict[str, float]:
    """The amounts of the sources that have a weight."""
    if not step.weights:
        return {}
    if step.total is not None:
        if step.total <= taken:
            raise DataError(
                f"counts and sources without a weight already make {taken:,.0f} of {step.total:,.0f} {step.by}",
                where="mix.total",
                fix="raise total, or give those sources a weight or a smaller count",
            )
        one = (step.total - taken) / sum(step.weights.values())
    else:
        ratios = [room[name] / weight for name, weight in step.weights.items() if weight > 0]
        one = max(ratios) if step.upsample else min(ratios)
    return {name: weight * one for name, weight in step.weights.items()}


def _check_amount(step: MixStep, name: str, amount: float, available: float) -> None:
    cap = _cap(step, name)
    if amount > cap * (1 + 1e-9):
        raise DataError(
            f"{amount:,.0f} {step.by} of {name!r} are asked for, above its cap of {cap:,.0f}",
            where="mix.caps" if name in step.caps else "mix.cap",
            fix="raise the cap, or ask for less",
        )
    if amount <= available * (1 + 1e-9):
        return
    if not step.upsample:
        raise DataError(
            f"{amount:,.0f} {step.by} of {name!r} are asked for, and it has {available:,.0f}",
            where="mix.weights" if name in step.weights else "mix.counts",
            fix="ask for less, or repeat its rows with upsample: true",
        )
    if amount > available * step.max_repeats:
        raise DataError(
            f"{amount:,.0f} {step.by} of {name!r} would repeat its {available:,.0f} more than {step.max_repeats} times",
            where="mix.max_repeats",
            fix="ask for less, or raise max_repeats",
        )


def _rounded(amounts: Mapping[str, float]) -> dict[str, float]:
    """Whole numbers with the rounded sum: the largest remainders are rounded up (ties by name)."""
    floors = {name: math.floor(amount + 1e-9) for name, amount in amounts.items()}
    left = math.floor(sum(amounts.values()) + 0.5 + 1e-9) - sum(floors.values())
    order = sorted(amounts, key=lambda name: (round(floors[name] - amounts[name], 9), name))
    raised = set(order[:left])
    return {name: float(floors[name] + (name in raised)) for name in amounts}
