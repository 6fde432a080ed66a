"""Text that repeats itself: runs of punctuation, the same lines again, the same n-grams again (a decoder in a loop)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from posttrain.data.filters.base import Conversation, Filter, Measurement, at_most, excerpt


@dataclass(frozen=True, kw_only=True)
class Repetition(Filter):
    """Repetition in the prose of the assistant, code left out."""

    max_punctuation_run: Annotated[int, Ge(0)] | None = 20
    """Longest run of one sentence sign (``!!!!``, ``。。。。``); null: any."""
    max_line_share: Annotated[float, Ge(0), Le(1)] | None = 0.7
    """Largest share of lines that stood before, where there are ``min_lines``; null: any."""
    min_lines: Annotated[int, Ge(1)] = 8
    """Fewest lines for which the share means something."""
    ngram: Annotated[int, Ge(1)] = 5
    """Length of the n-grams in comparison tokens."""
    max_ngram_share: Annotated[float, Ge(0), Le(1)] | None = 0.7
    """Largest share of n-grams that stood before, where there are ``min_tokens``; null: any."""
    min_tokens: Annotated[int, Ge(1)] = 50
    """Fewest tokens for which the share means something."""

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        prose = row.assistant_parts.prose
        run = longest_run(prose)
        most, found = self.max_punctuation_run, excerpt(run, 20)
        yield at_most("repetition.punctuation", len(run), most, "repeated_punctuation", found, "signs in a row")
        lines = [line.strip() for line in prose.split("\n") if _WORD.search(line)]
        many = len(lines) >= self.min_lines
        share = share_seen_before(lines) if many else 0.0
        over = self.max_line_share is not None and share > self.max_line_share
        often = excerpt(Counter(lines).most_common(1)[0][0]) if over else ""
        unit = "of the lines stood before"
        yield at_most("repetition.lines", share, self.max_line_share, "repeated_lines", often, unit)
        words = row.assistant_tokens
        looping = len(words) >= self.min_tokens and not row.assistant_parts.code_characters
        grams = [*zip(*(words[start:] for start in range(self.ngram)), strict=False)] if looping else []
        share, unit = share_seen_before(grams), f"of the {self.ngram}-grams stood before"
        yield at_most("repetition.ngrams", share, self.max_ngram_share, "repeated_ngrams", unit=unit)


_RUN = re.compile(r"([!?,;~.。！？，；～…])\1+")
_WORD = re.compile(r"[^\W_]")


def longest_run(text: str) -> str:
    """The longest run of one sentence sign; empty where none stands twice."""
    return max((match[0] for match in _RUN.finditer(text)), key=len, default="")


def share_seen_before(parts: Sequence[object]) -> float:
    """The share of parts equal to an earlier one; 0 for none."""
    return 1 - len(set(parts)) / len(parts) if parts else 0.0
