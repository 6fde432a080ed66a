"""Bad input: exit code 2, one message on stderr that names the place and the way out, no traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forking import Commands

pytestmark = pytest.mark.demo_model

Cli = Callable[..., Any]


@pytest.fixture
def refused(cli: Cli, recipe: Path, tmp_path: Path) -> Callable[..., str]:
    """The message with which ``posttrain run`` refuses the tiny recipe with these overrides."""
    return lambda *overrides: cli("run", recipe, *overrides, "--runs", tmp_path / "runs").refused()


def rewritten(recipe: Path, old: str, new: str) -> None:
    text = recipe.read_text()
    assert text.count(old) == 1, old
    recipe.write_text(text.replace(old, new))


def broken_model(tiny_model: Path, folder: Path) -> Path:
    shutil.copytree(tiny_model, folder)
    return folder


# ---- recipes ---------------------------------------------------------------------------------------------------------


def test_a_missing_recipe(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").touch()
    message = cli("run", tmp_path / "quickstat.yaml").refused()
    assert "quickstat.yaml" in message
    assert "did you mean" in message or "no such file" in message.lower()


def test_an_empty_recipe(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.touch()
    assert "empty.yaml" in cli("run", path).refused()


def test_tabs_in_yaml(recipe: Path, refused: Callable[..., str]) -> None:
    rewritten(recipe, "    batch_size: 4", "\tbatch_size: 4")
    message = refused()
    assert "tiny.yaml:10" in message
    assert "tab" in message


def test_a_duplicated_stage(recipe: Path, refused: Callable[..., str]) -> None:
    rewritten(recipe, "  report:", "  sft:")
    message = refused()
    assert re.search(r"tiny.yaml:\d+", message)
    assert "sft" in message
    assert "twice" in message


def test_a_circle_of_references(recipe: Path, refused: Callable[..., str]) -> None:
    rewritten(recipe, "  report:", "  more: {kind: train, data: prepare, start_from: sft}\n  report:")
    assert "sft -> more -> sft" in refused("sft.start_from=more")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.adapter.rank=0", ["stages.sft.adapter.rank", "at least 1"]),
        ("sft.learning_rate=-1e-4", ["stages.sft.learning_rate", "greater than 0"]),
        ("sft.learning_rat=1e-4", ["learning_rat", "did you mean", "learning_rate"]),
        ("stf.learning_rate=1e-4", ["stf", "did you mean", "sft"]),
        ("learning_rate", ["learning_rate", "key=value"]),
        ("sft.batch_size=four", ["stages.sft.batch_size", "whole number"]),
        ("sft.data=prepar", ["stages.sft.data", "did you mean 'prepare'"]),
        ("sft.device=gpu0", ["gpu0", "device: auto"]),
        ("sft.adapter.targets=[no_such_layer]", ["no_such_layer", "q_proj"]),
    ],
)
def test_a_wrong_override(override: str, words: list[str], refused: Callable[..., str]) -> None:
    message = refused(override)
    for word in words:
        assert word in message, message


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.jsonl", None, ["missing.jsonl", "no such file"]),
        ("empty.jsonl", "", ["empty.jsonl", "the file is empty"]),
        ("empty_list.json", "[]", ["empty_list.json", "no rows"]),
        ("folder/readme.txt", "hello", ["folder", "no data file", "readme.txt"]),
        ("broken.jsonl", '{"instruction": "a"\nnot json\n', ["broken.jsonl:1", "broken_json"]),
        ("foreign.jsonl", '{"x": 1}\n', ["foreign.jsonl", "x"]),
        (
            "no_assistant.jsonl",
            "".join(f'{{"messages": [{{"role": "user", "content": "hi {n}"}}]}}\n' for n in range(9)),
            ["no_assistant.jsonl:", "prompts", "with replies are needed"],
        ),
    ],
)
def test_unusable_rows(
    name: str, content: str | None, words: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    source = path.parent if path.parent.name == "folder" else path
    message = refused(f"prepare.sources.0.path={source}")
    for word in words:
        assert word in message, message
    assert "fix:" in message


def test_an_unknown_asset(refused: Callable[..., str]) -> None:
    message = refused("prepare.sources.0.path=alpaca_en_dem")
    assert "did you mean 'alpaca_en_demo'" in message
    assert "alpaca_zh_demo" in message


def test_every_row_too_long(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("sft.max_length=5")
    assert "all rows were dropped (16 too_long)" in message
    assert re.search(r"rows.jsonl:\d+: too_long: \d+ tokens, limit 5", message)
    assert re.search(r"raise max_length \(it is 5, the shortest row has \d+ tokens\)", message)
    manifest = json.loads((tmp_path / "runs" / "tiny" / "sft" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "too_long" in manifest["error"]
    ledger = json.loads((tmp_path / "runs" / "tiny" / "sft" / "ledger.json").read_text())
    assert len(ledger["rejects"]) == 16


def test_held_out_takes_all(refused: Callable[..., str]) -> None:
    assert "held_out" in refused("prepare.held_out=20")


def test_what_later_stages_lack_is_found_before_any_runs(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("{% for m in messages %}")
    assert "stages.sft.device: device 'cuda:99' can't be used" in refused("sft.device=cuda:99")
    assert "bad.jinja" in refused(f"sft.template={tmp_path / 'bad.jinja'}")
    assert not (tmp_path / "runs" / "tiny" / "prepare").exists()


# ---- models and templates --------------------------------------------------------------------------------------------


def test_no_such_model(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "did you mean 'smollm2-135m-instruct'" in refused("model=smollm2-135m-instuct")
    assert "no such model" in refused(f"model={tmp_path}/nothing")
    (tmp_path / "file").touch()
    assert "neither a model folder" in refused(f"model={tmp_path}/file")


def test_a_model_folder_without_weights(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    folder = broken_model(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    message = refused(f"model={folder}")
    assert "no weights (*.safetensors)" in message
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pickled weights are never loaded" in refused(f"model={folder}")


def test_damaged_weights(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    folder = broken_model(tiny_model, tmp_path / "model")
    os.truncate(folder / "model.safetensors", 1000)
    message = refused(f"model={folder}")
    assert str(folder) in message
    assert "damaged" in message
    assert "fix:" in message


def test_a_folder_without_config(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    message = refused(f"model={tmp_path / 'model'}")
    assert f"{tmp_path / 'model'}: no config.json here" in message
    assert "fix:" in message
    assert not (tmp_path / "runs" / "tiny" / "prepare").exists()  # told before anything runs


def test_a_damaged_config(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    folder = broken_model(tiny_model, tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "lla')
    assert f"{folder / 'config.json'}: config.json can't be read as JSON" in refused(f"model={folder}")


def test_a_tokenizer_without_template(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    folder = broken_model(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    message = refused(f"model={folder}")
    assert "no chat template" in message
    assert "template: FILE.jinja" in message


def test_a_template_that_raises(refused: Callable[..., str], tmp_path: Path) -> None:
    template = tmp_path / "refusing.jinja"
    template.write_text("{{ raise_exception('only on Sundays') }}")
    message = refused(f"sft.template={template}")
    assert "template_raised" in message
    assert "only on Sundays" in message


def test_a_template_with_a_syntax_error(refused: Callable[..., str], tmp_path: Path) -> None:
    template = tmp_path / "broken.jinja"
    template.write_text("{% for message in messages %}\n{{ message.content }")
    message = refused(f"sft.template={template}")
    assert "broken.jinja:2" in message


def test_a_missing_template(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(f"sft.template={tmp_path}/none.jinja")
    assert "no such template file" in message
    assert "none.jinja" in message


def test_a_missing_or_wrong_prompts_file(refused: Callable[..., str], tmp_path: Path) -> None:
    """It is told before anything is trained."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' * 2)
    assert "this is not YAML" in refused(f"evaluate.prompts={tmp_path}/rows.jsonl")
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert "no such prompts file" in refused(f"evaluate.prompts={tmp_path}/none.yaml")


