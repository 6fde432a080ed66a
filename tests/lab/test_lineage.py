"""What a train stage hands on: along any chain of stages, every consumer computes with what was trained.

The oracle knows nothing of posttrain: plain transformers and PEFT load the folders a run has written, their tokenizer renders the
rows, and the reply is what stands behind the generation prompt.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import Outcome
from posttrain.artifacts import StageDir, read_json, write_json
from posttrain.encode.template import stopped_at
from posttrain.errors import ModelError
from posttrain.model import hardware
from posttrain.model.companions import Companions, end_ids
from posttrain.model.lineage import Lineage, stage_lineage, write_record
from posttrain.model.targets import resolve_target
from posttrain.report.live import Display
from posttrain.stages.eval import EvalStage
from posttrain.tasks.evaluation import evaluate
from posttrain.tasks.records import read_record
from posttrain.types import Message

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT's own affair
]

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '|\\n' + m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant|\\n' }}{% endif %}"
)
"""Another header than the model's own and another stop, token 0."""
WORDS = ("red", "green", "blue", "seven", "eight", "nine", "north", "south")
Command = Callable[..., Outcome]


def question(number: int) -> str:
    return f"What comes after {WORDS[number % 8]} and {WORDS[number // 8 % 8]}?"


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, cli: Command) -> Path:
    """full -> lora -> dpo (lora, goes on with the adapter) -> last (full); the template is given to the first stage only."""
    folder = tmp_path_factory.mktemp("lineage")
    talks = [
        {
            "messages": [
                {"role": "user", "content": question(n)},
                {"role": "assistant", "content": f"It is {WORDS[n % 8]}."},
            ]
        }
        for n in range(40)
    ]
    pairs = [
        {"prompt": question(n), "chosen": f"It is {WORDS[n % 8]}.", "rejected": f"Maybe {WORDS[(n + 3) % 8]}"}
        for n in range(20)
    ]
    for name, rows in (("talks", talks), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chat.jinja").write_text(TEMPLATE)
    (folder / "recipe.yaml").write_text(
        f"""
name: chain
model: {tiny_model}
stages:
  talks: {{kind: data, held_out: 8, sources: [{{path: talks.jsonl}}], profile: false}}
  pairs: {{kind: data, held_out: 8, sources: [{{path: pairs.jsonl}}], profile: false}}
  full: {{kind: train, data: talks, template: chat.jinja, adapter: {{name: full}}, learning_rate: 0.02, {FAST}}}
  lora: {{kind: train, data: talks, start_from: full, adapter: {{name: lora, rank: 4}}, learning_rate: 0.01, {FAST}}}
  dpo: {{kind: train, data: pairs, start_from: lora, objective: {{name: dpo}}, adapter: {{name: lora, rank: 4}}, learning_rate: 0.001, {FAST}}}
  last: {{kind: train, data: talks, start_from: dpo, adapter: {{name: full}}, learning_rate: 0.001, {FAST}}}
  likelihood: {{kind: eval, data: talks, models: [base, full, lora, dpo, last], prompts: null, resamples: 100, device: cpu}}
  preferences: {{kind: eval, data: pairs, models: [lora, dpo, base], prompts: null, resamples: 100, device: cpu}}
"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "matmul_flops", lambda dtype, device: 1.0)  # no type is faster: fp32
        ended = cli("run", folder / "recipe.yaml", "--runs", folder / "runs")
    assert ended.code == 0, ended.err
    return folder / "runs" / "chain"


FAST = "dtype: fp32, device: cpu, batch_size: 8, keep: last"


def plain(stage: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a stage's folder, by plain transformers and PEFT and what the folder itself says."""
    adapter = stage / "adapter"
    folder = adapter if adapter.is_dir() else stage / "model"
    kind = AutoPeftModelForCausalLM if adapter.is_dir() else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def plain_logps(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> torch.Tensor:
    """log p of every token of the reply, its stop included."""
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole.startswith(prompt)
    begin = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = tokenizer(whole.rstrip("\n"), add_special_tokens=False)["input_ids"]
    logps = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, torch.tensor(ids[1:])[:, None])[begin - 1 :, 0]


def held_out(run: Path, data: str) -> list[Any]:
    from posttrain.data.rows import read_pairs, read_rows

    return list({"talks": read_rows, "pairs": read_pairs}[data](run / data / "rows" / "held_out.parquet"))


def estimates(path: Path) -> dict[tuple[str, str], float]:
    """What a record says, by model and measure."""
    return {(one.model, one.measure): one.estimate for one in read_record(path).results if one.category is None}  # type: ignore[misc]


def talk(*turns: Any) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in turns]


@pytest.mark.demo_model
def test_the_evaluation_measures_what_was_trained(run: Path, tiny_model: Path) -> None:
    """Every model in its own template: the base in its own, the others in that of the first stage."""
    reported = estimates(run / "likelihood" / "likelihood.json")
    losses = {}
    for name in ("base", "full", "lora", "dpo", "last"):
        made = plain(run / name) if name != "base" else plain_base(tiny_model)
        parts = [plain_logps(*made, talk(*row.messages)) for row in held_out(run, "talks")]
        losses[name] = -float(torch.cat(parts).mean())
        assert reported[name, "loss"] == pytest.approx(losses[name], rel=1e-4), name
        assert reported[name, "tokens"] == sum(map(len, parts))
    assert losses["full"] < losses["base"] - 1  # it has learned something, so a mix-up would show
    assert abs(losses["lora"] - losses["full"]) > 1e-3
    assert abs(losses["dpo"] - losses["lora"]) > 1e-4


def plain_base(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.demo_model
def test_a_stage_goes_on_where_the_last_one_ended(run: Path) -> None:
    """The held-out loss before a stage's first step is that of the stage it starts from."""
    reported = estimates(run / "likelihood" / "likelihood.json")
    for name, before in (("lora", "full"), ("last", "dpo")):
        first = next(r for r in StageDir(run / name).metrics() if r["split"] == "held_out")
        assert first["step"] == 0
        assert first["loss"] == pytest.approx(reported[before, "loss"], rel=1e-4)


@pytest.mark.demo_model
def test_rewards_are_measured_on_the_tokens_of_the_model(run: Path, tiny_model: Path) -> None:
    """The reference is asked in each model's template: the margins are log-ratios of the same tokens."""
    file = run / "preferences" / "preferences.json"
    reported = estimates(file)
    reference, _ = plain(run / "lora")
    assert read_record(file).reference == "lora"
    for name in ("dpo", "base"):
        model, own = plain(run / name) if name == "dpo" else plain_base(tiny_model)
        margins = []
        for row in held_out(run, "pairs"):
            chosen, rejected = talk(*row.prompt, *row.chosen), talk(*row.prompt, *row.rejected)
            of = [plain_logps(m, own, side).sum() for m in (model, reference) for side in (chosen, rejected)]
            margins.append(float(of[0] - of[2] - (of[1] - of[3])))
        assert reported[name, "reward_margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-3, abs=1e-4)
    assert reported["lora", "kl"] == pytest.approx(0, abs=1e-9)
    assert reported["base", "kl"] > 0.1


@pytest.mark.demo_model
def test_rounding_of_products_is_not_part_of_a_comparison(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in bf16, log-probabilities in fp32: in bf16 they move by more than a short training moves them."""
    monkeypatch.setattr(hardware, "choose_dtype", lambda name, device: torch.bfloat16)
    stage = EvalStage(kind="eval", data="pairs", models=("lora", "dpo"), prompts=None, resamples=100, device="cpu")
    contenders = {name: partial(resolve_target, str(run / name)) for name in stage.models}
    rows = run / "pairs" / "rows" / "held_out.parquet"
    evaluate(stage, StageDir(tmp_path / "out"), rows, contenders, tmp_path / "cache", 0, Display(Console(quiet=True)))
    models = {name: plain(run / name) for name in stage.models}
    for model, _ in models.values():
        for name, weight in model.named_parameters():
            weight.data = weight.data if "lora_" in name else weight.data.bfloat16().float()
    margins = []
    for row in held_out(run, "pairs"):
        sides = [talk(*row.prompt, *side) for side in (row.chosen, row.rejected)]
        (old_chosen, old_rejected), (chosen, rejected) = (
            [float(plain_logps(*models[name], side).sum()) for side in sides] for name in stage.models
        )
        margins.append(chosen - old_chosen - (rejected - old_rejected))
    found = estimates(tmp_path / "out" / "preferences.json")["dpo", "reward_margin"]
    assert found == pytest.approx(sum(margins) / len(margins), rel=1e-3, abs=1e-4)


@pytest.mark.demo_model
def test_folders_work_elsewhere(run: Path, tiny_model: Path) -> None:
    """Template, tokenizer and the trained stop stand beside the weights of every stage, also of those that were not given the template."""
    for name, folder in (("full", "model"), ("lora", "adapter"), ("dpo", "adapter"), ("last", "model")):
        tokenizer = AutoTokenizer.from_pretrained(run / name / folder)
        assert tokenizer.get_chat_template() == TEMPLATE
        assert "chat_template" not in read_json(run / name / folder / "tokenizer_config.json")
        assert tokenizer("a b").input_ids == AutoTokenizer.from_pretrained(tiny_model)("a b").input_ids
        ends = end_ids(run / name / folder)
        assert ends[0] == tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
        assert set(ends) == {0, 2}
    model, tokenizer = plain(run / "last")
    assert model.generation_config.eos_token_id == [0, 2]
    on = read_json(run / "lora" / "adapter" / "adapter_config.json")["base_model_name_or_path"]
    assert Path(on) == (run / "full" / "model").resolve()


@pytest.mark.demo_model
def test_targets_are_what_the_recipe_means(run: Path, tmp_path: Path, cli: Command) -> None:
    for name in ("full", "lora", "dpo", "last"):
        found = resolve_target(str(run / name))
        assert found.template.tokenizer.get_chat_template() == TEMPLATE
        assert found.stops[0] == (0,)
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    found = resolve_target(str(moved / "dpo"))
    assert found.folder.resolve() == (moved / "full" / "model").resolve()
    told = [
        cli("chat", folder / "dpo", "--prompt", "What comes after red?", "--max-new-tokens", 4)
        for folder in (run, moved)
    ]
    assert told[0].code == 0, told[0].err
    assert told[0].out == told[1].out
    shutil.rmtree(moved / "full")
    cli("chat", moved / "dpo", "--prompt", "hi").refused()
    with pytest.raises(ModelError, match="weights under this stage's adapter are missing"):
        resolve_target(str(moved / "dpo"))
    record = read_json(run / "dpo" / "model.json")
    assert record["on"] == {"folder": "../full/model"}
    assert record["template"]["from"] == "lora"
    assert read_json(run / "full" / "model.json")["template"]["from"].startswith("template: ")


@pytest.mark.demo_model
def test_every_command_takes_a_stage_for_a_model(run: Path, tmp_path: Path, cli: Command) -> None:
    """Template and tokenizer of what was trained, and for `verify` its weights; a stage that trained nothing is refused by all."""
    rows = run.parents[1] / "talks.jsonl"
    shown = cli("show", "--conversations", rows, "--model", run / "dpo", "--json")
    assert json.loads(shown.out)["rendered"].startswith("<|im_start|>user|\n")
    counted = [
        cli("data", "profile", rows, "-o", tmp_path / name, "--model", model, "--json")
        for name, model in (("stage", run / "dpo"), ("adapter", run / "dpo" / "adapter"))
    ]
    assert json.loads(counted[0].out)["lengths"] == json.loads(counted[1].out)["lengths"]
    verified = cli("verify", "--conversations", rows, "--model", run / "dpo", "--rows", "2", "--json")
    assert verified.code == 0, verified.out + verified.err
    assert json.loads(verified.out)["checks"][0]["detail"].endswith("stop '<|endoftext|>'")
    for command in (["show"], ["verify"], ["chat"]):
        told = ["--conversations", rows, "--model"] if command != ["chat"] else []
        assert "has no weights" in cli(*command, *told, run / "talks").refused()


def test_the_time_a_template_was_told_travels_with_the_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + TEMPLATE)
    stage = StageDir(tmp_path / "sft")
    stage.file("model").parent.mkdir(parents=True)
    with stopped_at(datetime(2019, 5, 4)):
        shutil.copytree(folder, stage.file("model"))
        write_record(stage, Lineage(folder), folder, "base")
    found = stage_lineage(stage, lambda: folder)
    assert found.template.render([Message("user", "x")]).startswith("2019<|im_start|>")
    assert Lineage(folder).template.render([Message("user", "x")])[:4] != "2019"
    assert found.manner != Lineage(stage.file("model")).manner


@pytest.mark.demo_model
def test_a_template_of_its_own_wins_and_is_told(run: Path, tmp_path: Path, cli: Command) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "runs" / "chain"))
    (tmp_path / "other.jinja").write_text(TEMPLATE.replace("im_start", "endoftext"))
    recipe = copy / "recipe.yaml"
    few = [f"{stage}.max_steps=1" for stage in ("lora", "dpo", "last")]
    ended = cli("train", recipe, "--runs", tmp_path / "runs", *few, f"lora.template={tmp_path / 'other.jinja'}")
    assert ended.code == 0, ended.err
    assert "takes the place of the template that full was made with" in ended.out + ended.err
    written = (copy / "dpo" / "adapter" / "chat_template.jinja").read_text()
    assert written == TEMPLATE.replace("im_start", "endoftext")


def test_runs_from_before_the_record(tmp_path: Path) -> None:
    """Their stages are read as they were trained: on the recipe's base, in the template of their own configuration."""
    stage = StageDir(tmp_path / "sft")
    with pytest.raises(ModelError, match="no weights"):
        stage_lineage(stage, lambda: tmp_path)
    stage.file("adapter").mkdir(parents=True)
    assert stage_lineage(stage, lambda: tmp_path, "x.jinja") == Lineage(
        tmp_path, stage.file("adapter"), template_file=Path("x.jinja")
    )


@pytest.mark.parametrize("odd", ["2", -1, [[2]], [2, None], True, 2.0, {}])
def test_odd_end_tokens_are_told(odd: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "generation_config.json", {"eos_token_id": odd})
    with pytest.raises(ModelError, match="not a token id"):
        end_ids(tmp_path)


def test_end_tokens_come_from_the_first_file_that_names_them(tmp_path: Path) -> None:
    assert end_ids(tmp_path) == ()
    write_json(tmp_path / "config.json", {"text_config": {"eos_token_id": 7}})
    assert end_ids(tmp_path) == (7,)
    write_json(tmp_path / "generation_config.json", {"_from_model_config": True, "eos_token_id": [3, 4, 3]})
    assert end_ids(tmp_path) == (3, 4)
    (tmp_path / "out").mkdir()
    Companions(tmp_path, ends=(9, 3)).write(tmp_path / "out")
    assert read_json(tmp_path / "out" / "generation_config.json") == {"eos_token_id": [9, 3]}
