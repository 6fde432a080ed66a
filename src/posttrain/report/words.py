"""The pieces that sentences are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from posttrain.report import numbers

FEW_ROWS = 30
"""Below this many rows a bootstrap interval tends to be too narrow, which the report says."""

VERDICT_TEXT: dict[str, str] = {
    "improved": "improved",
    "worse": "worse",
    "differs": "difference shown",
    "not shown": "no difference shown",
}


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 row``, ``1,999 rows``."""
    return f"{numbers.count(number)} {one if number == 1 else many or one + 's'}"


def join(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def counted(numbers_of_models: Iterable[int], one: str) -> str:
    """``80 prompts``, ``78 to 80 prompts`` where models differ; nothing of nothing."""
    found = sorted(set(numbers_of_models))
    if not found:
        return ""
    most = plural(found[-1], one)
    return most if len(found) == 1 else f"{found[0]:,} to {most}"


def reasons(numbers_by_reason: Mapping[str, int]) -> str:
    """``timeout 3, judge: parse 1``, the most frequent first."""
    ordered = sorted(numbers_by_reason.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {number:,}" for reason, number in ordered if number)


MARKS = {**VERDICT_TEXT, "improved": "better", "differs": "differs"}
"""A verdict beside a number."""
LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pt": "Portuguese",
    "ru": "Russian",
    "zh": "Chinese",
}


def word_of(kind: str) -> str:
    """Return what a mark says: the words of a verdict, otherwise its own."""
    return VERDICT_TEXT.get(kind, kind)
