"""What every objective promises."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from posttrain.config import build, field_docs, parse_yaml, resolved_yaml
from posttrain.errors import ConfigError
from posttrain.objectives import (
    DpoObjective,
    HingeObjective,
    IpoObjective,
    KtoObjective,
    Objective,
    OrpoObjective,
    RewardObjective,
    SftObjective,
    SimpoObjective,
)
from posttrain.objectives.base import Loss, PairLogps, SequenceLogps

OBJECTIVES: tuple[type, ...] = get_args(get_args(Objective)[0])
CASES: list[Any] = [
    *(kind() for kind in OBJECTIVES),
    DpoObjective(beta=0.5, label_smoothing=0.1),
    DpoObjective(beta=0.5, label_smoothing=0.1, robust=True),
    DpoObjective(sft_weight=1.0),
    IpoObjective(average="sum"),
    SimpoObjective(beta=10.0, gamma_beta_ratio=1.0, sft_weight=0.5),
    OrpoObjective(weight=1.0, nll="conversation"),
    KtoObjective(beta=0.5, desirable_weight=1.3, undesirable_weight=0.7),
    RewardObjective(use_margin=True, centering=0.01),
]


def named(value: Any) -> str:
    changed = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if getattr(value, f.name) != f.default}
    return value.name + "".join(f" {name}={setting}" for name, setting in changed.items())


EVERY_CASE = pytest.mark.parametrize("objective", CASES, ids=named)


class Row(NamedTuple):
    """What any objective may want to know of one row, in numbers: sums of log-probabilities and how many tokens they are of."""

    chosen: float
    rejected: float
    reference_chosen: float = 0.0
    reference_rejected: float = 0.0
    chosen_tokens: int = 1
    rejected_tokens: int = 1
    prompt: float = -3.0
    prompt_tokens: int = 4
    desirable: bool = True
    margin: float = 0.5


class Outcome(NamedTuple):
    loss: Loss
    chosen: torch.Tensor
    rejected: torch.Tensor


def run(objective: Any, rows: Sequence[Row], step: Sequence[Row], dtype: torch.dtype = torch.float64) -> Outcome:
    """An objective on some of the rows of a step. Single replies are the chosen sides; rewards are taken from ``chosen`` too."""

    def column(name: str) -> torch.Tensor:
        return torch.tensor([float(getattr(row, name)) for row in rows], dtype=dtype)

    def whole(name: str) -> torch.Tensor:
        return torch.tensor([float(getattr(row, name)) for row in step], dtype=dtype)

    chosen, rejected = column("chosen").requires_grad_(), column("rejected").requires_grad_()
    tokens = column("chosen_tokens"), column("rejected_tokens")
    match objective:
        case SftObjective():
            loss = objective.loss(chosen, tokens[0], float(whole("chosen_tokens").sum()))
        case RewardObjective():
            loss = objective.loss(chosen, rejected, column("margin"), len(step))
        case KtoObjective():
            seen = [SequenceLogps(whole(name), whole("chosen_tokens")) for name in ("chosen", "reference_chosen")]
            loss = objective.loss(
                SequenceLogps(chosen, tokens[0]),
                SequenceLogps(column("reference_chosen"), tokens[0]),
                torch.tensor([row.desirable for row in rows], dtype=torch.bool),
                KtoObjective().reference_point(*seen),
                len(step),
            )
        case _:
            conversation = SequenceLogps(chosen + column("prompt"), tokens[0] + column("prompt_tokens"))
            loss = objective.loss(
                PairLogps(
                    SequenceLogps(chosen, tokens[0]),
                    SequenceLogps(rejected, tokens[1]),
                    conversation if objective.supervises_prompt else None,
                ),
                PairLogps(
                    SequenceLogps(column("reference_chosen"), tokens[0]),
                    SequenceLogps(column("reference_rejected"), tokens[1]),
                )
                if objective.needs_reference
                else None,
                len(step),
            )
    return Outcome(loss, chosen, rejected)


LOGPS = st.floats(-300, -0.01)
ROWS = st.builds(
    Row,
    *(LOGPS, LOGPS, LOGPS, LOGPS),
    chosen_tokens=st.integers(1, 300),
    rejected_tokens=st.integers(1, 300),
    prompt=LOGPS,
    prompt_tokens=st.integers(1, 300),
    desirable=st.booleans(),
    margin=st.floats(0, 3),
)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ---- what the engine reads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OBJECTIVES, ids=lambda kind: kind.__name__)
def test_an_objective_says_what_it_needs_and_explains_its_settings(kind: Any) -> None:
    assert kind.__dataclass_params__.frozen
    assert kind.row_kind in ("conversations", "pairs", "feedback")
    assert 0 < kind.default_learning_rate < 1e-3
    assert isinstance(kind.needs_reference, bool)
    assert kind().supervises_prompt is False
    assert ("reference" in {f.name for f in dataclasses.fields(kind)}) == kind.needs_reference
    first, *others = dataclasses.fields(kind)
    assert first.name == "name"
    assert set(field_docs(kind)) - {"name"} == {f.name for f in others}
    assert len({one().name for one in OBJECTIVES}) == len(OBJECTIVES)


# ---- configuration -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stage:
    objective: Objective


def configured(settings_of_it: dict[str, Any]) -> Any:
    return build(Stage, parse_yaml(json.dumps({"objective": settings_of_it}), "recipe.yaml")).objective


@EVERY_CASE
def test_a_configuration_is_written_and_read_again(objective: Any) -> None:
    assert build(Stage, parse_yaml(resolved_yaml(Stage(objective=objective)), "recipe.yaml")).objective == objective


@pytest.mark.parametrize("kind", OBJECTIVES, ids=lambda kind: kind.__name__)
def test_a_key_of_another_objective_is_an_error(kind: Any) -> None:
    own = {f.name for f in dataclasses.fields(kind)}
    foreign = {f.name: f.default for other in OBJECTIVES for f in dataclasses.fields(other) if f.name not in own}
    assert foreign
    for key, value in foreign.items():
        with pytest.raises(ConfigError, match=f"objective.{key}: unknown key"):
            configured({"name": kind().name, key: value})


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        *(({"name": kind().name, "beta": beta}, "objective.beta") for kind in OBJECTIVES for beta in (0, -0.1)),
        ({"name": "orpo", "weight": 0}, "objective.weight"),
        ({"name": "dpo", "label_smoothing": 0.5}, "objective.label_smoothing"),
        ({"name": "dpo", "label_smoothing": -0.1}, "objective.label_smoothing"),
        ({"name": "dpo", "robust": True}, "objective"),
        ({"name": "simpo", "gamma_beta_ratio": -1}, "objective.gamma_beta_ratio"),
        ({"name": "ipo", "average": "mean"}, "objective.average"),
        ({"name": "kto", "desirable_weight": 0}, "objective.desirable_weight"),
        ({"name": "reward", "centering": -1}, "objective.centering"),
        ({"name": "dpp"}, "did you mean 'dpo'"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        configured(wrong)


# ---- finite --------------------------------------------------------------------------------------------------------

EXTREMES = [0.0, -1e-9, -1e-6, -2.0, -1e4]


@EVERY_CASE
@pytest.mark.parametrize("tokens", [1, 1000])
@pytest.mark.parametrize("desirable", [True, False])
def test_value_and_gradient_are_finite_at_extremes(objective: Any, tokens: int, desirable: bool) -> None:
    rows = [
        Row(chosen, rejected, *references, tokens, tokens, desirable=desirable)
        for chosen, rejected in itertools.product(EXTREMES, repeat=2)
        for references in ((0.0, 0.0), (0.0, -1e4), (-1e4, 0.0), (chosen, rejected))
    ]
    loss, chosen, rejected = run(objective, rows, rows, torch.float32)
    loss.share.backward()
    assert math.isfinite(loss.share.item())
    for leaf in (chosen, rejected):
        assert leaf.grad is None or bool(leaf.grad.isfinite().all())
    assert all(math.isfinite(m.total.item()) for m in loss.metrics.values())


@EVERY_CASE
def test_equal_sides_are_half_right(objective: Any) -> None:
    rows = [Row(-7.0, -7.0, -5.0, -5.0, 3, 3)]
    accuracy = run(objective, rows, rows).loss.metrics.get("rewards/accuracies")
    assert (accuracy is None) == (objective.row_kind != "pairs")
    assert accuracy is None or accuracy.total.item() / accuracy.count == 0.5


# ---- monotone ------------------------------------------------------------------------------------------------------


def target(objective: Any) -> float:
    """The reward margin up to which a wider margin is a better one."""
    match objective:
        case IpoObjective():
            return 0.5  # beta times 1 / (2 beta)
        case DpoObjective(label_smoothing=e, robust=False) if e:
            return math.log((1 - e) / e)
        case _:
            return math.inf


@EVERY_CASE
@QUICK
@given(row=ROWS, by=st.floats(1e-3, 50), sides=st.sampled_from([(1, 0), (0, 1), (1, 1)]))
def test_a_wider_margin_is_never_worse(objective: Any, row: Row, by: float, sides: tuple[int, int]) -> None:
    if isinstance(objective, RewardObjective) and objective.centering:
        sides = (1, 1)  # it wants the sum to stay where it is
    by = min(by, -row.chosen)  # a probability is at most 1
    wider = row._replace(chosen=row.chosen + sides[0] * by, rejected=row.rejected - sides[1] * by)
    # The rest of the step is the row as it was, so that KTO's reference point is the same for both.
    before, after = run(objective, [row], [row]).loss, run(objective, [wider], [row]).loss
    if target(objective) < math.inf:
        assume(after.metrics["rewards/margins"].total.item() <= target(objective))
    gain = before.share.item() - after.share.item()
    if isinstance(objective, KtoObjective) and not row.desirable:
        gain = -gain  # here the better reply is the less likely one
    assert gain >= -1e-9 * abs(before.share.item())


# ---- additive ------------------------------------------------------------------------------------------------------


@EVERY_CASE
@QUICK
@given(rows=st.lists(ROWS, min_size=1, max_size=8), cuts=st.lists(st.integers(0, 8), max_size=4))
def test_shares_and_metrics_of_any_split_add_up(objective: Any, rows: list[Row], cuts: list[int]) -> None:
    whole = run(objective, rows, rows)
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = [run(objective, rows[a:b], rows) for a, b in itertools.pairwise(edges)]
    assert sum(part.loss.share.item() for part in parts) == pytest.approx(whole.loss.share.item(), rel=1e-9, abs=1e-9)
    for name, one in whole.loss.metrics.items():
        found = [part.loss.metrics[name] for part in parts]
        assert sum(m.total.item() for m in found) == pytest.approx(one.total.item(), rel=1e-9, abs=1e-9)
        assert sum(float(m.count) for m in found) == float(one.count)
        assert not one.total.requires_grad
    whole.loss.share.backward()
    for part in parts:
        part.loss.share.backward()
    for side in ("chosen", "rejected"):
        leaf = getattr(whole, side)
        pieces = [getattr(part, side) for part in parts]
        assert all((piece.grad is None) == (leaf.grad is None) for piece in pieces)
        if leaf.grad is not None:
            assert torch.cat([piece.grad for piece in pieces]).tolist() == pytest.approx(leaf.grad.tolist(), rel=1e-9)


# ---- against the papers, in float64 --------------------------------------------------------------------------------

Columns = dict[str, NDArray[np.float64]]


def minus_log_sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.logaddexp(0, -x)


def log_ratios(c: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return c["chosen"] - c["reference_chosen"], c["rejected"] - c["reference_rejected"]


def dpo(o: DpoObjective, c: Columns) -> NDArray[np.float64]:
    chosen, rejected = log_ratios(c)
    right, wrong = minus_log_sigmoid(o.beta * (chosen - rejected)), minus_log_sigmoid(-o.beta * (chosen - rejected))
    e = o.label_smoothing
    preference = ((1 - e) * right - e * wrong) / (1 - 2 * e) if o.robust else (1 - e) * right + e * wrong
    return preference - o.sft_weight * c["chosen"] / c["chosen_tokens"]


def ipo(o: IpoObjective, c: Columns) -> NDArray[np.float64]:
    chosen, rejected = log_ratios(c)
    if o.average == "tokens":
        chosen, rejected = chosen / c["chosen_tokens"], rejected / c["rejected_tokens"]
    return np.square(chosen - rejected - 1 / (2 * o.beta))


def simpo(o: SimpoObjective, c: Columns) -> NDArray[np.float64]:
    chosen, rejected = c["chosen"] / c["chosen_tokens"], c["rejected"] / c["rejected_tokens"]
    gamma = o.gamma_beta_ratio * o.beta
    return minus_log_sigmoid(o.beta * chosen - o.beta * rejected - gamma) - o.sft_weight * chosen


def orpo(o: OrpoObjective, c: Columns) -> NDArray[np.float64]:
    p, q = np.exp(c["chosen"] / c["chosen_tokens"]), np.exp(c["rejected"] / c["rejected_tokens"])
    odds_ratio = (p / (1 - p)) / (q / (1 - q))
    nll = -c["chosen"] / c["chosen_tokens"]
    if o.nll == "conversation":
        nll = -(c["chosen"] + c["prompt"]) / (c["chosen_tokens"] + c["prompt_tokens"])
    return nll - o.weight * np.log(odds_ratio / (1 + odds_ratio))


def hinge(o: HingeObjective, c: Columns) -> NDArray[np.float64]:
    chosen, rejected = log_ratios(c)
    return np.maximum(0, 1 - o.beta * (chosen - rejected))


def kto(o: KtoObjective, c: Columns) -> NDArray[np.float64]:
    ratios, _ = log_ratios(c)
    z = max(0.0, float(ratios.mean()))
    value = 1 / (1 + np.exp(-o.beta * np.where(c["desirable"] == 1, ratios - z, z - ratios)))
    return np.where(c["desirable"] == 1, o.desirable_weight, o.undesirable_weight) * (1 - value)


def reward(o: RewardObjective, c: Columns) -> NDArray[np.float64]:
    margin = c["margin"] if o.use_margin else 0.0
    centre = o.centering * np.square(c["chosen"] + c["rejected"])
    return minus_log_sigmoid(c["chosen"] - c["rejected"] - margin) + centre


def sft(o: SftObjective, c: Columns) -> NDArray[np.float64]:
    return np.asarray(-c["chosen_tokens"] * c["chosen"] / c["chosen_tokens"].mean())


PAPERS: dict[str, Callable[[Any, Columns], NDArray[np.float64]]] = {
    "sft": sft,
    "dpo": dpo,
    "ipo": ipo,
    "simpo": simpo,
    "orpo": orpo,
    "hinge": hinge,
    "kto": kto,
    "reward": reward,
}


def realistic(seed: int, count: int) -> list[Row]:
    """Rows as in training: 20 to 300 tokens of half a nat to four nats, within a nat or so in ten tokens of the reference."""
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 300, (count, 2))
    reference = -random.uniform(0.5, 4, (count, 2)) * tokens
    policy = reference + random.normal(0, 0.1, (count, 2)) * tokens
    return [
        Row(
            *np.float32(policy[i]).tolist(),
            *np.float32(reference[i]).tolist(),
            *tokens[i].tolist(),
            prompt=float(np.float32(-random.uniform(10, 300))),
            prompt_tokens=int(random.integers(5, 200)),
            desirable=bool(random.random() < 0.6),
            margin=float(np.float32(random.choice([0, 1 / 3, 2 / 3, 1]))),
        )
        for i in range(count)
    ]


@EVERY_CASE
def test_agreement_with_the_papers_in_float64(objective: Any) -> None:
    for seed in range(10):
        rows = realistic(seed, 64)
        columns = {name: np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in Row._fields}
        exact = float(PAPERS[objective.name](objective, columns).mean())
        assert run(objective, rows, rows).loss.share.item() == pytest.approx(exact, rel=1e-12, abs=1e-12)
        assert run(objective, rows, rows, torch.float32).loss.share.item() == pytest.approx(exact, rel=1e-6, abs=1e-6)
