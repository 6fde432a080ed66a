"""What a prompt asks, without what stands beside it: options, an answer, a passage.

The vector of a text is a mean over its tokens, so a question with four options is far from the question alone. Each text is therefore
compared as a whole, without its options and answer, and by its last question. Measured: docs/data-decontamination.md.
"""

from __future__ import annotations

import re

from posttrain.data.decontaminate.matching import words
from posttrain.data.text import tokens

_LABEL = r"[(（\[]?(?:[A-Ha-h]|[1-9①-⑨])[)）\].、:：．]"
_OPTION_LINE = re.compile(rf"^[ \t]*{_LABEL}[ \t]*\S", re.MULTILINE)
_INLINE = r"(?:(?<=\s)|(?<=[。？?！!:：，,;；]))[(（]?{}[)）.、:：．]\s*\S"
_INLINE_OPTIONS = re.compile(f"{_INLINE.format('A')}.*?{_INLINE.format('B')}", re.DOTALL)
_ANSWER = re.compile(
    r"(?:^|(?<=[\s。？?]))(?:answer|options?|choices?|答案|解答|回答|选项)\s*(?:is|是|为)?\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"""(?<=[.!?])["”’)\]]*\s+|(?<=[。！？；…])["”’」』]*|\n+""")
_LEAST_STEM, _LEAST_QUESTION = 3, 5
"""Words of what stands before options, and of a question inside a text: fewer stand in too many prompts to name one; two CJK
characters count as one word."""
_PASSAGE_WORDS = 60
"""From so many words on a text ends with its question, or with the sentence that is to be completed, also without a mark."""


def segments(text: str) -> tuple[str, ...]:
    """The text, what stands before its options or answer, and the last question in that: those that differ."""
    stem = _stem(text)
    sentences = [sentence for part in _SENTENCE_END.split(stem) if (sentence := part.strip())]
    questions = [sentence for sentence in sentences if sentence[-1] in "?？"]
    if not questions and words(tokens(stem)) >= _PASSAGE_WORDS:
        questions = sentences
    least = ((stem, _LEAST_STEM), *((sentence, _LEAST_QUESTION) for sentence in questions[-1:]))
    parts = [part for part, words_needed in least if words(tokens(part)) >= words_needed]
    return tuple(dict.fromkeys((text, *parts)))


def _stem(text: str) -> str:
    """What stands before the options, and before the answer."""
    answer = _ANSWER.search(text)
    if answer is not None and text[: answer.start()].strip():
        text = text[: answer.start()]
    lines = [found.start() for found in _OPTION_LINE.finditer(text)]
    inline = _INLINE_OPTIONS.search(text)
    if len(lines) > 1:
        text = text[: lines[0]]
    elif inline is not None:
        text = text[: inline.start()]
    return text.strip()
