"""Evaluation prompts: posttrain's own (prompts.yaml beside this file), or a user's file of the same form.

::

    knowledge:            # and rewriting, reasoning
      - id: capital-of-france
        language: en
        prompt: What is the capital of France?
        check: {kind: contains_any, expected: [Paris]}   # optional
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from annotated_types import MinLen

from posttrain.artifacts import plain
from posttrain.config import ConfigPath, Document, Problem, build, parse_yaml, read_yaml
from posttrain.errors import ConfigError
from posttrain.generate.engine import Sampling
from posttrain.tasks.base import Needs, Point, Score, Task, Unscored
from posttrain.tasks.checks import CHECKS, Check, passes, wanted
from posttrain.tasks.records import Area, Measure, Remark

PromptClass = Literal["knowledge", "rewriting", "reasoning"]
BUILTIN = Path(__file__).with_name("prompts.yaml")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One prompt as a file writes it."""

    id: Annotated[str, MinLen(1)]
    """Unique in the file; names the prompt in prompts.rows.jsonl."""
    language: Literal["en", "zh"]
    prompt: Annotated[str, MinLen(1)]
    """The user turn, sent as it is."""
    check: Check | None = None
    """How a reply is judged; null = replies are not judged."""


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Prompts by class."""

    knowledge: tuple[Entry, ...] = ()
    """Questions about facts."""
    rewriting: tuple[Entry, ...] = ()
    """A text to be changed in a stated way."""
    reasoning: tuple[Entry, ...] = ()
    """Problems to be solved step by step."""


@dataclass(frozen=True, kw_only=True)
class Prompt(Entry):
    """One evaluation prompt with its class."""

    prompt_class: PromptClass


@dataclass(frozen=True, kw_only=True)
class FixedPrompts:
    """Greedy replies to fixed prompts, checked where a prompt says what a right reply looks like."""

    title: ClassVar[str] = "Checked answers"
    area: ClassVar[Area] = "prompts"
    needs: ClassVar[Needs] = Needs()

    name: Literal["prompts"] = "prompts"
    path: str
    """``builtin`` or a YAML file of the same form."""
    max_tokens: int
    """Longest reply in tokens."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The share of right replies."""
        return (
            Measure(
                "accuracy", "Right answers", "share", "higher", "Share of checked replies that pass.", headline=True
            ),
        )

    def tasks(self) -> tuple[Task, ...]:
        """One task a prompt. Raises ConfigError as `load_prompts`."""
        sampling = Sampling(max_tokens=self.max_tokens)
        return tuple(
            Task(p.id, (p.prompt,), sampling, category=p.prompt_class, language=p.language, expected=p.check)
            for p in load_prompts(self.path)
        )

    def score(self, task: Task, reply: str) -> Score | Unscored:
        """Whether a reply passes the check of its prompt."""
        check: Check | None = task.expected
        if check is None:
            return Unscored("no check", Remark("not checked"))
        passed = passes(check, reply)
        remark = Remark("right" if passed else "wrong", passed, f"Check: {wanted(check)}")
        return Score((Point("accuracy", float(passed), task.category),), remark)


def load_prompts(source: str | Path = "builtin") -> tuple[Prompt, ...]:
    """The prompts of a file, in its order; ``builtin`` is posttrain's own.

    Raises:
        ConfigError: names file, line and entry of everything that is wrong.

    """
    document = read_yaml(BUILTIN if source == "builtin" else source)
    file = build(PromptFile, document)
    entries: list[tuple[ConfigPath, PromptClass, Entry]] = [
        ((prompt_class, index), prompt_class, entry)
        for prompt_class in get_args(PromptClass)
        for index, entry in enumerate(getattr(file, prompt_class))
    ]
    problems = repeated_ids(document, [(path, entry.id) for path, _, entry in entries])
    prompts: list[Prompt] = []
    for path, prompt_class, entry in entries:
        try:
            check = entry.check and _checked(entry.check, document, (*path, "check"))
        except ConfigError as error:
            raise ConfigError(f"{error.problem} (prompt {entry.id!r})", where=error.where, fix=error.fix) from None
        prompts.append(Prompt(**vars(entry) | {"check": check}, prompt_class=prompt_class))
    if not prompts:
        problems.append(Problem((), "there are no prompts in this file"))
    if problems:
        raise document.error(problems)
    return tuple(prompts)


def repeated_ids(document: Document, entries: Iterable[tuple[ConfigPath, str]]) -> list[Problem]:
    """A problem for every entry, given with its path, whose id is that of one before."""
    first: dict[str, ConfigPath] = {}
    problems = []
    for path, name in entries:
        if name in first:
            line = document.place((*first[name], "id"))
            problems.append(Problem((*path, "id"), f"{name!r} is the id of another prompt (line {line})"))
        first.setdefault(name, path)
    return problems


def settled_check(check: Check, where: str) -> Check:
    """A check whose ``expected`` has the form its function takes. Raises ConfigError that names ``where``."""
    return _checked(check, parse_yaml(json.dumps(plain(check)), where), ())


def _checked(check: Check, document: Document, path: ConfigPath) -> Check:
    """The check with ``expected`` in the form its function takes, or a ConfigError at the place where it is not."""
    try:
        function = CHECKS[check.kind]
    except ConfigError as error:
        raise document.error([Problem((*path, "kind"), f"{error.problem}; {error.fix}")]) from None
    where = (*path, "expected")
    annotation: Any = get_type_hints(function, include_extras=True)["expected"]
    expected: Any = build(annotation, document, where)
    if check.kind == "matches_regex":
        try:
            re.compile(expected)
        except re.error as error:
            raise document.error([Problem(where, f"this is no regular expression: {error}")]) from None
    if check.kind == "all_of":
        expected = tuple(_checked(part, document, (*where, index)) for index, part in enumerate(expected))
    return replace(check, expected=expected)
