"""Judge prompts: posttrain's own (en.yaml, zh.yaml), or a file of the same form, filled in for one item."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from posttrain.config import Document, Problem, build, read_yaml
from posttrain.errors import ConfigError
from posttrain.judge.config import JudgePrompt, JudgePrompts, JudgeTask
from posttrain.judge.items import Item
from posttrain.judge.parsers import PARSERS
from posttrain.table import did_you_mean

Language = Literal["en", "zh"]
KINDS: dict[JudgeTask, tuple[str, ...]] = {
    "pair": ("pair", "binary", "five"),
    "single": ("single", "rubric"),
    "label": ("refusal",),
}
"""The judges posttrain brings, by task."""

_PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_LINE = re.compile(r"^\{\{\s*(\w+)\s*\}\}\n?", re.MULTILINE)
_ALL = frozenset({"question", "reference", "emphasis", "criteria"})
_PLACES = {
    "pair": _ALL | {"reply_a", "reply_b", "conversation_a", "conversation_b"},
    **dict.fromkeys(("single", "label"), _ALL | {"reply", "conversation"}),
}


def load_prompt(kind: str, task: JudgeTask, language: Language = "en") -> JudgePrompt:
    """The prompt of a judge: one of posttrain's kinds (`KINDS`), or a YAML file (a name that ends in .yaml or .yml).

    Raises:
        ConfigError: an unknown kind, or file, line and key of what is wrong in the file, also where the judge is for the other task.

    """
    if kind.endswith((".yaml", ".yml")):
        document = read_yaml(kind)
        prompt = build(JudgePrompt, document)
    elif kind in KINDS[task]:
        document = read_yaml(Path(__file__).with_name(f"{language}.yaml"))
        prompt = getattr(build(JudgePrompts, document), kind)
    else:
        raise ConfigError(
            f"unknown judge {kind!r} for this task{did_you_mean(kind, KINDS[task])}",
            where="--prompt",
            fix=f"known: {', '.join(KINDS[task])}, or a YAML file",
        )
    _check(prompt, document, task)
    return prompt


def _check(prompt: JudgePrompt, document: Document, task: str) -> None:
    if prompt.task != task:
        raise document.error([Problem(("task",), f"this judge is for {prompt.task}, {task} is asked for")])
    try:
        parser = PARSERS[prompt.parser]
    except ConfigError as error:
        raise document.error([Problem(("parser",), f"{error.problem}; {error.fix}")]) from None
    problems = []
    if parser.task != prompt.task:
        problems.append(Problem(("parser",), f"{prompt.parser} reads a {parser.task} reply, the task is {prompt.task}"))
    allowed = _PLACES[prompt.task]
    for key in ("prompt", "later_turn_prompt", "system"):
        for name in _PLACE.findall(getattr(prompt, key) or ""):
            if name not in allowed:
                hint = did_you_mean(name, allowed) or f"; known: {', '.join(sorted(allowed))}"
                problems.append(Problem((key,), f"unknown place {{{{{name}}}}}{hint}"))
    if strange := [name for name in _PLACE.findall(prompt.reference or "") if name != "reference"]:
        problems.append(Problem(("reference",), f"unknown place {{{{{strange[0]}}}}}; known: reference"))
    wanted = _replies(prompt.task)
    if not any(_shows(prompt.system + prompt.prompt, names) for names in wanted):
        problems.append(Problem(("prompt",), f"the replies are not shown: {' or '.join(map(str, wanted))}"))
    if (parser.task == "label") != bool(prompt.labels):
        wrong = "this parser needs labels" if parser.task == "label" else f"{prompt.parser} reads no labels"
        problems.append(Problem(("labels",), wrong))
    if len({label.casefold() for label in prompt.labels}) < len(prompt.labels):
        problems.append(Problem(("labels",), "a label stands twice"))
    if prompt.highest <= prompt.lowest:
        problems.append(Problem(("highest",), f"must be above lowest ({prompt.lowest:g})"))
    if problems:
        raise document.error(problems)


def _replies(task: str) -> tuple[tuple[str, ...], ...]:
    if task == "pair":
        return ("reply_a", "reply_b"), ("conversation_a", "conversation_b")
    return ("reply",), ("conversation",)


def _shows(text: str, names: tuple[str, ...]) -> bool:
    return set(names) <= places_of(text)


def check_fits(prompt: JudgePrompt, *, later_turns: bool, emphasis: bool, criteria: str) -> None:
    """Refuse what the prompt has no place for, before anything is spent.

    Raises:
        ConfigError: several turns, an emphasised variant or criteria that the prompt can't show, or criteria that it needs.

    """
    text = prompt.system + prompt.prompt
    if later_turns and prompt.later_turn_prompt is None and not _shows(text, _replies(prompt.task)[1]):
        raise ConfigError(
            "there are items with several turns, and this judge's prompt shows one turn only",
            where="later_turn_prompt",
            fix="write a later_turn_prompt with the conversation, or judge one turn",
        )
    if emphasis and (prompt.emphasis is None or not _shows(text, ("emphasis",))):
        raise ConfigError("this judge has no emphasised variant", where="emphasis", fix="use --emphasis no")
    if bool(criteria.strip()) != _shows(text, ("criteria",)):
        problem = "this judge's prompt has no place for criteria" if criteria.strip() else "this judge needs criteria"
        raise ConfigError(problem, where="--criteria", fix="use --prompt rubric --criteria TEXT (or a text file)")


def fill(template: str, values: Mapping[str, str]) -> str:
    r"""A template with its places filled in one pass; a line that is nothing but an empty place is left out.

    >>> fill("Q: {{question}}\n{{reference}}\nEnd", {"question": "why {{x}}?", "reference": ""})
    'Q: why {{x}}?\nEnd'
    """
    whole = _LINE.sub(lambda found: "" if not values[found[1]] else found[0], template)
    return _PLACE.sub(lambda found: values[found[1]], whole).strip()


def places_of(template: str) -> set[str]:
    """The names of a template's places."""
    return set(_PLACE.findall(template))


