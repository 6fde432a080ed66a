"""A Modelfile's Go template writes what the Jinja template writes, or there is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export.micro import gpt2_tokenizer, micro_chat_model
from posttrain.encode.template import ChatTemplate
from posttrain.model.gguf.modelfile import modelfile, read_turns
from posttrain.model.lineage import Lineage
from posttrain.types import Message

TEMPLATES = Path(__file__).parents[1] / "encode" / "templates"
TALK = [
    Message("system", "Be brief."),
    Message("user", "One?"),
    Message("assistant", "Two."),
    Message("user", "Three\n\nfour?"),
]


def template(name: str) -> ChatTemplate:
    return ChatTemplate(gpt2_tokenizer(), (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), name)


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr", "phi3"])
def test_turns_are_read_off_renderings(name: str) -> None:
    found, turns = template(name), read_turns(template(name))
    assert turns is not None
    for talk in (TALK[1:], TALK[1:2], *([TALK, [TALK[0], TALK[1]]] if turns.before_system is not None else [])):
        assert go(turns.go(), talk) == found.render(talk, add_generation_prompt=True).removeprefix(
            str(found.tokenizer.bos_token) if turns.opening == "" else ""
        )


def go(text: str, talk: list[Message]) -> str:
    """The few words of Go's templates that are used, as Go reads them."""
    system = next((turn.content for turn in talk if turn.role == "system"), "")
    head, body = text.split("{{ range $i, $turn := .Messages }}")
    if (
        chosen := re.fullmatch(r"\{\{ if \.System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}", head, re.DOTALL)
    ) is not None:
        head = chosen[1].replace("{{ .System }}", system) if system else chosen[2]
    inside = re.fullmatch(
        r'\{\{ \$last := .*? \}\}\{\{ if eq \.Role "user" \}\}\{\{ \.Content \}\}\{\{ if \$last \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}'
        r'\{\{ else if eq \.Role "assistant" \}\}\{\{ \.Content \}\}\{\{ if not \$last \}\}(.*?)\{\{ end \}\}\{\{ end \}\}\{\{ end \}\}',
        body,
        re.DOTALL,
    )
    assert inside is not None
    for turn in (turn for turn in talk if turn.role != "system"):
        head += turn.content
        head += inside[3] if turn.role == "assistant" else inside[1] if turn is talk[-1] else inside[2]
    return head


@pytest.mark.parametrize("name", ["qwen3", "forgetful"])
def test_a_template_that_changes_earlier_turns_has_none(name: str) -> None:
    turns = read_turns(template(name))
    if turns is not None:  # then it writes the same in all of these
        for talk in (TALK, TALK[1:]):
            assert go(turns.go(), talk) == template(name).render(talk, add_generation_prompt=True)


def test_the_file(tmp_path: Path) -> None:
    text, note = modelfile(Lineage(micro_chat_model("llama", tmp_path)))
    assert note is None
    assert text.splitlines()[0] == "FROM ./model.gguf"
    assert 'PARAMETER stop "<|end|>"' in text
