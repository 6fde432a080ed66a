"""``posttrain verify TARGET``: every form is the same model, and a form that is not is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Outcome
from export.micro import micro_chat_model
from posttrain.generate import gguf_replies
from posttrain.generate.gguf_replies import Place, Spoken
from posttrain.lab import forms
from posttrain.model.gguf import architectures

pytestmark = pytest.mark.filterwarnings("ignore")
Cli = Callable[..., Outcome]


def checks(done: Outcome) -> dict[str, dict[str, object]]:
    return {check["name"]: check for check in json.loads(done.out)["checks"]}


def test_forms_of_a_micro_model(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(gguf_replies, "QUESTIONS", gguf_replies.QUESTIONS[:3])
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
def test_the_demo_model_in_its_forms(cli: Cli, demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the prompts, and the types that must say the same; all twenty are minutes (docs/export.md has what they gave)."""
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(gguf_replies, "QUESTIONS", gguf_replies.QUESTIONS[::10])
    monkeypatch.setattr(gguf_replies, "REPLY_TOKENS", 12)
    monkeypatch.setattr(forms, "ORDER", forms.SAME_TEXT)
    found = checks(done := cli("verify", "smollm2-135m-instruct", "--json"))
    assert "2 of 2 greedy replies" in str(found["GGUF f32 = folder"]["detail"]), done.out
    assert found["GGUF f16 = folder"]["holds"], done.out  # but for ties


def test_a_reply_parts_at_a_tie_or_it_is_another() -> None:
    places = [Place("", "It", 3.0), Place("The", "The sea", 0.001), Place("The sky", "The sky", 0.5)]
    said = Spoken("q", np.zeros(1, np.int32), "The sky is", places, torch.zeros(1))
    assert said.is_said("The sky is\ufffd")
    assert said.tie("The sea is blue") == 0.001
    assert said.tie("The sun") is None  # neither of the two
    assert said.tie("It is") == 3.0
    assert said.tie("The sky") == 0.5  # it ends
    assert said.tie("The sky was") is None
    assert said.tie(None) is None
