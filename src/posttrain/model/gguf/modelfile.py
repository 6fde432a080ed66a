"""An Ollama Modelfile: where the weights are, how a conversation is written, what ends a reply.

Ollama's templates are Go's, not Jinja: they are not translated. What a Jinja template writes between the turns is read off its
renderings, and a Go template that writes the same is kept only where it is proven on other conversations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.encode.template import ChatTemplate, RejectedError
from posttrain.model.lineage import Lineage
from posttrain.types import Message

_MARKS = ("\U000f0001", "\U000f0002", "\U000f0003", "\U000f0004")


@dataclass(frozen=True)
class Turns:
    """What a template writes around the turns of a conversation of user and assistant, with or without a system message."""

    before_system: str | None
    """None = it takes no system message."""
    behind_system: str
    opening: str
    """Before the first question where there is no system message."""
    to_reply: str
    to_question: str
    ending: str
    """Behind the last question: the generation prompt."""

    def render(self, messages: Sequence[Message]) -> str:
        """What the Go template below makes of a conversation that ends with a question."""
        system = messages[0].content if messages[0].role == "system" else None
        turns = messages if system is None else messages[1:]
        text = self.opening if system is None else f"{self.before_system}{system}{self.behind_system}"
        for turn in turns[:-1]:
            text += turn.content + (self.to_reply if turn.role == "user" else self.to_question)
        return text + turns[-1].content + self.ending

    def go(self) -> str:
        """The same as a Go template."""
        plain = self.opening
        opening = (
            plain
            if self.before_system is None
            else f"{{{{ if .System }}}}{self.before_system}{{{{ .System }}}}{self.behind_system}{{{{ else }}}}{plain}{{{{ end }}}}"
        )
        return (
            f"{opening}{{{{ range $i, $turn := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
            f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{{{{ if $last }}}}{self.ending}{{{{ else }}}}{self.to_reply}{{{{ end }}}}'
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{{{{ if not $last }}}}{self.to_question}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}'
        )


def modelfile(lineage: Lineage) -> tuple[str, str | None]:
    """A Modelfile for ``model.gguf`` beside it; and what a user must know of it."""
    template = lineage.template
    turns = read_turns(template)
    lines, note = ["FROM ./model.gguf"], None
    if turns is None:
        note = "this chat template can't be written for Ollama: add a TEMPLATE to the Modelfile unless Ollama knows it"
    else:
        lines.append(f'TEMPLATE """{turns.go()}"""')
    stops = dict.fromkeys(template.tokenizer.decode(list(stop)) for stop in lineage.stops)
    lines += [
        'PARAMETER stop "' + stop.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        for stop in stops
        if stop.strip()
    ]
    return "\n".join(lines) + "\n", note


def read_turns(template: ChatTemplate) -> Turns | None:
    """What a template writes between turns; None where that depends on more than the turns before and after it."""
    system, user, reply, last = _MARKS
    try:
        between = _between(template, [("user", user), ("assistant", reply), ("user", last)])
        assert between is not None
        opening, to_reply, to_question, ending = between
        whole = _between(template, [("system", system), ("user", user), ("assistant", reply), ("user", last)])
        before, behind = (_without_bos(template, whole[0]), whole[1]) if whole is not None else (None, "")
        turns = Turns(before, behind, _without_bos(template, opening), to_reply, to_question, ending)
        talks = [
            [Message("user", "Hi")],
            [
                Message("user", "a b"),
                Message("assistant", "c\n\nd"),
                Message("user", "\u4f60\u597d"),
                Message("assistant", "e."),
                Message("user", "f?"),
            ],
        ]
        if turns.before_system is not None:
            talks += [[Message("system", "Be brief."), *talk] for talk in talks]
        same = all(
            turns.render(talk) == _without_bos(template, template.render(talk, add_generation_prompt=True))
            for talk in talks
        )
    except (RejectedError, AssertionError):
        return None
    odd = any(mark in str(part) for part in turns.__dict__.values() for mark in ("{{", "}}", '"""'))
    return turns if same and not odd else None


def _between(template: ChatTemplate, turns: Sequence[tuple[str, str]]) -> tuple[str, ...] | None:
    """What stands before, between and behind the contents of turns; None where the template refuses them, or leaves one out."""
    try:
        text = template.render([Message(role, mark) for role, mark in turns], add_generation_prompt=True)  # type: ignore[arg-type]
    except RejectedError:
        return None
    found = re.fullmatch("(.*)" + "(.*)".join(mark for _, mark in turns) + "(.*)", text, re.DOTALL)
    return None if found is None else found.groups()


def _without_bos(template: ChatTemplate, text: str) -> str:
    """Ollama puts the first special token before a text by itself where the tokenizer does."""
    tokenizer = template.tokenizer
    first = tokenizer("a")["input_ids"][0]
    return text.removeprefix(str(tokenizer.bos_token)) if first == tokenizer.bos_token_id else text
