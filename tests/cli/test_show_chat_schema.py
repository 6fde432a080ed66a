"""posttrain show, chat, schema, report and --version."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
pytestmark = pytest.mark.demo_model


# ---- show ------------------------------------------------------------------------------------------------------------


def test_show_as_json(cli: Cli, rows_file: Path, tiny_model: Path) -> None:
    done = cli("show", "--conversations", rows_file, "--row", 1, "--model", tiny_model, "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert "".join(token["text"] for token in shown["tokens"]) == shown["rendered"]
    assert shown["rendered"].endswith("是2。<|im_end|>\n")
    supervised = [token for token in shown["tokens"] if token["weight"]]
    assert "".join(token["text"] for token in supervised) == "是2。<|im_end|>"
    assert {token["weight"] for token in supervised} == {1.0}
    assert supervised[-1]["id"] == 2  # <|im_end|> of SmolLM2
    assert shown["origin"] == {"file": str(rows_file), "line": 2}


def test_show_in_a_terminal_and_as_a_page(cli: Cli, rows_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "row.html"
    done = cli("show", "--conversations", rows_file, "--row", 0, "--model", tiny_model, "--html", page)
    assert done.code == 0, done.err
    assert "What comes after 0?" in done.out
    assert "It is 1." in done.out
    spans = re.findall(r'<span class="supervised" title="id (\d+), weight 1">([^<]*)</span>', page.read_text())
    assert html.unescape("".join(text for _, text in spans)) == "It is 1.<|im_end|>"


def test_show_with_another_template(cli: Cli, rows_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    done = cli("show", "--conversations", rows_file, "--model", tiny_model, "--template", template, "--json")
    assert json.loads(done.out)["rendered"] == "[user]What comes after 0?<|im_end|>[assistant]It is 1.<|im_end|>"


def test_show_beyond_the_end(cli: Cli, rows_file: Path, tiny_model: Path) -> None:
    message = cli("show", "--conversations", rows_file, "--row", 20, "--model", tiny_model).refused()
    assert message == f"error: {rows_file}: no row 20: there are 20\n  fix: rows count from 0\n"


def test_show_of_a_broken_row(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"instruction": "a", "output": "b"}\n{"instruction": \n{"instruction": "a", "output": "\\ud800"}\n'
    )
    assert cli("show", "--conversations", path, "--row", 0, "--model", tiny_model).code == 0
    message = cli("show", "--conversations", path, "--row", 1, "--model", tiny_model).refused()
    assert f"{path}:2: row 1 can't be used: broken_json" in message
    for extra in ([], ["--json"], ["--html", tmp_path / "x.html"]):
        assert cli("show", "--conversations", path, "--row", 2, "--model", tiny_model, *extra).code == 2


def test_show_of_a_row_the_template_refuses(cli: Cli, rows_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "refusing.jinja"
    template.write_text("{{ raise_exception('never') }}")
    done = cli("show", "--conversations", rows_file, "--model", tiny_model, "--template", template)
    assert done.code == 2
    assert "template_raised: never" in done.out


def test_show_names_an_unknown_format(cli: Cli, rows_file: Path, tiny_model: Path) -> None:
    message = cli("show", "--conversations", rows_file, "--model", tiny_model, "--format", "alpacca").refused()
    assert "did you mean 'alpaca'" in message


# ---- chat ------------------------------------------------------------------------------------------------------------


ASK = ["--prompt", "What comes after 1?", "--max-new-tokens", 8, "--temperature", 1.0, "--seed", 3]
"""Sampled, because the tiny model's most likely reply is empty lines."""


@pytest.mark.parametrize("target", ["stage", "adapter", "model"])
def test_one_prompt(target: str, cli: Cli, finished_run: Path, tiny_model: Path) -> None:
    named = {"stage": finished_run / "sft", "adapter": finished_run / "sft" / "adapter", "model": tiny_model}[target]
    done = cli("chat", named, *ASK)
    assert done.code == 0, done.err
    assert done.out.endswith("\n")
    assert done.out.strip()
    assert cli("chat", named, *ASK).out == done.out


def test_the_stage_and_its_adapter_say_the_same_and_the_base_something_else(
    cli: Cli, finished_run: Path, tiny_model: Path
) -> None:
    targets = (finished_run / "sft", finished_run / "sft" / "adapter", tiny_model)
    said = [cli("chat", t, *ASK).out for t in targets]
    assert said[0] == said[1] != said[2]


def test_a_conversation_from_a_pipe(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\n/reset\nHello\n/quit\nnever read\n"))
    done = cli("chat", tiny_model, "--max-new-tokens", 3)
    assert done.code == 0, done.err
    half = len(done.out) // 2
    assert done.out[:half] == done.out[half:]  # /reset forgot the first turn
    assert done.out[:half] == cli("chat", tiny_model, "--max-new-tokens", 3, "--prompt", "Hello").out


@pytest.mark.slow
def test_sampling_depends_on_the_seed(cli: Cli, tiny_model: Path) -> None:
    ask = ["chat", tiny_model, "--prompt", "Hi", "--max-new-tokens", 6, "--temperature", 1.0]
    one, same, other = (cli(*ask, "--seed", seed).out for seed in (1, 1, 2))
    assert one == same != other


def test_ctrl_c_ends_a_reply_but_not_the_conversation(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.lab import chat

    def interrupted(*arguments: object) -> Any:
        yield "Half"
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\nAgain\n"))
    monkeypatch.setattr(chat, "stream", interrupted)
    done = cli("chat", tiny_model)
    assert (done.code, done.out) == (0, "Half [stopped]\nHalf [stopped]\n")
    assert cli("chat", tiny_model, "--prompt", "Hello").code == 130


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("", ["this is a run", "name a train stage", "/sft"]),
        ("prepare", ["stage of kind data", "/sft"]),
        ("stf", ["no such model", "did you mean 'sft'"]),
    ],
)
def test_what_can_not_be_talked_to(target: str, words: list[str], cli: Cli, finished_run: Path) -> None:
    message = cli("chat", finished_run / target, "--prompt", "x").refused()
    for word in words:
        assert word in message


@pytest.mark.slow
def test_an_adapter_without_a_base(cli: Cli, finished_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(finished_run / "sft" / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert "--base" in cli("chat", folder, "--prompt", "x").refused()
    assert cli("chat", folder, "--base", tiny_model, *ASK).out == cli("chat", finished_run / "sft", *ASK).out


# ---- report, schema, version -----------------------------------------------------------------------------------------


def test_report_again_gives_the_same_bytes(cli: Cli, finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / finished_run.name
    shutil.copytree(finished_run, run)
    (run / "report" / "index.html").unlink()
    done = cli("report", run)
    assert done.code == 0, done.err
    assert done.out == f"Open {run / 'report' / 'index.html'}\n"
    for name in ("report/index.html", "report/report.md", "summary.json"):
        assert (run / name).read_bytes() == (finished_run / name).read_bytes()


def test_schema_is_json_schema(cli: Cli) -> None:
    done = cli("schema")
    assert done.code == 0
    schema = json.loads(done.out)
    assert "stages" in schema["properties"]
    assert "learning_rate" in done.out


def test_version(cli: Cli) -> None:
    from posttrain import __version__

    assert cli("--version").out == f"posttrain {__version__}\n"
