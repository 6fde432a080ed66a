"""The generated table of docs/doctor.md: every rule with what it finds, when, on whose word, and what it names as causes."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from posttrain.doctor.findings import Rule
from posttrain.doctor.rules import OF_EVALUATION, OF_JUDGES, OF_ONLINE, OF_TRAINING
from posttrain.doctor.words import ENGLISH


def markdown() -> str:
    """One row a rule."""
    lines = ["| rule | symptom | found when | source | causes it may name |", "|---|---|---|---|---|"]
    rules: dict[str, Rule[Any]] = {**OF_TRAINING, **OF_ONLINE, **OF_EVALUATION, **OF_JUDGES}
    for name, rule in rules.items():
        causes = "; ".join(ENGLISH.cause(cause).partition(":")[0] for cause in causes_of(rule.examine))
        lines.append(f"| `{name}` | {ENGLISH.symptom(name)} | {rule.threshold} | {rule.source} | {causes} |")
    return "\n".join(lines)


def causes_of(examine: Callable[..., Any]) -> list[str]:
    """The names of the causes in a rule and in the functions of this room that it calls, in the order of the text."""
    return list(dict.fromkeys(_named(examine, set())))


def _named(function: Callable[..., Any], seen: set[str]) -> Iterator[str]:
    seen.add(function.__name__)
    module = sys.modules[function.__module__]
    calls = [
        node for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))) if isinstance(node, ast.Call)
    ]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        if not isinstance(call.func, ast.Name):
            continue
        if call.func.id == "Cause":
            yield from (str(one.value) for one in ast.walk(call.args[0]) if isinstance(one, ast.Constant))
        called = getattr(module, call.func.id, None)
        if (
            inspect.isfunction(called)
            and called.__module__.startswith("posttrain.doctor.")
            and called.__name__ not in seen
        ):
            yield from _named(called, seen)
