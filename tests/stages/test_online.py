"""The stage ``online`` from its recipe to its section, and what a user is told of recipes that can't work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import Outcome, tiny_llama
from posttrain.errors import ConfigError
from posttrain.model.lineage import stage_lineage
from posttrain.model.targets import resolve_target
from posttrain.online.scores import ChecksScore, FunctionScore, LengthScore, Missing, Written, open_scores
from posttrain.tasks.checks import Check
from posttrain.types import Message

Cli = Callable[..., Outcome]
pytestmark = pytest.mark.demo_model

PAIRS_JUDGE = {"judges": [{"endpoint": "http://127.0.0.1:9/v1", "model": "j"}]}
LETTERS = "def score(prompt, reply, meta):\n    return sum(c in 'aeiou' for c in reply) / max(1, len(reply))\n"


def recipe(folder: Path, model: Path, **online: Any) -> Path:
    """A recipe over 24 prompts that scores by a function of a file."""
    (folder / "letters.py").write_text(LETTERS)
    rows = [{"prompt": f"What is {n}?", "completion": "I do not know."} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage: dict[str, Any] = {
        "kind": "online",
        "data": "prompts",
        "scores": [{"name": "function", "path": "letters.py"}, {"name": "length", "words": 5, "weight": 0.01}],
        "cut_replies": "score",
        "steps": 3,
        "prompts": 2,
        "replies": 3,
        "max_new_tokens": 6,
        "dtype": "fp32",
        "device": "cpu",
    }
    stage = {key: value for key, value in (stage | online).items() if value is not None}
    stages = {
        "prompts": {"kind": "data", "sources": [{"path": "rows.jsonl"}], "rows": "prompts", "held_out": 6},
        "own": stage,
        "report": {"kind": "report"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "r", "model": str(model), "stages": stages}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def run(cli: Cli, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the whole recipe."""
    folder = tmp_path_factory.mktemp("online")
    done = cli("run", recipe(folder, tiny_model), "--runs", folder / "runs")
    assert done.code == 0, done.err
    return folder / "runs" / "r"


