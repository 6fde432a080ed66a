"""Taking a model home: what is written works by itself, says where it comes from, and nothing half-written stays."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import Outcome
from export.llama_cpp import Llama
from posttrain.model import export
from posttrain.model.companions import read_object
from posttrain.model.load import load_model
from posttrain.model.targets import resolve_target

pytestmark = [
    pytest.mark.demo_model,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT's own affair
    pytest.mark.filterwarnings("ignore:weights in 4 bits"),  # what they cost, which a run says
]
Cli = Callable[..., Outcome]
CARD = "---\nlicense: mit\nlanguage: en\n---\n# Tiny\n"


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """prepare -> sft (LoRA) -> evaluate -> home (export to hf)."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_model, folder / "tiny")
    (folder / "tiny" / "README.md").write_text(CARD)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What comes after {n}?"},
                {"role": "assistant", "content": f"{n + 1}."},
            ]
        }
        for n in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fast = "batch_size: 4, max_steps: 6, learning_rate: 0.02, dtype: fp32, device: cpu"
    (folder / "recipe.yaml").write_text(
        f"""
name: taken
model: tiny
stages:
  prepare: {{kind: data, held_out: 8, sources: [{{path: rows.jsonl}}]}}
  sft: {{kind: train, data: prepare, adapter: {{name: lora, rank: 4}}, {fast}}}
  whole: {{kind: train, data: prepare, adapter: {{name: full}}, {fast}}}
  four: {{kind: train, data: prepare, adapter: {{name: lora, rank: 4, quantize: nf4}}, {fast}}}
  evaluate: {{kind: eval, data: prepare, models: [base, sft], prompts: null, resamples: 100, device: cpu}}
  home: {{kind: export, model: sft, to: hf}}
  file: {{kind: export, model: sft, to: gguf, type: f32}}
  report: {{kind: report}}
"""
    )
    done = cli("run", folder / "recipe.yaml", "--runs", folder / "runs")
    assert done.code == 0, done.err
    return folder / "runs" / "taken"


def exported(cli: Cli, target: Path | str, out: Path, form: str, *options: str) -> Path:
    done = cli("export", target, "--to", form, "-o", out, *options)
    assert done.code == 0, done.err
    return out


def front(card: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(card.split("---")[1])
    return found


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[1, 4093, 198, 2683, 22, 18]])).logits
        return found


@pytest.mark.slow
def test_a_stage_writes_a_folder_that_works_by_itself(run: Path) -> None:
    folder = run / "home" / "files"
    plain = AutoModelForCausalLM.from_pretrained(run.parents[1] / "tiny")
    adapter = PeftModel.from_pretrained(plain, run / "sft" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected, found = logits(adapter), logits(merged)
    assert float((expected - found).abs().max() / (1 + expected.abs().max())) <= 1e-5
    assert merged.dtype == torch.float32
    assert merged.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run.parents[1] / "tiny").chat_template
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the original files, not what transformers would write
        assert (folder / name).read_bytes() == (run.parents[1] / "tiny" / name).read_bytes()
    with safe_open(folder / "model.safetensors", "pt") as opened:
        assert opened.metadata()["format"] == "pt"
        assert "lm_head.weight" not in opened.keys()  # noqa: SIM118  # it is no mapping
    result = json.loads((run / "home" / "manifest.json").read_text())["result"]
    assert result["agreement"]["relative"] <= 1e-5
    assert result["agreement"]["top1"] == 1


def test_the_card_says_what_was_done(run: Path) -> None:
    card = (run / "home" / "files" / "README.md").read_text()
    said = front(card)
    assert said == {
        "base_model": "tiny",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "language": ["en"],
        "tags": ["posttrain"],
    }
    for told in (
        "# taken/sft",
        "rows.jsonl",
        "rank: 4",
        "learning_rate: 0.02",
        "Results: evaluate",
        "Largest difference",
    ):
        assert told in card.replace("\\", ""), told
    record = json.loads((run / "evaluate" / "likelihood.json").read_text())
    found = next(r for r in record["differences"] if r["b"] == "sft" and r["measure"] == "loss")
    ends = [f"{abs(found[end]):.3f}" for end in ("low", "high")]
    assert all(end in card for end in ends), (ends, card)
    for path in (run / "home" / "files").iterdir():
        if path.suffix in (".md", ".json", ".jinja"):
            assert str(run.parents[1]) not in path.read_text(), path