def messages_text(
    prompt: JudgePrompt, item: Item, turn: int, *, swapped: bool, reference: bool, emphasis: bool, criteria: str
) -> tuple[str, str]:
    """The system message (may be empty) and the user message for one turn (from 1) of an item.

    ``swapped``: b is shown first. ``reference``: show the item's reference answer of this turn, if it has one.
    """
    answer = item.references[turn - 1] if reference and item.references else ""
    values = {
        "question": item.turns[turn - 1],
        "reference": fill(prompt.reference or "{{reference}}", {"reference": answer}) + "\n" if answer else "",
        "emphasis": (prompt.emphasis or "").strip() if emphasis else "",
        "criteria": criteria.strip(),
    }
    if prompt.task != "pair":
        values |= {"reply": item.replies_a[turn - 1], "conversation": _conversation(prompt, item, item.replies_a, turn)}
    else:
        sides = (item.replies_b, item.replies_a) if swapped else (item.replies_a, item.replies_b)
        for letter, replies in zip("ab", sides, strict=True):
            values[f"reply_{letter}"] = replies[turn - 1]
            values[f"conversation_{letter}"] = _conversation(prompt, item, replies, turn)
    template = prompt.later_turn_prompt if turn > 1 and prompt.later_turn_prompt is not None else prompt.prompt
    return fill(prompt.system, values), fill(template, values)


def _conversation(prompt: JudgePrompt, item: Item, replies: tuple[str, ...], turn: int) -> str:
    turns = zip(item.turns[:turn], replies[:turn], strict=True)
    return "\n\n".join(f"### {prompt.user_heading}:\n{q}\n\n### {prompt.assistant_heading}:\n{r}" for q, r in turns)


LANGUAGES: tuple[Language, ...] = get_args(Language)