def test_what_it_writes(run: Path) -> None:
    manifest = json.loads((run / "own" / "manifest.json").read_text())
    result = manifest["result"]
    assert (result["steps"], result["updates"], result["replies"], result["missing"]) == (3, 3, 18, 0)
    assert result["held_out_rows"] == 6
    difference = result["held_out_difference"]
    assert difference[0] == pytest.approx(result["held_out_after"] - result["held_out_before"])
    ledger = json.loads((run / "own" / "ledger.json").read_text())
    assert (ledger["rows_in"], ledger["rows_kept"]) == (18, 18)
    lines = [json.loads(line) for line in (run / "own" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines] == [
        ("held_out", 0),
        *(("train", step) for step in (1, 2, 3)),
        ("held_out", 3),
    ]
    one = lines[1]
    assert one["reward"] == pytest.approx(one["reward/function"] + 0.01 * one["reward/length"])
    samples = [json.loads(line) for line in (run / "own" / "samples.jsonl").read_text().splitlines()]
    assert [len(measured["samples"]) for measured in samples] == [6, 6]


def test_it_gives_a_model(run: Path, tiny_model: Path) -> None:
    from posttrain.artifacts import StageDir

    lineage = stage_lineage(StageDir(run / "own"), lambda: tiny_model)
    assert lineage.adapter == run / "own" / "adapter"
    assert resolve_target(str(run / "own")).adapter == lineage.adapter
    assert lineage.template.tokenizer is not None


def test_the_report_shows_it(run: Path) -> None:
    page = (run / "report" / "report.md").read_text()
    assert "Learning from its own replies: own" in page
    assert "RLOO" in page
    assert "Held-out reward" in page
    html = (run / "report" / "index.html").read_text()
    sample = json.loads((run / "own" / "samples.jsonl").read_text().splitlines()[-1])["samples"][0]
    assert sample["prompt"] in html, "the prompts with their replies over time"
    assert "step 3" in html


def test_a_finished_one_is_not_run_again(run: Path, cli: Cli) -> None:
    before = (run / "own" / "manifest.json").read_bytes()
    assert cli("run", run.parent.parent / "recipe.yaml", "--runs", run.parent).code == 0
    assert (run / "own" / "manifest.json").read_bytes() == before


def test_a_changed_function_is_another_stage(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model, steps=1)
    assert cli("run", path, "--runs", tmp_path / "runs").code == 0
    (tmp_path / "letters.py").write_text(LETTERS.replace("aeiou", "xyz"))
    said = cli("run", path, "--runs", tmp_path / "runs")
    assert said.code == 0
    assert "own (online) running" in said.out


def test_a_benchmark_scores_the_replies_to_its_own_prompts(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = {"name": "task", "task": {"name": "gsm8k", "path": "train.jsonl"}, "measure": "answered"}
    path = recipe(tmp_path, tiny_model, data=None, scores=[score], steps=1)
    done = cli("run", path, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "runs" / "r" / "own" / "manifest.json").read_text())["result"]
    assert result["held_out_rows"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replies": 1}, "a group of one reply"),
        ({"data": None}, "whose prompts are answered"),
        ({"method": {"name": "grpo", "clip_low": -0.1}}, "clip_low"),
        ({"method": {"name": "rloo", "beta": -1}}, "beta"),
        ({"method": {"name": "online_dpo", "beta": 0}}, "beta"),
        ({"method": {"name": "ppoo"}}, "ppoo"),
        ({"temperature": 0}, "temperature"),
        ({"minibatches": 3}, "minibatches"),
        ({"scores": []}, "scores"),
        ({"scores": [{"name": "length"}], "cut_replies": 0.0}, "cut reply would be the best"),
        ({"scores": [{"name": "checks", "checks": [{"kind": "max_wordz", "expected": 3}]}]}, "max_words"),
        ({"scores": [{"name": "task", "task": {"name": "gsm8k", "path": "rows.jsonl"}}]}, "prompts of its own"),
        (
            {
                "data": None,
                "scores": [{"name": "task", "task": {"name": "alpaca_eval", "path": "rows.jsonl"}}],
            },
            "alpaca_eval",
        ),
        ({"scores": [{"name": "function", "path": "nothing.py"}]}, "nothing.py"),
        ({"scores": [{"name": "function", "path": "letters.py", "function": "other"}]}, "other"),
        ({"max_prompt_tokens": 3}, "no prompt is left"),
        (
            {"scores": [{"name": "pairwise", "judge": PAIRS_JUDGE}], "method": {"name": "ppo"}, "replies": 1},
            "nothing to be compared with",
        ),
        ({"scores": [{"name": "pairwise", "judge": PAIRS_JUDGE, "opponents": 3}]}, "opponents"),
    ],
)
def test_what_cannot_work_is_one_error(
    changes: dict[str, Any], words: str, cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    said = cli("run", recipe(tmp_path, tiny_model, **changes), "--runs", tmp_path / "runs").refused()
    assert words in said


@pytest.mark.parametrize("body", ["raise ValueError('no')", "return float('nan')", "return None", "return 'good'"])
def test_a_score_that_never_scores_is_one_error(body: str, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model)
    (tmp_path / "letters.py").write_text(f"def score(prompt, reply, meta):\n    {body}\n")
    said = cli("run", path, "--runs", tmp_path / "runs").refused()
    assert "could be scored" in said


def test_a_file_that_cannot_be_loaded_is_told(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model)
    (tmp_path / "letters.py").write_text("import no_such_module\n")
    assert "no_such_module" in cli("run", path, "--runs", tmp_path / "runs").refused()


# ---- scores --------------------------------------------------------------------------------------------------------


def written(reply: str) -> Written:
    return Written((Message("user", "Well?"),), reply, {"answer": 3})


def test_scores_are_weighed_and_added_and_told_apart(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("def score(prompt, reply, meta):\n    return meta['answer'] if prompt else None\n")
    scorer = open_scores(
        [
            LengthScore(name="length", words=2, weight=0.5),
            ChecksScore(name="checks", checks=(Check(kind="max_words", expected=3),)),
            LengthScore(name="length", words=4),
            FunctionScore(name="function", path=str(tmp_path / "s.py"), weight=2.0),
        ]
    )
    (worth,) = scorer([written("one two three")])
    assert worth.parts == {"length": -1.0, "checks": 1.0, "length_2": -1.0, "function": 3.0}
    assert worth.reward == pytest.approx(-0.5 + 1 - 1 + 6)


def test_a_missing_part_makes_the_reply_missing(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("def score(prompt, reply, meta):\n    return 1 / len(reply)\n")
    scorer = open_scores([LengthScore(name="length"), FunctionScore(name="function", path=str(tmp_path / "s.py"))])
    good, bad = scorer([written("ab"), written("")])
    assert good.reward == -0.5
    assert bad.reward == Missing("function: ZeroDivisionError: division by zero")
    assert bad.parts == {"length": 0.0}


def test_a_wrong_check_is_told_before_anything_runs() -> None:
    with pytest.raises(ConfigError):
        open_scores([ChecksScore(name="checks", checks=(Check(kind="max_words", expected="many"),))])


# ---- models as scores ----------------------------------------------------------------------------------------------


def rating(body: dict[str, Any]) -> dict[str, Any]:
    """The server's model: the longer the answer, the better, from 1 to 10."""
    text = body["messages"][-1]["content"]
    length = len(text.split("<answer>")[1].split("</answer>")[0].strip()) if "<answer>" in text else len(text)
    said = f"Looked.\n[[{1 + length % 10}]]"
    return {
        "choices": [{"message": {"content": said}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 4},
    }


def test_a_judge_rates_the_replies_and_is_not_asked_twice(
    cli: Cli, serve: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    server = serve(bodies=rating)
    judge = {"judges": [{"endpoint": server.url, "model": "j"}]}
    path = recipe(tmp_path, tiny_model, scores=[{"name": "judge", "judge": judge, "weight": 0.1}], steps=2)
    done = cli("run", path, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    out = tmp_path / "runs" / "r" / "own"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(1 <= line["reward/judge"] <= 10 for line in lines)
    assert all(line["reward"] == pytest.approx(0.1 * line["reward/judge"]) for line in lines)
    asked = len(server.asked)
    (out / "manifest.json").unlink()
    assert cli("run", path, "--runs", tmp_path / "runs").code == 0
    assert len(server.asked) == asked, "what was judged is in the run's cache"


def test_a_judge_that_never_answers_is_one_error(
    cli: Cli, serve: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    server = serve(does=lambda name, attempt: "400")
    judge = {"judges": [{"endpoint": server.url, "model": "j"}]}
    path = recipe(tmp_path, tiny_model, scores=[{"name": "judge", "judge": judge}])
    assert server.url in cli("run", path, "--runs", tmp_path / "runs").refused()


def shorter(body: dict[str, Any]) -> dict[str, Any]:
    """The server's model: the shorter of two answers, the first where they are as long."""
    text = body["messages"][-1]["content"]
    first, second = (text.split(f"<answer_{x}>")[1].split(f"</answer_{x}>")[0] for x in "ab")
    said = "[[A]]" if len(first) <= len(second) else "[[B]]"
    return rating(body) | {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}


def test_a_judge_on_a_server_compares_the_replies_to_a_prompt_in_both_orders(
    cli: Cli, serve: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    """Some questions come to nothing: they count for neither reply, and are counted."""
    server = serve(bodies=shorter, does=lambda name, attempt: "400" if len(name) % 3 == 0 else "answer")
    judge = {"judges": [{"endpoint": server.url, "model": "j"}], "check": False}
    path = recipe(tmp_path, tiny_model, scores=[{"name": "pairwise", "judge": judge}], steps=2)
    done = cli("run", path, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "runs" / "r" / "own" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["reward"] == 0.5, "before training every reply is compared with itself"
    assert len(server.asked) % 2 == 0
    assert any(0 < line["pairwise/unread"] <= 1 for line in lines if line["split"] == "train")
    assert "have no verdict" in (tmp_path / "runs" / "r" / "report" / "report.md").read_text()


def reward_recipe(folder: Path, model: Path, score: dict[str, Any], **online: Any) -> Path:
    """A recipe that trains a reward model, ``judge``, and learns from a score."""
    path = recipe(folder, model, scores=[{"name": "reward_model", **score}], steps=2, **online)
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    written = yaml.safe_load(path.read_text())
    reward = {"kind": "train", "data": "pairs", "objective": {"name": "reward"}, "max_steps": 2, "batch_size": 4}
    written["stages"] = {
        "pairs": {"kind": "data", "sources": [{"path": "pairs.jsonl"}], "rows": "pairs", "held_out": 2},
        "judge": reward | {"dtype": "fp32", "device": "cpu", "learning_rate": 0.01},
        **written["stages"],
    }
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def reward_run(cli: Cli, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a reward model, and of a policy that learns from it."""
    folder = tmp_path_factory.mktemp("reward")
    path = reward_recipe(
        folder, tiny_model, {"model": "judge"}, method={"name": "ppo"}, adapter={"name": "lora", "rank": 4}
    )
    done = cli("run", path, "--runs", folder / "runs")
    assert done.code == 0, done.err
    assert "second model" not in done.out + done.err
    return folder / "runs" / "r"


def rewards_alone(reward: Path, out: Path) -> tuple[list[float], list[float]]:
    """(what a stage logged of its first held-out replies, what the reward model as a model of its own says of the same texts)."""
    from posttrain.judge.config import JudgeSource
    from posttrain.judge.reward import open_reward_judge
    from posttrain.model.adapters import saved_model
    from posttrain.model.forward import score_head
    from posttrain.types import Origin, SftRow

    samples = json.loads((out / "samples.jsonl").read_text().splitlines()[0])["samples"]
    target = resolve_target(str(reward))
    model = saved_model(target.folder, target.adapter, torch.float32, torch.device("cpu"), head="score")
    judge = open_reward_judge(JudgeSource(reward=str(reward)))
    judge = replace(judge, model=model, head=score_head(model), dtype=torch.float32)
    turns = [(Message("user", s["prompt"]), Message("assistant", s["reply"])) for s in samples]
    found = judge.rewards([SftRow(two, Origin("x", 1), "x") for two in turns])
    return [s["reward"] for s in samples], [float(reward) for reward in found if isinstance(reward, float)]


def test_a_reward_model_of_the_recipe_is_an_adapter_on_the_policys_base(
    reward_run: Path,
) -> None:
    """It says what it says as a model of its own."""
    logged, alone = rewards_alone(reward_run / "judge", reward_run / "own")
    assert len({*logged}) > 1
    assert logged == pytest.approx(alone, abs=1e-5)


def test_a_reward_model_of_another_base_is_a_second_model(
    reward_run: Path, cli: Cli, demo_model: Path, tmp_path: Path
) -> None:
    """It reads the text by a tokenizer and a template of its own."""
    other = spoken_otherwise(tiny_llama(tmp_path / "other", demo_model, seed=7))
    path = recipe(tmp_path, other, scores=[{"name": "reward_model", "model": str(reward_run / "judge")}], steps=1)
    done = cli("run", path, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    assert "a second model in memory" in " ".join((done.out + done.err).split())
    logged, alone = rewards_alone(reward_run / "judge", tmp_path / "runs" / "r" / "own")
    assert logged == pytest.approx(alone, abs=1e-5)


def spoken_otherwise(folder: Path) -> Path:
    """The model with other numbers for its tokens, and another chat template."""
    written = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, special = written["model"]["vocab"], len(written["added_tokens"])
    last = special + len(vocabulary) - 1
    written["model"]["vocab"] = {token: n if n < special else last - n for token, n in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(written))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("You are a helpful AI assistant named SmolLM", "Be brief"))
    return folder


def test_a_folder_that_is_no_reward_model_is_refused_before_anything_runs(
    cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, tiny_model, scores=[{"name": "reward_model", "model": str(tiny_model)}])
    assert "no reward model" in cli("run", path, "--runs", tmp_path / "runs").refused()
    assert not list((tmp_path / "runs").glob("r/*/manifest.json"))


def test_a_stage_that_is_no_reward_model_is_refused(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model, scores=[{"name": "reward_model", "model": "prompts"}])
    assert "prompts" in cli("run", path, "--runs", tmp_path / "runs").refused()