def test_the_page_shows_exports(run: Path) -> None:
    page = (run / "report" / "report.md").read_text()
    assert "Export: home" in page
    assert "model.safetensors" in page


def test_an_unchanged_export_is_not_made_again(run: Path, cli: Cli) -> None:
    before = (run / "home" / "files" / "model.safetensors").stat().st_mtime_ns
    done = cli("run", run.parents[1] / "recipe.yaml", "--runs", run.parent)
    assert done.code == 0, done.err
    assert (run / "home" / "files" / "model.safetensors").stat().st_mtime_ns == before


def test_adapter(run: Path, cli: Cli, tmp_path: Path) -> None:
    folder = exported(cli, run / "sft", tmp_path / "out", "adapter")
    assert read_object(folder / "adapter_config.json")["base_model_name_or_path"] == "tiny"
    assert front((folder / "README.md").read_text())["library_name"] == "peft"
    plain = AutoModelForCausalLM.from_pretrained(run.parents[1] / "tiny")
    ours = logits(PeftModel.from_pretrained(plain, folder).eval())
    plain = AutoModelForCausalLM.from_pretrained(run.parents[1] / "tiny")
    assert torch.equal(ours, logits(PeftModel.from_pretrained(plain, run / "sft" / "adapter").eval()))
    again = exported(cli, folder, tmp_path / "merged", "hf", "--base", str(run.parents[1] / "tiny"))
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(again)),
        logits(AutoModelForCausalLM.from_pretrained(run / "home" / "files")),
    )


@pytest.mark.slow
def test_an_adapter_on_weights_in_4_bits(run: Path, cli: Cli, tmp_path: Path) -> None:
    """Merged, the weights under it are written out: the same logits, as a folder and in llama.cpp."""
    done = cli("export", run / "four", "--to", "hf", "-o", tmp_path / "hf", "--json")
    assert json.loads(done.out)["agreement"]["relative"] <= 1e-5, done.err
    folder = exported(cli, run / "four", tmp_path / "adapter", "adapter")
    assert read_object(folder / "base_weights.json") == {"quantize": "nf4"}
    path = exported(cli, run / "four", tmp_path / "gguf", "gguf", "--type", "f32") / "model.gguf"
    llama = Llama(path)
    ids = [1, 4093, 198, 2683, 22, 18]
    with torch.no_grad():
        logps_V = (
            AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        )
    _, likely = llama.greedy(ids, 1)
    assert max(abs(float(logps_V[i]) - p) for i, p in likely.items()) < 1e-3


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rounded_folders(dtype: str, run: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("export", run / "whole", "--to", "hf", "--dtype", dtype, "-o", tmp_path / "out", "--json")
    result = json.loads(done.out)
    assert 0 < result["agreement"]["largest"] < 0.1
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == kind


def test_large_models_are_cut_into_files(run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export.save_model
    monkeypatch.setattr(export, "save_model", lambda model, folder, dtype: whole(model, folder, dtype, shard="400KB"))
    folder = exported(cli, run / "sft", tmp_path / "out", "hf")
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files[0].startswith("model-00001-of-0000")
    assert len(files) > 1
    index = read_object(folder / "model.safetensors.index.json")
    assert {*index["weight_map"].values()} == {*files}
    assert index["metadata"]["total_size"] > 0
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(folder)),
        logits(AutoModelForCausalLM.from_pretrained(run / "home" / "files")),
    )
    assert export.SHARD == "5GB"


