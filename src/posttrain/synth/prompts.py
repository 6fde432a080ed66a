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
MAY_LACK = frozenset({"count", "first", "last", "theme", "aspect", "meaning"})
"""Places that a prompt of the user's may do without."""


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
    problems: list[Problem] = []
    own_texts: dict[str, str] = {}
    own_words: dict[str, tuple[str, ...]] = {}
    sections = {name.partition(".")[0] for name in (*texts, *words)}
    value = document.value if isinstance(document.value, Mapping) else {}
    if not value:
        problems.append(Problem((), "prompts by name are wanted, as self_instruct: {propose: ...}"))
    for section, entries in value.items():
        if section not in sections:
            problems.append(Problem((section,), f"unknown pipeline{did_you_mean(str(section), sections)}"))
        elif not isinstance(entries, Mapping):
            problems.append(Problem((section,), "prompts by name are wanted"))
        else:
            for key, entry in entries.items():
                name, at = f"{section}.{key}", (section, key)
                if name in texts and isinstance(entry, str) and entry.strip():
                    own_texts[name] = entry
                    problems += [Problem(at, text) for text in _places_wrong(entry, texts[name])]
                elif name in words and isinstance(entry, list) and all(isinstance(one, str) for one in entry):
                    own_words[name] = tuple(entry)
                elif name in texts or name in words:
                    problems.append(Problem(at, "a text is wanted" if name in texts else "a list of texts is wanted"))
                else:
                    problems.append(Problem(at, f"unknown prompt {name}{did_you_mean(name, [*texts, *words])}"))
    if problems:
        raise document.error(problems)
    return Prompts(texts | own_texts, words | own_words)


def _places_wrong(text: str, own: str) -> list[str]:
    """What is wrong with the places of a prompt that stands for posttrain's own."""
    places, known = places_of(text), places_of(own)
    strange = [
        f"unknown place {{{{{name}}}}}; known: {', '.join(sorted(known)) or 'none'}" for name in sorted(places - known)
    ]
    return strange + [f"has no place {{{{{name}}}}}" for name in sorted(known - places - MAY_LACK)]


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
