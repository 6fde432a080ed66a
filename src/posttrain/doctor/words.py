"""What the doctor says, in English and Chinese (``words.yaml``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

import yaml

from posttrain.doctor.findings import Finding, Unknown
from posttrain.errors import ConfigError
from posttrain.table import did_you_mean

Language = Literal["en", "zh"]


@cache
def texts() -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = yaml.safe_load((resources.files("posttrain.doctor") / "words.yaml").read_text("utf-8"))
    return found


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one language. Raises ConfigError for one that is not there."""

    language: str = "en"

    def __post_init__(self) -> None:
        """Refuse a language without words."""
        if self.language not in get_args(Language):
            known = ", ".join(get_args(Language))
            hint = did_you_mean(self.language, get_args(Language))
            raise ConfigError(
                f"the doctor does not speak {self.language!r}{hint}", where="--lang", fix=f"known: {known}"
            )

    def symptom(self, rule: str) -> str:
        """What a rule finds, in a few words."""
        return str(texts()["rules"][rule]["symptom"][self.language])

    def evidence(self, rule: str, found: Finding) -> str:
        """The numbers it was found by."""
        return str(texts()["rules"][rule]["evidence"][self.language]).format(**found.numbers)

    def cause(self, name: str) -> str:
        """A likely cause."""
        return str(texts()["causes"][name][self.language])

    def lacks(self, unknown: Unknown) -> str:
        """What would tell."""
        return str(texts()["needs"][unknown.lacks][self.language])

    def page(self, name: str, **numbers: Any) -> str:
        """A word of the page."""
        return str(texts()["page"][name][self.language]).format(**numbers)


ENGLISH = Words()
