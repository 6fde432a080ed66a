"""The loop over replies of one's own, on a model of milliseconds a step."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from own_replies import END, drawing_of, make_settings, number_prompts, small_ids
from posttrain.errors import TrainingError
from posttrain.model.adapters import frozen_model
from posttrain.model.score import sequence_logps
from posttrain.objectives.online_dpo import OnlineDpo
from posttrain.objectives.policy_gradient import Dapo, DrGrpo, Grpo, Gspo, PolicyGradient, Ppo, Rloo
from posttrain.online import loop, rollout
from posttrain.online.prompts import step_prompts
from posttrain.online.scores import Written, scorer_of
from posttrain.online.units import Group, Pair

Run = Callable[..., dict[str, Any]]
GRADIENTS: list[PolicyGradient] = [
    Rloo(),
    Grpo(),
    DrGrpo(),
    Dapo(),
    Gspo(),
    Rloo(kl="k2", kl_in="loss"),
    Ppo(value_warmup=0),
]
METHODS = [*GRADIENTS, OnlineDpo(), OnlineDpo(labels="drawn")]
EVERY_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name} {m.settings_text}")
TIMES = ("seconds", "tokens_per_second", "flops_per_second", "memory_bytes", "seconds/sampling", "seconds/learning")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def records(out: Path, split: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines if line["split"] == split]


def weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(out / "adapter" / "adapter_model.safetensors")
    return found


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def distance(a: Path, b: Path) -> float:
    ours, theirs = weights(a), weights(b)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


# ---- sampling ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(small_model: Path) -> torch.nn.Module:
    return frozen_model(small_model, None, torch.float32, torch.device("cpu"))


def draw(model: torch.nn.Module, prompts: Sequence[Any], **changes: Any) -> list[rollout.Reply]:
    settings = make_settings(**changes)
    return rollout.sample(model, prompts, settings.replies, drawing_of(settings), 7, 3)


def test_a_reply_does_not_depend_on_its_neighbours(model: torch.nn.Module) -> None:
    prompts = number_prompts(5)
    straight = {(r.prompt.row_id, n % 3): r.ids_T.tolist() for n, r in enumerate(draw(model, prompts))}
    turned = {(r.prompt.row_id, n % 3): r.ids_T.tolist() for n, r in enumerate(draw(model, prompts[::-1]))}
    assert straight == turned
    assert len({tuple(ids) for ids in straight.values()}) > 12, "replies differ"


def test_what_was_sampled_is_supervised_with_its_end_and_nothing_else(model: torch.nn.Module) -> None:
    """The end token also stands in prompts, and is what others pad with: masks come from lengths."""
    replies = draw(model, number_prompts(40), max_new_tokens=30)
    ended = [reply for reply in replies if not reply.cut]
    assert ended
    assert any(reply.cut for reply in replies)
    for reply in replies:
        tokens, begin = reply.tokens, len(reply.prompt.ids_T)
        assert tokens.ids_T[begin:].tolist() == reply.ids_T.tolist()
        assert tokens.weights_T.tolist() == [0.0] * begin + [1.0] * len(reply.ids_T)
        assert (reply.ids_T[-1] == END) != reply.cut
        assert END not in reply.ids_T[:-1]
        assert reply.cut == (len(reply.ids_T) == 30 and reply.ids_T[-1] != END)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_log_probabilities_are_those_of_the_law_that_was_sampled(
    model: torch.nn.Module, small_model: Path, temperature: float
) -> None:
    (reply, *_) = draw(model, number_prompts(1), temperature=temperature)
    (found,) = sequence_logps(model, [[reply.tokens]], 100, torch.float32, temperature=temperature)
    ids = torch.from_numpy(reply.tokens.ids_T.astype(np.int64))
    with torch.no_grad():
        logits = (
            LlamaForCausalLM.from_pretrained(small_model)(input_ids=ids[None])
            .logits[0, len(reply.prompt.ids_T) - 1 : -1]
            .double()
        )
    wanted = (logits / temperature).log_softmax(-1).gather(1, ids[len(reply.prompt.ids_T) :, None])[:, 0]
    assert np.abs(found - wanted.numpy()).max() < 1e-4
    assert reply.sampler_logps_T is not None
    own = logits.log_softmax(-1).gather(1, ids[len(reply.prompt.ids_T) :, None])[:, 0]
    assert np.abs(reply.sampler_logps_T - own.numpy()).max() < 1e-4


def test_the_prompts_of_a_step_are_a_function_of_seed_and_step() -> None:
    steps = [step_prompts(7, step, 3, 5) for step in range(7)]
    assert {place for step in steps[:3] for place in step} == set(range(7)), "all, before one comes again"
    assert steps == [step_prompts(7, step, 3, 5) for step in range(7)]
    assert steps != [step_prompts(7, step, 3, 6) for step in range(7)]
    assert step_prompts(2, 0, 8, 5) in ([0, 1], [1, 0]), "never twice in a step"


# ---- a step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "passes", "minibatches"),
    [(Rloo(), 1, 1), (Ppo(value_warmup=0), 1, 1), *((method, 2, 3) for method in GRADIENTS)],
    ids=lambda given: f"{given.name} {given.settings_text}" if isinstance(given, PolicyGradient) else str(given),
)
def test_before_the_first_update_every_ratio_is_exactly_1(
    method: PolicyGradient, passes: int, minibatches: int, online: Run, tmp_path: Path
) -> None:
    online(tmp_path, method=method, passes=passes, minibatches=minibatches, steps=2, temperature=0.8)
    steps = records(tmp_path)
    assert [step["ratio/first"] for step in steps if "ratio/first" in step] == [0.0] * len(steps)
    assert all(step["sampler/k3"] < 1e-9 for step in steps)
    assert abs(steps[0]["kl"]) < 1e-9
    if passes > 1:
        assert all(step["ratio/kl"] > 0 for step in steps), "later updates are not on the law that was sampled"


@pytest.mark.parametrize("method", [Rloo(), Grpo(), Ppo(value_warmup=0)], ids=lambda m: m.name)
def test_that_is_so_in_bf16_too(method: PolicyGradient, online: Run, tmp_path: Path) -> None:
    """There the sampler's own log-probabilities are other ones, and are not trained on."""
    online(tmp_path, method=method, passes=2, minibatches=2, dtype="bf16", largest_gap=1.0)
    steps = records(tmp_path)
    assert [step["ratio/first"] for step in steps] == [0.0] * 3
    assert all(step["sampler/k3"] > 1e-6 for step in steps)


