"""The prompts of all pipelines: posttrain's own (en.yaml, zh.yaml), or files of the same form that replace any of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.config import Problem, read_yaml
from posttrain.judge.prompts import fill, places_of
from posttrain.table import did_you_mean

Language = Literal["en", "zh"]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Prompts:
    """Prompts by name, as ``self_instruct.propose``, and lists of words by name."""

    texts: Mapping[str, str]
    words: Mapping[str, tuple[str, ...]]

    def fill(self, name: str, **values: str) -> str:
        """A prompt with its places filled in."""
        return fill(self.texts[name], values)

    def digest(self, name: str) -> str:
        """``name@`` and the first 8 hex digits of the sha256 of the prompt as it stands in its file."""
        return f"{name}@{hashlib.sha256(self.texts[name].encode()).hexdigest()[:8]}"


def load_prompts(language: Language, replaced: str | None) -> Prompts:
    """The prompts of a language, with those that a file of the user's replaces.

    Raises ConfigError with file, line and key: a name there is none of, something else than a text (or a list of words), a place that
    posttrain's own prompt does not have.
    """
    texts, words = _flat(read_yaml(HERE / f"{language}.yaml").value)
    if replaced is None:
        return Prompts(texts, words)
    document = read_yaml(replaced)
    value = document.value if isinstance(document.value, Mapping) else {}
    problems = [] if value else [Problem((), "prompts by name are wanted, as self_instruct: {propose: ...}")]
    own_texts, own_words = _flat(value)
    known = [*texts, *words]
    for name, new in {**own_texts, **own_words}.items():
        at = tuple(name.split("."))
        if name not in known:
            problems.append(Problem(at, f"unknown prompt {name}{did_you_mean(name, known)}"))
        elif isinstance(new, str) != (name in texts):
            problems.append(Problem(at, "a text is wanted" if name in texts else "a list of texts is wanted"))
        elif name in texts and (strange := sorted(places_of(str(new)) - places_of(texts[name]))):
            allowed = ", ".join(sorted(places_of(texts[name]))) or "none"
            problems.append(Problem(at, f"unknown place {{{{{strange[0]}}}}}; known: {allowed}"))
    if problems:
        raise document.error(problems)
    return Prompts(texts | own_texts, words | own_words)


def _flat(value: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    texts: dict[str, str] = {}
    words: dict[str, tuple[str, ...]] = {}
    for pipeline, entries in value.items():
        for name, entry in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(entry, list):
                words[f"{pipeline}.{name}"] = tuple(map(str, entry))
            else:
                texts[f"{pipeline}.{name}"] = entry if isinstance(entry, str) else str(entry)
    return texts, words
