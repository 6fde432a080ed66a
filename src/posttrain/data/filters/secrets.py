"""Secrets: private keys, API keys and tokens by the form their issuers give them, passwords in plain sight. Off by default."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from posttrain.data.filters.base import Conversation, Filter, Measurement, at_most


@dataclass(frozen=True, kw_only=True)
class Secrets(Filter):
    """Secrets in any turn."""

    max_found: Annotated[int, Ge(0)] = 0
    """Most finds a row may hold."""
    min_entropy: Annotated[float, Ge(0)] = 3.0
    """A key counts from so many bits of entropy a character; below, it is a placeholder (``xxxx``, ``your_key_here``)."""

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        found = secrets(row.content, self.min_entropy)
        named = ", ".join(f"{kind} {count}" for kind, count in sorted(found.items()))
        yield at_most("secrets.found", found.total(), self.max_found, "secret", named, "finds")


_FORMS: dict[str, re.Pattern[str]] = {
    "private_key": re.compile(
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----\s*(?:[\w-]+:[^\n]*\n\s*)*([A-Za-z0-9+/=\s]{64,})"
    ),
    "aws_key": re.compile(r"(?<![A-Z0-9])((?:AKIA|ASIA)[A-Z2-7]{16})(?![A-Z0-9])"),
    "github_token": re.compile(
        r"(?<!\w)((?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})(?!\w)", re.A
    ),
    "openai_key": re.compile(r"(?<![\w-])(sk-(?:proj-|ant-(?:api\d+-)?|or-)?[A-Za-z0-9_-]{20,})(?![\w-])", re.A),
    "google_key": re.compile(r"(?<![\w-])(AIza[A-Za-z0-9_-]{35})(?![\w-])", re.A),
    "slack_token": re.compile(r"(?<![\w-])(xox[abposr]-[A-Za-z0-9-]{20,})", re.A),
    "stripe_key": re.compile(r"(?<!\w)((?:sk|rk)_live_[A-Za-z0-9]{20,})", re.A),
    "hub_token": re.compile(r"(?<!\w)(hf_[A-Za-z]{30,})(?!\w)", re.A),
    "json_web_token": re.compile(r"(?<![\w-])(eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{16,})", re.A),
    "assigned_key": re.compile(
        r"""(?i:api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token|client[_-]?secret|private[_-]?token)
        ["']?\s*(?:=|:|=>)\s*["']([A-Za-z0-9_\-+/=]{24,})["']""",
        re.X,
    ),
    "address_with_password": re.compile(r"(?<!\w)[a-z][a-z0-9+]{2,15}://[^\s:@/]{1,64}:([^\s:@/]{6,64})@[\w.-]+", re.A),
}
"""Kind -> form; the group is the part that must look random."""
_PLACEHOLDER = re.compile(
    r"(?i)example|your|placeholder|changeme|dummy|sample|redacted|<|\{|\*\*\*|xxxx|password|secret|abcdef|123456|\.\.\."
)


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


def secrets(text: str, min_entropy: float) -> Counter[str]:
    """How often each kind of secret stands in a text."""
    found: Counter[str] = Counter()
    for kind, form in _FORMS.items():
        for match in form.finditer(text):
            found[kind] += not _PLACEHOLDER.search(match[1]) and entropy(match[1]) >= min_entropy
    return +found
