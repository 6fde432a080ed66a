"""``posttrain verify TARGET``: every form is the same model, and a form that is not is found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Outcome
from export.micro import micro_chat_model
from posttrain.lab import forms
from posttrain.model.gguf import architectures

pytestmark = pytest.mark.filterwarnings("ignore")
Cli = Callable[..., Outcome]


def checks(done: Outcome) -> dict[str, dict[str, object]]:
    return {check["name"]: check for check in json.loads(done.out)["checks"]}


def test_forms_of_a_micro_model(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(forms, "PROMPTS", forms.PROMPTS[:3])
    folder = micro_chat_model("llama", tmp_path)
    found = checks(done := cli("verify", folder, "--json"))
    assert [*found] == [f"GGUF {kind} = folder" for kind in forms.ORDER]
    assert found["GGUF f32 = folder"]["holds"], done.out
    assert "KL mean" in str(found["GGUF q8_0 = folder"]["detail"])
    monkeypatch.setattr(architectures, "interleaved", lambda rows, heads: rows)
    assert cli("verify", folder, "--json").code == 1


def test_what_can_not_be_checked_is_said(cli: Cli, tmp_path: Path) -> None:
    done = cli("verify", micro_chat_model("llama-dynamic", tmp_path), "--json")
    assert done.code == 0
    assert "dynamic" in str(checks(done)["GGUF"]["detail"])


def test_two_checks_at_once_are_refused(cli: Cli, tmp_path: Path) -> None:
    assert "two checks" in cli("verify", tmp_path, "--model", tmp_path).refused()
    assert "--model is missing" in cli("verify", "--conversations", "rows.jsonl").refused()


@pytest.mark.slow
@pytest.mark.demo_model
def test_the_demo_model_in_every_form(cli: Cli, demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of the prompts, English, German and Chinese; all twenty are minutes (docs/export.md has what they gave)."""
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(forms, "PROMPTS", forms.PROMPTS[::4])
    found = checks(done := cli("verify", "smollm2-135m-instruct", "--json"))
    assert "5 of 5 greedy replies" in str(found["GGUF f32 = folder"]["detail"]), done.out
    # two processors round 16-bit weights' sums apart: a tie of 0.001 in a logit falls either way (docs/export.md)
    assert re.match("[45] of 5 greedy replies", str(found["GGUF f16 = folder"]["detail"])), done.out
