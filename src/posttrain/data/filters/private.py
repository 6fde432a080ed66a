"""What is private: personal data, and secrets by the form their issuers give them. Both are off by default.

Numbers count only where their check digits are right, or where they are written as such a number is written; examples
reserved for documentation (``example.com``, 555-01xx) do not count.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from posttrain.data.filters.base import Conversation, Filter, Measurement, at_most

Personal = Literal["email", "phone", "id_card", "iban", "credit_card"]


@dataclass(frozen=True, kw_only=True)
class Pii(Filter):
    """Personal data in any turn."""

    kinds: Annotated[tuple[Personal, ...], MinLen(1)] = ("email", "phone", "id_card", "iban", "credit_card")
    """What is looked for."""
    max_found: Annotated[int, Ge(0)] = 0
    """Most finds a row may hold."""

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """All kinds together."""
        found = personal_data(row.content, self.kinds)
        yield at_most("pii.found", found.total(), self.max_found, "personal_data", _counts(found), "finds")


@dataclass(frozen=True, kw_only=True)
class Secrets(Filter):
    """Secrets in any turn."""

    max_found: Annotated[int, Ge(0)] = 0
    """Most finds a row may hold."""
    min_entropy: Annotated[float, Ge(0)] = 3.0
    """A key counts from so many bits of entropy a character; below, it is a placeholder (``xxxx``, ``your_key_here``)."""

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """All kinds together."""
        found = secrets(row.content, self.min_entropy)
        yield at_most("secrets.found", found.total(), self.max_found, "secret", _counts(found), "finds")


def _counts(found: Counter[str]) -> str:
    """The kinds that were found, never what: it must not show."""
    return ", ".join(f"{kind} {count}" for kind, count in sorted(found.items()))


# ---- personal data -------------------------------------------------------------------------------------------------


def luhn(digits: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812): every second digit from the right doubled, the sum divisible by 10."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def iban_is_valid(written: str) -> bool:
    """The check digits of an IBAN (ISO 13616): country and check moved behind, letters as 10 to 35, 1 modulo 97."""
    plain = written.replace(" ", "")
    moved = plain[4:] + plain[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def chinese_id_is_valid(number: str) -> bool:
    """The check sign of a Chinese identity card (GB 11643): weights 2^17 ... 2^1 modulo 11 over 17 digits."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _is_email(address: str) -> bool:
    domain = address.rpartition("@")[2].lower()
    labels = domain.split(".")
    reserved = labels[-1] in ("example", "test", "invalid", "localhost") or any(
        label.startswith("example") for label in labels
    )
    return not reserved and not re.match(r"(?:(?:your|my)?(?:domain|email|mail|company)|test|abc|xyz)\.", domain)


def _is_card(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    return len(set(digits)) > 3 and luhn(digits)


def _is_social_security(number: str) -> bool:
    return number not in ("123-45-6789", "078-05-1120", "219-09-9999")


def _is_phone(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    fictional = re.search(r"5550?1\d\d$|^1?(\d)\1{2}5551|555\d{4}$|1234567", digits)
    return not fictional and len(set(digits)) > 3


_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])",
    re.A,
)
_PHONE = re.compile(
    r"""(?<![\w.+-])(?:
      (?:\+?86[\s-]?)?1[3-9]\d(?:\d{8}|[\s-]\d{4}[\s-]\d{4})          # China, mobile
    | 0\d{2,3}-\d{7,8}                                                   # China, landline
    | (?:\+?1[\s.-]?)?(?:\([2-9]\d{2}\)\s?|[2-9]\d{2}[.-])[2-9]\d{2}[\s.-]\d{4}  # North America
    | \+[1-9]\d{0,2}[\s.-]?(?:\(0\))?(?:\d[\s.-]?){7,11}\d               # international
    )(?![\w-])""",
    re.X | re.A,
)
_CHINESE_ID = re.compile(
    r"(?<![\w.-])[1-8]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\w-])", re.A
)
_SOCIAL_SECURITY = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", re.A)
_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w-])", re.A)
_CARD = re.compile(
    r"(?<![\w.+-])(?:[3-6]\d{3}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}|3[47]\d{2}[ -]?\d{6}[ -]?\d{5})(?![\w-])", re.A
)
_FINDERS: tuple[tuple[Personal, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _EMAIL, _is_email),
    ("phone", _PHONE, _is_phone),
    ("id_card", _CHINESE_ID, chinese_id_is_valid),
    ("id_card", _SOCIAL_SECURITY, _is_social_security),
    ("iban", _IBAN, iban_is_valid),
    ("credit_card", _CARD, _is_card),
)


def personal_data(text: str, kinds: tuple[Personal, ...]) -> Counter[str]:
    """How often each kind of personal data stands in a text; a Chinese character beside it is a border like white space."""
    found: Counter[str] = Counter()
    for kind, pattern, is_real in _FINDERS:
        if kind in kinds:
            found[kind] += sum(is_real(match[0]) for match in pattern.finditer(text))
    return +found


# ---- secrets -------------------------------------------------------------------------------------------------------

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
