"""The rules about replies of one's own, on hand-written courses of 20 steps: the symptom, what is just short of it, and healthy runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.artifacts import Ledger, LedgerStep, Manifest, StageDir
from posttrain.doctor.course import logged
from posttrain.doctor.diagnosis import diagnose
from posttrain.doctor.evidence import Measured, TrainEvidence
from posttrain.doctor.findings import Finding, Outcome, Unknown
from posttrain.doctor.rules import OF_ONLINE
from posttrain.doctor.words import Language, Words
from posttrain.objectives.base import BaseObjective
from posttrain.objectives.online_dpo import OnlineDpo
from posttrain.objectives.policy_gradient import Dapo, Grpo, Ppo, Rloo
from posttrain.online.records import Measured as Answered
from posttrain.report.reading import Stage
from posttrain.tasks.facts import facts_of
from posttrain.tasks.records import Difference, Measure, Source, TaskRecord
from posttrain.train.records import HeldOutRecord, StepRecord, TrainResult
from posttrain.train.section import Training

STEPS = 20
RISING = [0.1 + 0.04 * n for n in range(STEPS)]
FLAT = [0.3] * STEPS
THERE_AND_BACK = [*[0.1] * 4, *[0.8] * 6, *[0.1] * 10]
CHECKS = ({"name": "checks"},)
TWO = ({"name": "checks"}, {"name": "length", "weight": 0.0})


def jitter(values: Sequence[float], size: float = 0.01) -> list[float]:
    """The noise of steps: now above, now below."""
    return [value + size * (-1) ** n for n, value in enumerate(values)]


def seen(
    method: BaseObjective | None = None, settings: Mapping[str, Any] | None = None, **courses: Sequence[float]
) -> TrainEvidence:
    """A stage whose metrics took these courses; those that are not given are those of a run that is well."""
    config = {
        "adapter": {"name": "lora"}, "learning_rate": 1e-5, "data": "prompts", "scores": CHECKS,
        "prompts": 8, "replies": 8, "max_new_tokens": 40, "max_prompt_tokens": 512, "cut_replies": 0.0, **(settings or {}),
    }  # fmt: skip
    well: dict[str, Sequence[float]] = {
        "reward": jitter(RISING), "reward/deviation": [0.4] * STEPS, "length": jitter([20.0] * STEPS, 1.0),
        "kl": [0.01 * n for n in range(STEPS)], "groups/equal": [0.1] * STEPS, "replies/cut": [0.05] * STEPS,
        "distinct_2": jitter([0.9] * STEPS), "entropy": jitter([2.0] * STEPS),
    }  # fmt: skip
    own = {**well, **{key.replace("__", "/"): values for key, values in courses.items()}}
    own.setdefault("reward/checks", own["reward"])
    count = len(own["reward"])
    steps = tuple(
        StepRecord(step=n + 1, loss=0.0, grad_norm=1.0, metrics={k: v[n] for k, v in own.items() if len(v) > n})
        for n in range(count)
    )
    ledger = Ledger([LedgerStep("encode", rows_in=100, rows_out=100)])
    stage = Stage("grpo", "online", "complete", Manifest("online", "complete", config), ledger, StageDir(Path("grpo")))
    held = (HeldOutRecord(step=0, loss=-0.1), HeldOutRecord(step=count, loss=-0.5))
    return TrainEvidence(Training(stage, method or Grpo(), TrainResult(), steps, held, None))


def ask(rule: str, evidence: TrainEvidence) -> Outcome:
    outcome = OF_ONLINE[rule].examine(evidence)
    if isinstance(outcome, Finding):
        for language in get_args(Language):
            words = Words(language)
            assert all((words.evidence(rule, outcome), *(words.cause(cause.name) for cause in outcome.causes)))
    return outcome


def found(outcome: Outcome) -> tuple[str, str]:
    """Severity and first cause."""
    assert isinstance(outcome, Finding)
    return outcome.severity, outcome.causes[0].name


def changes(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Finding)
    return [change for cause in outcome.causes for change in cause.change]


def everything(evidence: TrainEvidence) -> dict[str, str]:
    """What is found, with its severity."""
    told = {name: ask(name, evidence) for name, rule in OF_ONLINE.items() if rule.applies(evidence)}
    return {name: outcome.severity for name, outcome in told.items() if isinstance(outcome, Finding)}


# ---- healthy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evidence",
    [
        seen(),
        seen(OnlineDpo(), {"learning_rate": 5e-6}),
        seen(Rloo(), {"replies": 4}, reward=jitter(FLAT)),  # nothing learned, nothing broken
        seen(Ppo(), {"replies": 1}, groups__equal=[1.0] * STEPS),  # there is nobody to be equal to
        seen(settings={"scores": TWO}, reward__length=jitter([-5.0] * STEPS, 0.5)),
        seen(reward=jitter([0.95] * STEPS), reward__deviation=[0.2 - 0.01 * n for n in range(STEPS)]),
    ],
    ids=["grpo", "online_dpo", "flat", "ppo", "two scores", "good from the start"],
)
def test_a_healthy_run_gives_nothing(evidence: TrainEvidence) -> None:
    assert everything(evidence) == {}


@pytest.mark.parametrize("seed", range(8))
def test_noise_alone_gives_no_alarm(seed: int) -> None:
    draw = np.random.default_rng(seed)
    noisy = {key: draw.normal(0.4, 0.08, 60).tolist() for key in ("reward", "reward__checks", "reward__length")}
    noisy |= {key: draw.normal(level, level / 10, 60).tolist() for key, level in (("length", 20), ("entropy", 2))}
    more = {key: [level] * 60 for key, level in (("groups__equal", 0.2), ("reward__deviation", 0.4), ("kl", 0.1))}
    evidence = seen(settings={"scores": TWO}, **noisy, **more, distinct_2=draw.normal(0.8, 0.05, 60).tolist())
    assert everything(evidence) == {}


def test_few_steps_tell_nothing() -> None:
    evidence = seen(reward=[0.1] * 5)
    for rule in ("reward_hacking", "collapse", "kl_runaway", "no_signal"):
        assert ask(rule, evidence) == Unknown("steps")


# ---- reward hacking --------------------------------------------------------------------------------------------------


def test_a_score_that_is_only_logged_falls_while_the_reward_rises() -> None:
    outcome = ask(
        "reward_hacking", seen(settings={"scores": TWO}, reward__length=jitter([-5.0 - 0.5 * n for n in range(STEPS)]))
    )
    assert found(outcome) == ("alarm", "one_score")
    assert changes(outcome)[0] == "grpo.scores.1.weight=1"
    assert "grpo.method.kl_in=reward" in changes(outcome), (
        "in the loss, beside the deviation, a small beta has no optimum"
    )
    traded = ({"name": "checks"}, {"name": "length", "weight": 0.5})
    evidence = seen(settings={"scores": traded}, reward__length=jitter([-5.0 - 0.5 * n for n in range(STEPS)]))
    assert found(ask("reward_hacking", evidence))[0] == "remark", "it counts, and was traded for the other"
    wanted = ({"name": "checks"}, {"name": "length", "weight": -0.5})
    evidence = seen(settings={"scores": wanted}, reward__length=jitter([-5.0 - 0.5 * n for n in range(STEPS)]))
    assert ask("reward_hacking", evidence) is None, "its fall is what is rewarded"


def test_a_score_past_its_best_names_the_step() -> None:
    """Gao et al.: the true reward rises with the one that is trained, and then falls."""
    gold = [*[0.2] * 3, *[0.7] * 5, *[0.25] * 12]
    outcome = ask("reward_hacking", seen(settings={"scores": TWO}, reward__length=jitter(gold)))
    assert found(outcome) == ("alarm", "past_best")
    assert changes(outcome)[0] in ("grpo.steps=7", "grpo.steps=8"), "the jitter decides between them"
    slight = [*[0.2 + 0.06 * n for n in range(10)], *[0.74 - 0.02 * n for n in range(10)]]
    assert found(ask("reward_hacking", seen(settings={"scores": TWO}, reward__length=jitter(slight))))[0] == "remark"


def test_what_does_not_rise_was_not_hacked() -> None:
    falling = jitter([-5.0 - 0.5 * n for n in range(STEPS)])
    assert ask("reward_hacking", seen(settings={"scores": TWO}, reward=jitter(FLAT), reward__length=falling)) is None


def test_held_out_prompts_decide_whether_the_reward_rose() -> None:
    falling = jitter([-5.0 - 0.5 * n for n in range(STEPS)])
    evidence = seen(settings={"scores": TWO}, reward=jitter(FLAT), reward__length=falling)
    before, after = ({str(n): value + 0.1 * (n % 2) for n in range(40)} for value in (0.1, 0.6))
    answered = tuple(Answered(step=step, rewards=rewards) for step, rewards in ((0, before), (20, after)))
    assert found(ask("reward_hacking", dataclasses.replace(evidence, answered=answered)))[0] == "alarm"
    same = (answered[0], dataclasses.replace(answered[0], step=20))
    assert ask("reward_hacking", dataclasses.replace(evidence, answered=same)) is None


LOSS = Measure("loss", "Held-out loss", "number", "lower", headline=True)
RIGHT = Measure("accuracy", "Right answers", headline=True)


def against_base(measure: Measure, change: tuple[float, float, float], task: str) -> tuple[Measured, ...]:
    """One measurement of the model beside its base."""
    told = TaskRecord(
        key="k", task=task, title="t", area="reasoning", source=Source(None, None, 100), models=("base", "grpo"),
        baseline="base", confidence=0.95, resamples=100, measures=(measure,), results=(),
        differences=(Difference("base", "grpo", measure.key, *change, 100),),
    )  # fmt: skip
    return (Measured(facts_of("evaluate", told), "general"),)


def test_a_benchmark_or_the_likelihood_falls_against_the_baseline() -> None:
    def told(measure: Measure, change: tuple[float, float, float], task: str) -> Outcome:
        return ask("reward_hacking", dataclasses.replace(seen(), measured=against_base(measure, change, task)))

    assert found(told(RIGHT, (-0.2, -0.3, -0.1), "gsm8k")) == ("alarm", "one_score")
    assert told(RIGHT, (-0.2, -0.5, 0.1), "gsm8k") is None, "that is not shown"
    assert found(told(LOSS, (0.3, 0.2, 0.4), "likelihood"))[0] == "remark", (
        "another way to write is not always a worse one"
    )


def test_without_another_judgement_it_cannot_be_told_but_for_what_replies_became() -> None:
    assert ask("reward_hacking", seen()) == Unknown("other_judgement")
    shorter = jitter([30.0 - 1.3 * n for n in range(STEPS)], 0.5)
    assert found(ask("reward_hacking", seen(length=shorter))) == ("remark", "one_score")
    assert ask("reward_hacking", seen(length=jitter([30.0 - 0.8 * n for n in range(STEPS)], 0.5))) == Unknown(
        "other_judgement"
    )
    good = against_base(RIGHT, (0.2, 0.1, 0.3), "gsm8k")
    assert ask("reward_hacking", dataclasses.replace(seen(length=shorter), measured=good)) is None


# ---- collapse --------------------------------------------------------------------------------------------------------


def test_a_reward_that_falls_back_to_its_start() -> None:
    hurried = {"passes": 3, "learning_rate": 3e-4}
    outcome = ask("collapse", seen(OnlineDpo(beta=0.05), hurried, reward=jitter(THERE_AND_BACK)))
    assert found(outcome) == ("alarm", "rate_high")
    assert changes(outcome) == ["grpo.learning_rate=5e-06", "grpo.passes=1", "grpo.method.beta=0.15"]
    half = [*[0.1] * 4, *[0.8] * 6, *[0.4] * 10]
    assert found(ask("collapse", seen(reward=jitter(half))))[0] == "remark"
    dip = [*[0.1] * 4, *[0.8] * 6, *[0.7] * 10]
    assert ask("collapse", seen(reward=jitter(dip))) is None
    assert found(ask("collapse", seen(OnlineDpo(labels="hard"), reward=jitter(THERE_AND_BACK))))[1] == "hard_labels"


@pytest.mark.parametrize("key", ["distinct_2", "entropy"])
def test_replies_that_become_one(key: str) -> None:
    fading = jitter([0.9 - 0.045 * n for n in range(STEPS)], 0.005)
    alike = {key: fading}
    assert found(ask("collapse", seen(reward=jitter(FLAT), **alike)))[0] == "alarm"
    assert found(ask("collapse", seen(**alike)))[0] == "remark", "it knows what it is to say"
    several = ask("collapse", seen(settings={"passes": 2}, reward=jitter(FLAT), **alike))
    assert "grpo.method.clip_high=0.28" in changes(several)
    raised = ask("collapse", seen(Dapo(), {"passes": 2}, reward=jitter(FLAT), **alike))
    assert "grpo.method.clip_high=0.28" not in changes(raised)


def test_rewards_that_become_equal_and_are_not_high() -> None:
    gone = {"reward__deviation": [0.4] * 8 + [0.0] * 12, "groups__equal": [0.1] * 8 + [1.0] * 12}
    assert found(ask("collapse", seen(reward=jitter([0.3] * 8 + [0.0] * 12, 0.005), **gone)))[0] == "alarm"
    assert ask("collapse", seen(reward=jitter([0.85] * 8 + [1.0] * 12, 0.005), **gone)) is None, "solved"


def test_a_reward_that_is_a_share_of_wins_says_nothing_by_itself() -> None:
    """Its mean is one half whatever is learned, up to rounding."""
    halves = [0.5 + 1e-16 * (n % 5) for n in range(STEPS)]
    wins = seen(settings={"scores": ({"name": "pairwise"},)}, reward=halves)
    assert everything(wins) == {}
    assert ask("reward_hacking", wins) == Unknown("held_out")


# ---- KL --------------------------------------------------------------------------------------------------------------


def test_a_policy_that_goes_on_without_a_higher_reward() -> None:
    away = [0.1 * n for n in range(STEPS)]
    settled = jitter([*[0.1] * 4, *[0.6] * 16])
    outcome = ask("kl_runaway", seen(reward=settled, kl=away))
    assert found(outcome) == ("alarm", "rate_high")
    assert isinstance(outcome, Finding)
    assert outcome.numbers["far"] == pytest.approx(1.8 * 20, rel=0.02), "nats a token times tokens"
    assert ask("kl_runaway", seen(kl=away)) is None, "it bought reward"
    assert ask("kl_runaway", seen(reward=settled, kl=[0.4 * x for x in away[::2]] + [0.4] * 10)) is None, (
        "under ten nats"
    )
    assert ask("kl_runaway", seen(reward=settled, kl=[0.1] * 4 + [1.0] * 16)) is None, "it came to rest"
    loose = ask("kl_runaway", seen(Rloo(beta=0.01), reward=settled, kl=away))
    assert changes(loose)[-1] == "grpo.method.beta=0.03"


def test_what_a_higher_kl_bought_is_asked_of_the_held_out_prompts_first() -> None:
    away = [0.1 * n for n in range(STEPS)]
    wins = ({"name": "pairwise"},)
    flat = seen(settings={"scores": wins}, reward=[0.5] * STEPS, kl=away)
    assert ask("kl_runaway", flat) == Unknown("evaluations"), "for one that wins there is one that loses"

    def told(*means: float) -> Outcome:
        answered = tuple(
            Answered(step=10 * n, rewards={str(row): mean + 0.2 * (row % 2) for row in range(40)})
            for n, mean in enumerate(means)
        )
        return ask("kl_runaway", dataclasses.replace(flat, answered=answered))

    assert found(told(0.5, 0.7, 0.7)) == ("alarm", "rate_high")
    assert told(0.5, 0.6, 0.7) is None


# ---- no signal -------------------------------------------------------------------------------------------------------


def test_groups_that_say_nothing_and_the_batch_that_is_left() -> None:
    outcome = ask("no_signal", seen(reward=jitter(FLAT), groups__equal=[0.9] * STEPS))
    assert found(outcome) == ("alarm", "too_hard")
    assert isinstance(outcome, Finding)
    assert outcome.numbers["real"] == pytest.approx(0.8), "of 8 prompts"
    assert "grpo.replies=16" in changes(outcome)
    assert found(ask("no_signal", seen(reward=jitter(FLAT), groups__equal=[0.6] * STEPS))) == ("remark", "few_replies")
    assert ask("no_signal", seen(groups__equal=[0.4] * STEPS)) is None


def test_why_there_is_no_signal() -> None:
    silent: dict[str, Any] = {"reward": FLAT, "groups__equal": [1.0] * STEPS}
    assert found(ask("no_signal", seen(**silent, reward__deviation=[0.0] * STEPS))) == ("alarm", "constant_score")
    cut = ask("no_signal", seen(**silent, replies__cut=[0.9] * STEPS))
    assert found(cut) == ("alarm", "limit_decides")
    assert changes(cut)[0] == "grpo.max_new_tokens=80"
    solved = seen(reward=jitter(RISING), groups__equal=[0.8] * 4 + [1.0] * 16)
    assert found(ask("no_signal", solved)) == ("remark", "solved")


def test_with_a_value_head_a_step_is_silent_and_not_a_group() -> None:
    constant = seen(Ppo(), {"replies": 1}, reward=FLAT, groups__equal=[1.0] * STEPS, reward__deviation=[0.0] * STEPS)
    assert found(ask("no_signal", constant)) == ("alarm", "constant_score")


# ---- rules of every training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "rate", "outcome"),
    [
        (Grpo(), 1e-5, None),
        (Grpo(), 3e-4, ("remark", "rate_high")),
        (Grpo(), 1e-7, ("remark", "rate_low")),
        (OnlineDpo(), 5e-6, None),
        (OnlineDpo(), 2e-4, ("remark", "rate_high")),
    ],
)
def test_the_range_of_rates_is_the_methods(method: BaseObjective, rate: float, outcome: Any) -> None:
    told = ask("rate_range", seen(method, {"learning_rate": rate}))
    assert (told if told is None else found(told)) == outcome


def test_the_methods_own_rates_are_in_their_ranges() -> None:
    for method in (Grpo(), Rloo(), Ppo(), OnlineDpo()):
        assert ask("rate_range", seen(method, {"learning_rate": method.default_learning_rate})) is None


def test_numbers_that_are_none_are_the_rates_affair_and_a_failed_score_is_not() -> None:
    def told(error: str) -> Outcome:
        evidence = seen()
        manifest = Manifest("online", "failed", evidence.config, error=error)
        stage = dataclasses.replace(evidence.training.stage, manifest=manifest)
        return ask(
            "failed", dataclasses.replace(evidence, training=dataclasses.replace(evidence.training, stage=stage))
        )

    assert found(told("the model computed NaN or infinity in a reply to r1")) == ("alarm", "rate_high")
    assert found(told("no reply of step 1 could be scored; the first: judge: no answer")) == ("alarm", "error_says")


def test_prompts_that_are_dropped_and_prompts_that_are_not_held_out() -> None:
    evidence = seen()
    assert evidence.training.stage.ledger is not None
    evidence.training.stage.ledger.steps[:] = [LedgerStep("encode", 100, 70, dropped={"too_long": 30})]
    assert changes(ask("rows_dropped", evidence)) == ["grpo.max_prompt_tokens=1024"]
    bare = dataclasses.replace(seen().training, held_out=())
    assert changes(ask("no_held_out", TrainEvidence(bare))) == ["prompts.held_out=0.1"]
    task = dataclasses.replace(
        seen(settings={"data": None, "scores": ({"name": "task", "task": {}},)}).training, held_out=()
    )
    assert changes(ask("no_held_out", TrainEvidence(task))) == ["grpo.scores.0.held_out=0.2"]


# ---- reading, and all of them ----------------------------------------------------------------------------------------


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    evidence = seen(reward=jitter(THERE_AND_BACK))
    folder = StageDir(tmp_path / "grpo")
    lines = [
        {"split": "train", "step": one.step, "loss": one.loss, "grad_norm": 1.0, **one.metrics}
        for one in evidence.training.steps
    ]
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {**evidence.config, "method": {"name": "grpo"}}
    stage = Stage("grpo", "online", "running", Manifest("online", "running", config), None, folder)
    told = diagnose([stage])
    assert [one.rule for one, _ in told.alarms] == ["collapse"]
    assert not told.gaps


def test_where_a_course_is_looked_at() -> None:
    one = logged(seen(reward=[float(n) for n in range(STEPS)]).training, "reward")
    assert one is not None
    assert (one.first, one.last, one.window) == (1.0, 18.0, 3)
    assert [one.at(step) for step in (1, 3, 4, 20)] == [1.0, 1.0, 2.0, 18.0]


NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)
KEYS = ("reward", "reward/checks", "reward/length", "reward/deviation", "length", "kl", "groups/equal", "replies/cut")
METRICS = st.dictionaries(st.sampled_from([*KEYS, "distinct_2", "entropy"]), NUMBERS)
LOGGED = st.builds(StepRecord, step=st.integers(1, 99), loss=NUMBERS, grad_norm=st.none() | NUMBERS, metrics=METRICS)
JUNK = st.none() | NUMBERS | st.text(max_size=3) | st.just(TWO)
SETTINGS = st.dictionaries(
    st.sampled_from(
        ["scores", "prompts", "replies", "passes", "minibatches", "max_new_tokens", "data", "learning_rate"]
    ),
    JUNK,
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinite numbers
@given(st.lists(LOGGED, min_size=8, max_size=30), SETTINGS, st.sampled_from([Grpo(), Ppo(), OnlineDpo(labels="hard")]))
def test_no_rule_breaks_on_any_record(steps: Any, settings: Any, method: BaseObjective) -> None:
    evidence = seen(method, settings)
    everything(dataclasses.replace(evidence, training=dataclasses.replace(evidence.training, steps=tuple(steps))))