@pytest.mark.slow
def test_gguf_and_chat(run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    path = run / "file" / "files" / "model.gguf"
    assert gguf.GGUFReader(path).fields["general.name"].contents() == "taken/sft"
    said = {
        str(target): cli("chat", target, "--prompt", "What comes after 3?", "--max-new-tokens", "6").out
        for target in (run / "sft", run / "home", run / "home" / "files", run / "file", path)
    }
    assert len({*said.values()}) == 1, said
    assert cli("chat", path, "--prompt", "x", "--template", "a.jinja").refused()
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    again = load_model(
        resolve_target(str(run / "file")).folder, torch.float32, torch.device("cpu")
    )  # it is a model to start from
    merged = load_model(run / "home" / "files", torch.float32, torch.device("cpu"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in merged.state_dict().items())


def test_ollama(run: Path, cli: Cli, tmp_path: Path) -> None:
    folder = exported(cli, run / "sft", tmp_path / "out", "ollama", "--type", "q8_0")
    said = (folder / "Modelfile").read_text()
    assert said.startswith("FROM ./model.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in said
    assert "{{ .System }}" in said
    assert (folder / "model.gguf").is_file()


def test_gguf_adapter(run: Path, cli: Cli, tmp_path: Path) -> None:
    folder = exported(cli, run / "sft", tmp_path / "out", "gguf-adapter")
    fields = gguf.GGUFReader(folder / "adapter.gguf").fields
    assert fields["general.type"].contents() == "adapter"
    assert fields["adapter.lora.alpha"].contents() == 32
    assert "has no adapter" in cli("export", run / "whole", "--to", "gguf-adapter", "-o", tmp_path / "b").refused()


def test_from_a_folder(run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from one whose name means something in a recipe."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.parents[1] / "tiny", "base")
    folder = exported(cli, "base", tmp_path / "out", "hf")
    assert front((folder / "README.md").read_text())["license"] == "mit"
    assert resolve_target(str(folder)).has_template


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_missing(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert "one model is needed" in cli("export", "--to", "hf", "-o", tmp_path / "a").refused()
    assert "in which form?" in cli("export", run / "sft", "-o", tmp_path / "a").refused()
    assert "no output folder" in cli("export", run / "sft", "--to", "hf").refused()
    assert "onnx" in cli("export", run / "sft", "--to", "onnx", "-o", tmp_path / "a").refused()
    assert "--dtyp" in cli("export", run / "sft", "--to", "hf", "--dtyp", "fp16", "-o", tmp_path / "a").refused()
    assert "no such model" in cli("export", tmp_path / "none" / "x", "--to", "hf", "-o", tmp_path / "a").refused()
    assert not (tmp_path / "a").exists()


def test_an_existing_folder_is_never_touched(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "already" in cli("export", run / "sft", "--to", "hf", "-o", tmp_path / "out").refused()
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("status", ["running", "failed"])
def test_an_unfinished_stage(status: str, cli: Cli, run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("home", "file", "report"))
    path = copied / "sft" / "manifest.json"
    path.write_text("[]")
    assert (
        "must hold a JSON object" in cli("export", copied / "sft", "--to", "adapter", "-o", tmp_path / "out").refused()
    )
    path.write_text(json.dumps(json.loads((run / "sft" / "manifest.json").read_text()) | {"status": status}))
    said = cli("export", copied / "sft", "--to", "adapter", "-o", tmp_path / "out").refused()
    assert f"not complete (it is {status})" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["hf", "gguf", "ollama"])
def test_a_folder_without_a_tokenizer(form: str, cli: Cli, run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run.parents[1] / "tiny", bare, ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "merges*"))
    said = cli("export", bare, "--to", form, "-o", tmp_path / "out").refused()
    assert "tokenizer" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["hf", "gguf", "adapter"])
def test_a_full_disk(form: str, cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    monkeypatch.setattr(export.PreTrainedModel, "save_pretrained", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    said = cli("export", run / "sft", "--to", form, "-o", tmp_path / "out").refused()
    assert "disk is full" in said
    assert f"error: {tmp_path / 'out'}" in said  # the place that was asked for, not where it is made
    assert [path.name for path in tmp_path.iterdir()] == []


def test_what_a_killed_export_left_goes_with_the_next_one(cli: Cli, run: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: the folder is not there, and nothing else is in the end."""
    if (child := os.fork()) == 0:  # a fresh interpreter would import for seconds
        try:
            shutil.copyfile = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            cli("export", run / "sft", "--to", "adapter", "-o", tmp_path / "out")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len([*tmp_path.iterdir()]) == 1
    exported(cli, run / "sft", tmp_path / "out", "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_really_full(cli: Cli, run: Path, tmp_path: Path) -> None:
    """Files of at most 100 kB: numpy, safetensors and Python each say it in their own way."""
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        said = [
            cli("export", run / "sft", "--to", form, "-o", tmp_path / form).refused()
            for form in ("hf", "gguf", "adapter")
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert all("can't write: File too large" in text or "the disk is full" in text for text in said), said
    assert [*tmp_path.iterdir()] == []