@EVERY_METHOD
def test_what_is_computed_together_is_memory_only(method: Any, online: Run, tmp_path: Path) -> None:
    for name, budget in (("small", 1), ("large", 10_000)):
        online(tmp_path / name, method=method, steps=2, micro_batch_tokens=budget, learning_rate=1e-3, held_out=0)
    assert distance(tmp_path / "small", tmp_path / "large") < 2e-5
    assert records(tmp_path / "small")[0]["computed_tokens"] == records(tmp_path / "large")[0]["computed_tokens"]


def test_the_ids_that_were_sampled_are_the_ids_that_are_learned(
    online: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: set[tuple[int, ...]] = set()
    learned: set[tuple[int, ...]] = set()
    decode, step = rollout.decode, loop.optimizer_step

    def watched_decode(model: Any, prompts: Any, *rest: Any) -> Iterator[Any]:
        said: dict[int, list[int]] = {}
        for new in decode(model, prompts, *rest):
            said.setdefault(new.prompt, []).append(new.token)
            yield new
        sampled.update((*prompts[place].tolist(), *ids) for place, ids in said.items())

    def watched_step(trainee: Any, optimizer: Any, task: Any, groups: Any, *rest: Any) -> Any:
        learned.update(tuple(s.ids_T.tolist()) for group in groups for unit in group for s in unit.sequences)
        return step(trainee, optimizer, task, groups, *rest)

    monkeypatch.setattr(rollout, "decode", watched_decode)
    monkeypatch.setattr(loop, "optimizer_step", watched_step)
    online(tmp_path, method=Rloo(), held_out=0)
    assert learned == sampled


def test_equal_scores_change_nothing(online: Run, tmp_path: Path) -> None:
    """Without a KL there is nothing to learn from, exactly; the user is told after some steps."""
    with pytest.warns(UserWarning, match=r"first 5 steps"):
        result = online(tmp_path, lambda one: 0.1, method=Grpo(), steps=5)
    assert all(bool((w == 0).all()) for name, w in weights(tmp_path).items() if "lora_B" in name)
    assert [step["groups/equal"] for step in records(tmp_path)] == [1.0] * 5
    assert result["held_out_difference"].estimate == 0.0


def test_the_reference_is_the_start(online: Run, small_model: Path, tmp_path: Path) -> None:
    """Adapter off where the adapter is fresh; where one is gone on with, what it was. The KL is 0 before the first step either way."""
    online(tmp_path / "first", steps=4)
    from own_replies import number_prompts as prompts_of
    from posttrain.artifacts import StageDir

    settings, prompts = make_settings(steps=3), prompts_of(6)
    inputs = loop.OnlineInputs(
        small_model,
        prompts,
        drawing_of(settings),
        lambda policy: scorer_of({"own": small_ids}),
        (),
        tmp_path / "first" / "adapter",
    )
    loop.train_online(settings, inputs, StageDir(tmp_path / "second"), seed=1, digest="d")
    for name in ("first", "second"):
        steps = records(tmp_path / name)
        assert abs(steps[0]["kl"]) < 1e-9
        assert steps[-1]["kl"] > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "gain"),
    [
        (Grpo(), {}, 0.25),
        (
            Ppo(beta=0.0, value_learning_rate=1e-2, value_warmup=1),
            {"passes": 3, "steps": 16},
            0.1,
        ),  # it learns two things
        (OnlineDpo(beta=0.02, label_temperature=0.1), {}, 0.25),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_it_learns(method: Any, options: dict[str, Any], gain: float, online: Run, tmp_path: Path) -> None:
    """A third of the numbers are small at the start; a reward for them makes more of them so, on prompts that were never trained on."""
    settings = {"steps": 25, "prompts": 6, "replies": 6, "learning_rate": 3e-2} | options
    result = online(tmp_path, method=method, **settings)
    assert result["first_reward"] < 0.45
    assert result["last_reward"] > result["first_reward"] + gain
    assert result["held_out_after"] > result["held_out_before"] + gain / 2


# ---- the value head ------------------------------------------------------------------------------------------------


def test_a_value_head_begins_at_zero_and_learns_what_is_to_come(online: Run, tmp_path: Path) -> None:
    """The reward is a constant here: the returns of every token are it, and a head that knows it leaves nothing to learn from."""
    method = Ppo(beta=0.0, value_learning_rate=3e-2, value_clip=10.0, value_warmup=12, whiten_advantages=False)
    online(tmp_path, lambda one: 0.7, method=method, steps=13, held_out=0, minibatches=3, max_grad_norm=None)
    steps = records(tmp_path)
    assert steps[0]["value/loss"] == pytest.approx(0.245, rel=0.5), "half of 0.7 squared, before it has learned"
    assert steps[-1]["value/loss"] < 0.01
    assert [step["grad_norm"] > 0 for step in steps] == [False] * 12 + [True]


def test_the_policy_is_the_start_while_only_the_value_head_learns(online: Run, tmp_path: Path) -> None:
    online(tmp_path, method=Ppo(value_warmup=3), steps=3)
    assert all(bool((w == 0).all()) for name, w in weights(tmp_path).items() if "lora_B" in name)
    assert all(abs(step["kl"]) < 1e-9 for step in records(tmp_path))


# ---- missing scores, cut replies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "method"),
    [("raises", Rloo()), ("none", OnlineDpo()), ("nan", Rloo()), ("infinite", OnlineDpo()), ("text", Rloo())],
    ids=lambda given: getattr(given, "name", given),
)
def test_a_reply_that_cannot_be_scored_is_missing_and_not_bad(
    bad: str, method: Any, online: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value(one: Written) -> Any:
        if int(one.reply.split()[0] if one.reply else 0) % 3:
            return small_ids(one)
        if bad == "raises":
            raise KeyError("no such answer")
        return {"none": None, "nan": math.nan, "infinite": math.inf, "text": "good"}[bad]

    units: list[Any] = []
    step = loop.optimizer_step

    def watched(trainee: Any, optimizer: Any, task: Any, groups: Any, *rest: Any) -> Any:
        units.extend(unit for group in groups for unit in group)
        return step(trainee, optimizer, task, groups, *rest)

    monkeypatch.setattr(loop, "optimizer_step", watched)
    result = online(tmp_path, value, method=method)
    steps = records(tmp_path)
    assert 0 < result["missing"] == sum(step["replies/missing"] for step in steps) < result["replies"]
    assert all(math.isfinite(step["reward"]) for step in steps)
    assert units
    for unit in units:
        assert isinstance(unit, Group | Pair)
        for sequence in unit.sequences:
            first = sequence.ids_T[sequence.weights_T > 0][0]
            assert first != END
            assert int(first) % 3, "a reply without a score is not learned from"


def test_nothing_scored_is_an_error_with_the_first_reason(online: Run, tmp_path: Path) -> None:
    def value(one: Written) -> float:
        raise ZeroDivisionError("three apples")

    with pytest.raises(TrainingError, match=r"own: ZeroDivisionError: three apples"):
        online(tmp_path, value, held_out=0)


def test_cut_replies_are_counted_and_count_as_the_setting_says(online: Run, tmp_path: Path) -> None:
    for name, cut_replies in (("score", "score"), ("number", -1.0)):
        online(tmp_path / name, lambda one: 1.0, cut_replies=cut_replies, steps=1, prompts=6, max_new_tokens=30)
    scored, numbered = (records(tmp_path / name)[0] for name in ("score", "number"))
    share = scored["replies/cut"]
    assert 0 < share == numbered["replies/cut"] < 1
    assert scored["reward"] == 1.0
    assert numbered["reward"] == pytest.approx(1 - 2 * share)
    assert numbered["reward/own"] == 1.0, "the parts say what was found"
    online(tmp_path / "drop", lambda one: 1.0, cut_replies="drop", steps=1, prompts=6, max_new_tokens=30)
    dropped = records(tmp_path / "drop")[0]
    assert dropped["replies/missing"] == round(share * dropped["replies"])


def test_all_replies_cut_and_dropped_is_an_error(online: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cut at the limit"):
        online(tmp_path, cut_replies="drop", max_new_tokens=1, held_out=0)


def test_a_sampler_of_another_model_is_refused(online: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies whose log-probabilities are not the trainer's: nothing is learned from them."""
    own = rollout._reply

    def shifted(*given: Any) -> rollout.Reply:
        reply = own(*given)
        if reply.sampler_logps_T is not None:
            object.__setattr__(reply, "sampler_logps_T", reply.sampler_logps_T + 0.5)
        return reply

    monkeypatch.setattr(rollout, "_reply", shifted)
    with pytest.raises(TrainingError, match="sampler and trainer"):
        online(tmp_path)


def test_weights_that_are_not_finite_are_an_error(online: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        online(tmp_path, learning_rate=1e30, steps=6, max_grad_norm=None)


# ---- going on ------------------------------------------------------------------------------------------------------


class Died(BaseException):
    """What stands for a kill in this process."""


GOES_ON: dict[str, Any] = {"steps": 3, "passes": 2, "minibatches": 2, "evaluate_every": 2, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def unbroken(online: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """The run of a method that nothing disturbs."""

    @cache
    def whole(method: Any) -> Path:
        out = tmp_path_factory.mktemp("whole")
        online(out, method=method, **GOES_ON)
        return out

    return whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "method"),
    [
        ("sampling", Rloo()),
        ("sampling", Ppo(value_warmup=1)),
        ("scoring", Dapo()),
        ("scoring", OnlineDpo(labels="drawn")),
        ("learning", Ppo(value_warmup=1)),
        ("learning", OnlineDpo(labels="drawn")),
    ],
    ids=lambda given: getattr(given, "name", given),
)
def test_going_on_gives_the_same_bits(
    where: str,
    method: Any,
    online: Run,
    unbroken: Callable[[Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, options = unbroken(method), GOES_ON | {"method": method}
    module, name = {"sampling": (rollout, "decode"), "scoring": (loop, "score"), "learning": (loop, "optimizer_step")}[
        where
    ]
    real, calls = getattr(module, name), 0

    def deadly(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (7 if where == "learning" else 4):
            raise Died
        return real(*given, **named)

    monkeypatch.setattr(module, name, deadly)
    with pytest.raises(Died):
        online(tmp_path / "cut", **options)
    assert len(records(tmp_path / "cut")) < 3
    online(tmp_path / "cut", **options)
    assert same(whole, tmp_path / "cut")
    for split in ("train", "held_out"):
        assert records(whole, split) == records(tmp_path / "cut", split)
    assert (whole / "samples.jsonl").read_bytes() == (tmp_path / "cut" / "samples.jsonl").read_bytes()
