"""Adapters that plain PEFT wrote, as people have them: every kind is scored, talked to, trained on and taken home, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from conftest import Outcome
from export.llama_cpp import Llama
from export.micro import TEXTS, micro_chat_model
from export.test_gguf import adapted, compared
from posttrain.encode.template import load_tokenizer
from posttrain.model import hardware

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own affairs
Cli = Callable[..., Outcome]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "whole norm": {"modules_to_save": ["norm"]},
    "whole head": {"modules_to_save": ["lm_head"]},
}
SETTINGS = {"rslora": ", rslora: true", "dora": ", dora: true"}
NO_GGUF = {"dora": "can't hold DoRA", "whole norm": "trained whole (norm)", "whole head": "trained whole (lm_head)"}


@pytest.fixture(params=[one if one == "lora" else pytest.param(one, marks=pytest.mark.slow) for one in KINDS])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(kind: str, tmp_path: Path) -> Path:
    folder = micro_chat_model("llama-tied" if kind == "whole head" else "llama", tmp_path / "base")
    adapted(folder, tmp_path / "adapter", **KINDS[kind])
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n + 1}."}]}
        for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def logits(model: Any, base: Path) -> list[torch.Tensor]:
    tokenizer = load_tokenizer(base)
    with torch.no_grad():
        return [model(torch.tensor([tokenizer(text)["input_ids"]])).logits for text in TEXTS]


def far(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(ours, theirs, strict=True))


def test_an_adapter_is_that_of_plain_peft(
    kind: str, base: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "matmul_flops", lambda dtype, device: 1e9)  # no type is faster: chat computes in fp32
    plain = AutoModelForCausalLM.from_pretrained(base)
    untrained = logits(plain, base)
    peft = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    expected = logits(peft, base)
    assert far(untrained, expected) > 1e-3

    done = cli("export", tmp_path / "adapter", "--to", "hf", "-o", tmp_path / "hf")
    assert done.code == 0, done.err
    assert far(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), base), expected) < 1e-5

    said = [
        cli("chat", target, "--prompt", "1?", "--max-new-tokens", "8").out
        for target in (tmp_path / "adapter", tmp_path / "hf")
    ]
    assert said[0] == said[1]

    scores = []
    for name in ("adapter", "hf"):
        done = cli(
            "score",
            tmp_path / "rows.jsonl",
            "--model",
            tmp_path / name,
            "--dtype",
            "fp32",
            "-o",
            tmp_path / f"{name}-score",
        )
        assert done.code == 0, done.err
        scores.append(json.loads((tmp_path / f"{name}-score" / "score" / "facts.json").read_text()))
    losses = [[q for source in one["sources"].values() for q in source["loss"].values()] for one in scores]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    # a tied model whose head was trained alone has two matrices then, and PEFT's merge says so
    merged = peft.merge_and_unload()
    done = cli("export", tmp_path / "adapter", "--to", "gguf", "--type", "f32", "-o", tmp_path / "gguf")
    assert done.code == 0, done.err
    same, largest = compared(base, Llama(tmp_path / "gguf" / "model.gguf"), merged)
    assert (same, largest < 5e-3) == (len(TEXTS), True), largest

    done = cli("export", tmp_path / "adapter", "--to", "gguf-adapter", "-o", tmp_path / "alone")
    assert (done.code, (tmp_path / "alone").exists()) == ((2, False) if kind in NO_GGUF else (0, True))
    assert NO_GGUF.get(kind, "") in done.err


def test_an_adapter_is_trained_on_and_evaluated(kind: str, base: Path, tmp_path: Path, cli: Cli) -> None:
    """Without a step that matters it stays what it was, tensor by tensor."""
    settings = f"adapter: {{name: lora, rank: 4, alpha: 8{SETTINGS.get(kind, '')}}}, max_steps: 1, learning_rate: 1.0e-20, dtype: fp32, device: cpu"
    (tmp_path / "recipe.yaml").write_text(
        f"""
name: others
model: base
stages:
  prepare: {{kind: data, held_out: 4, sources: [{{path: rows.jsonl}}]}}
  sft: {{kind: train, data: prepare, start_from: ./adapter, {settings}}}
  evaluate: {{kind: eval, data: prepare, models: [base, sft], prompts: null, resamples: 100, device: cpu}}
  home: {{kind: export, model: sft, to: hf}}
"""
    )
    done = cli("run", tmp_path / "recipe.yaml", "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    home = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "others" / "home" / "files")
    assert far(logits(home, base), logits(peft, base)) < 1e-5
    done = cli("run", tmp_path / "recipe.yaml", "sft.adapter={name: lora, rank: 8}", "--runs", tmp_path / "runs")
    assert "the adapter to continue has 4" in done.refused()


def test_an_adapter_of_another_base_is_refused_by_its_shapes(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own base's name nothing would be wrong; what counts is the model that is given."""
    adapted(micro_chat_model("llama", tmp_path / "base"), tmp_path / "adapter")
    wider = micro_chat_model("llama", tmp_path / "wider", hidden_size=96)
    for form in ("hf", "gguf", "gguf-adapter"):
        said = cli("export", tmp_path / "adapter", "--base", wider, "--to", form, "-o", tmp_path / form).refused()
        assert "does not fit this model" in said
        assert "64" in said
        assert "96" in said
        assert not (tmp_path / form).exists()
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "x"}]} for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        """
name: others
model: wider
stages:
  prepare: {kind: data, held_out: 2, sources: [{path: rows.jsonl}]}
  sft: {kind: train, data: prepare, start_from: ./adapter, adapter: {name: lora, rank: 4, alpha: 8}, dtype: fp32, device: cpu}
"""
    )
    monkeypatch.chdir(tmp_path)
    assert "does not fit this model" in cli("run", "recipe.yaml").err
    assert "this is an adapter" in cli("run", "recipe.yaml", "model=adapter").refused()