# ---- the run folder --------------------------------------------------------------------------------------------------


def test_a_second_process_on_the_same_run(refused: Callable[..., str], tmp_path: Path) -> None:
    from posttrain.artifacts import RunDir

    with RunDir(tmp_path / "runs" / "tiny").lock():
        message = refused()
    assert f"pid {os.getpid()}" in message
    assert "name=" in message


def test_a_file_in_place_of_the_runs_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    message = refused()
    assert str(tmp_path / "runs") in message
    assert "a file stands where a folder is needed" in message
    assert "--runs DIR" in message


def test_a_read_only_run_folder(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, *arguments: object, **more: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    message = refused()
    assert "read-only" in message
    assert "--runs DIR" in message


@pytest.mark.parametrize(
    "stage", ["prepare", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sft", "evaluate"))]
)
def test_a_full_disk(stage: str, cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the stage but its manifest fails to be put in place."""
    import posttrain.artifacts

    replace = os.replace

    folders = {"prepare": ("prepare", "rows"), "sft": ("sft", "checkpoints")}.get(stage, (stage,))

    def full(source: Path, target: Path) -> None:
        if Path(target).parent.name in folders and Path(target).name != "manifest.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(posttrain.artifacts.os, "replace", full)
        message = cli("run", recipe, "--runs", tmp_path).refused()
    assert "the disk is full" in message
    assert "it resumes" in message
    assert str(tmp_path / "tiny" / stage) in message
    assert json.loads((tmp_path / "tiny" / stage / "manifest.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "tiny").rglob(".*.tmp"))
    # with room again the same command goes on
    assert cli("run", recipe, "--runs", tmp_path).code == 0


@pytest.mark.slow
def test_a_file_system_that_takes_no_more(commands: Commands, recipe: Path, tmp_path: Path) -> None:
    """The kernel itself refuses a large write: safetensors raises a type of its own then."""

    done = commands.start("train", recipe, "--runs", tmp_path / "runs", most_bytes=60_000)
    _, err = done.communicate()
    assert done.returncode == 2, err
    assert "Traceback" not in err
    assert re.match(r"error: \S+safetensors: can't write: File too large\n  fix: ", err), err


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def half_done(finished_run: Path, recipe: Path, tmp_path: Path) -> Path:
    """A run whose training looks cut: checkpoints are there, the stage is not complete."""
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished_run, run)
    path = run / "sft" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
    return run


@pytest.mark.slow
def test_checkpoints_truncated_by_half(half_done: Path, refused: Callable[..., str]) -> None:
    checkpoints = [half_done / "sft" / "checkpoints" / name for name in ("a.safetensors", "b.safetensors")]
    for path in checkpoints:
        os.truncate(path, path.stat().st_size // 2)
    message = refused()
    assert "no usable checkpoint" in message
    assert "damaged" in message
    assert f"remove {half_done / 'sft' / 'checkpoints'}" in message


@pytest.mark.slow
def test_one_damaged_checkpoint_falls_back_to_the_other(half_done: Path, commands: Commands, recipe: Path) -> None:
    newest = max((half_done / "sft" / "checkpoints").glob("[ab].safetensors"), key=lambda p: p.stat().st_mtime_ns)
    whole = (half_done / "sft" / "adapter" / "adapter_model.safetensors").read_bytes()
    os.truncate(newest, newest.stat().st_size // 2)
    done = commands.start("train", recipe, "--runs", half_done.parent)
    _, err = done.communicate()
    assert done.returncode == 0, err
    assert re.search(r"^warning: .*damaged.*; going on from the checkpoint before it$", err, re.MULTILINE)
    assert ".py" not in err
    assert (half_done / "sft" / "adapter" / "adapter_model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_a_checkpoint_of_another_configuration(
    half_done: Path, cli: Cli, recipe: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert cli("run", recipe, "name=other", "sft.learning_rate=5e-4", "--runs", tmp_path / "runs").code == 0
    shutil.rmtree(half_done / "sft" / "checkpoints")
    shutil.copytree(tmp_path / "runs" / "other" / "sft" / "checkpoints", half_done / "sft" / "checkpoints")
    message = refused()
    assert "belongs to another configuration" in message
    assert "fix: remove" in message


# ---- other commands --------------------------------------------------------------------------------------------------


def test_report_of_no_run(cli: Cli, tmp_path: Path) -> None:
    assert "not a run folder" in cli("report", tmp_path).refused()


def test_usage_errors_are_short(cli: Cli) -> None:
    done = cli("rum", "recipe.yaml")
    assert done.code == 2
    assert "No such command" in done.err
    assert "Traceback" not in done.err
    assert cli("run").code == 2
