"""Random search and successive halving through optuna's ask and tell (extra ``tune``).

Nothing of optuna is kept: the study is made anew from its seed, and what finished runs gave is told again in the same order, so a search
that was killed asks for the same settings and decides the same. The run folders are the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError
from posttrain.sweep.config import AshaSearch, Changes, RandomSearch, Range


@dataclass(frozen=True)
class Trial:
    """One setting that a search asks for, and what it wants to hear of it."""

    changes: Changes
    seen: Callable[[int, float], bool]
    """(step, value) of a measurement on the way -> whether it is worth going on."""
    tell: Callable[[float | None], None]
    """The value at the end; None where there is none."""


def trials(
    search: RandomSearch | AshaSearch, over: Mapping[str, tuple[Any, ...] | Range], seed: int, *, minimize: bool
) -> Iterator[Trial]:
    """The settings of a search, one after another. Raises ConfigError where optuna is not installed."""
    try:
        import optuna
    except ImportError:
        fix = "pip install 'posttrain[tune]', or list the values and use search: {name: grid}"
        raise ConfigError("random and asha search need optuna", where="search", fix=fix) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner: Any = optuna.pruners.NopPruner()
    if isinstance(search, AshaSearch):
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=search.reduction)
    study = optuna.create_study(
        direction="minimize" if minimize else "maximize",
        sampler=optuna.samplers.RandomSampler(seed=seed),
        pruner=pruner,
    )
    # optuna keeps texts, numbers and truth values; anything else goes by its place in the list
    distributions: dict[str, Any] = {
        path: _numbers(values)
        if isinstance(values, Range)
        else optuna.distributions.CategoricalDistribution(range(len(values)))
        for path, values in over.items()
    }
    for _ in range(search.trials):
        asked = study.ask(distributions)
        rungs: list[int] = []

        def seen(step: int, value: float, asked: Any = asked, rungs: list[int] = rungs) -> bool:
            # rungs are counted in measurements, which are as many for every setting, whatever its number of steps
            rungs.append(step)
            asked.report(value, len(rungs))
            return not asked.should_prune()

        def tell(value: float | None, asked: Any = asked) -> None:
            state = optuna.trial.TrialState.COMPLETE if value is not None else optuna.trial.TrialState.FAIL
            study.tell(asked, value, state)

        yield Trial({path: _chosen(over[path], asked.params[path]) for path in over}, seen, tell)


def _numbers(values: Range) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if values.whole:
        return IntDistribution(round(values.low), round(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _chosen(values: tuple[Any, ...] | Range, found: Any) -> Any:
    return found if isinstance(values, Range) else values[found]
