"""What a judge says itself, and what it only quotes: marks such as ``[[A]]`` in code, quotation marks, instructions and conditions.

A reply may repeat the format it was asked for, show a mark in code, or say when it would have given one. None of these is a
verdict. `said` blanks such marks, so that a parser finds only what is meant. It knows English and Chinese phrases and no meaning;
where it errs, a verdict should be missing rather than wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

_OPENING = r"[\s\"'`“”‘「『*_(（:：,，]*$"
"""What may stand between a phrase and the mark it is about."""


def _pattern(before: str, phrases: str, after: str) -> re.Pattern[str]:
    """Any of the phrases (separated by ``|``, spaces as they are), between two patterns."""
    return re.compile(before + "(?:" + phrases + ")" + after, re.IGNORECASE)


_FENCE = re.compile(r"^[ ]{0,3}(```|~~~)[^\n]*\n.*?(?:^[ ]{0,3}\1[ ]*$|\Z)", re.MULTILINE | re.DOTALL)
_BLOCK_QUOTE = re.compile(r"^[ ]{0,3}>(?!>).*$", re.MULTILINE)
_QUOTED = re.compile(
    r"`[^`\n]*`|\"[^\"\n]*\"|“[^“”\n]*”|「[^「」\n]*」|『[^『』\n]*』|«[^«»\n]*»|‘[^‘’\n]*’|(?<!\w)'[^'\n]*'(?!\w)"
)
_DECIDES = _pattern(
    "",
    r"\b(?:rate|judge|score)[ds]?\b[^.\n]*\bas follows|verdict|judge?ment|decision|conclusion|choice|answer|rating|grade|score|label|winner|better|say|choose|pick|prefer"
    "|结论|判断|裁决|判定|裁定|选择|选|评分|打分|得分|分数|结果|答案|判决|评级|标签",
    r"\s*(?:(?:of|for)\s[^.\n]{1,40})?(?:is|are|(?:should|must|would) be|应?该?为|应?该?是)?[\s:：*_]*$",
)
"""What leads up to a verdict that somebody put in quotation marks: ``My verdict is: "[[A]]"``."""
_SENTENCE_END = re.compile(r"(?<=[.!?;])(?=[\s\"')*_])|(?<=[。！？；])|\n+")
_CONDITION = _pattern(
    r"^[\W\d_]*(?:(?:and|but|or|so|then)\s)?",
    r"(?:if|when|whenever|unless|in case|were it not|had it not|should (?:assistant|answer|response|reply|the|both|they))\b"
    r"(?! (?:i|one|we) (?:had|have|must|were|was|am|need))|[^\[【]{0,12}(?:如果|若(?!干)|假如|要是|倘若|假设|除非|(?<![相应适恰正妥担])当(?!然|前|今))",
    "",
)
"""How a sentence begins that says when a mark would be given. ``If I had to choose, [[A]]`` chooses."""
_CONDITION_AFTER = _pattern(
    r"^[\s\"'`”’」』*_),，:：-]*(?:only )?",
    r"(?:if|when|whenever|unless|in case|provided|where|had (?:it|they|the)|were (?:it|they)|for a tie|means|stands for|indicates|denotes)\b"
    r"|如果|若|当|表示|代表|意味|指的是|是指",
    "",
)
_INSTRUCTION = _pattern(
    "",
    r"\b(?:formats?|examples?|e\.g\.?|such as|for instance|like|template|placeholder)"
    r"|格式|例如|比如|例子|示例|譬如|形如|之一|模板",
    r"(?:\s(?:output|of|is|are|was|that|this|given|should be|would be))*(?:为|是)?" + _OPENING,
)
_EXAMPLE = _pattern(
    "", r"\b(?:example output|for example|example|format|e\.g\.)|格式|示例|例如", r"\s*[:：][^.!?。\n]{0,60}$"
)
_DENIED = _pattern(
    "",
    r"\b(?:not|never|rather than|instead of)|n['’]t"
    r"|\b(?:(?:ca|wo|do|does|would|could|should)n['’]t|(?:can|do|does|will|would|could|should) not|cannot|refuse to|decline to|unable to)"
    r"(?! help but)(?:\s\w+)?"
    r"\s(?:choose|pick|select|say|output|give|award|write|justify|accept|support)(?: (?:it|this|a|the|verdict|of))*"
    r"|不是|而非|而不是|并非|不应是?|不该是?|(?:不会?|不能|不应该?|不该|不想|无法|没法|拒绝)(?:选择?|输出|给出|写|判|说)",
    _OPENING,
)
_REPORTED = _pattern(
    r"(?:(?:assistant|response|answer|reply|replies|user|prompt|instruction|question|system|text|task)s?\b"
    r"|助手|回答|回复|用户|提示词?|指令|题目|任务|系统)[^.!?。！？\n,，]{0,60}?",
    r"\b(?:says?|said|saying|writes?|wrote|asks?|asked|asking|tells?|told|claims?|states?|stated|requires?|contains?|includes?|ends with"
    r"|quotes?|instructs?|demands?|wants?|mentions?)\b|写|说|让|声称|提到|要求|包含",
    r"(?:\s?(?:me|us|to|that|the|a|an|judges?|evaluators?|graders?|readers?|users?|output|give|write|choose|pick|answer|reply|respond|return|is|with|verdict|final|for|我|裁判|评委|输出|给出|回答|选择?|写|出))*"
    + _OPENING,
)
"""Somebody else's words: ``Assistant B tells me to output [[B]]``."""
_JOINED = re.compile(r"[\s\"'`“”「」*,，、/|]*(?:(?:and|or|nor|&|或者?|和|与|以及)[\s\"'`“”「」*]*)?")
_ALL_LABELS = 3
"""So many different marks together are the labels to choose from, not a choice."""
_ASKED = re.compile(r"^[^\[【\n]*[?？][\s\"'”」*_]*$")


def said(text: str, mark: re.Pattern[str]) -> str:
    r"""The text with spaces for every mark that is not said; places and lines stay as they are.

    >>> bracket = re.compile(r"\[\[[ABC]\]\]")
    >>> said('My verdict: **[[B]]**, though it would be [[A]] if it were shorter.', bracket)
    'My verdict: **[[B]]**, though it would be       if it were shorter.'
    >>> said('I was told to write "[[C]]" for a tie.', bracket)
    'I was told to write "     " for a tie.'
    """
    marks = list(mark.finditer(text))
    if not marks or mark.fullmatch(text.strip("`~\"'“”‘’「」『』*_>. \n")):  # nothing else stands there
        return text
    blank = [found.span() for found in _FENCE.finditer(text) if not _decides_alone(text, found, mark)]
    blank += [found.span() for found in _BLOCK_QUOTE.finditer(text)]
    blank += [found.span() for found in _QUOTED.finditer(text) if not _DECIDES.search(text[: found.start()][-80:])]
    blank += [one.span() for one in marks if _only_mentioned(text, *one.span())]
    blank += [one.span() for one in _legend(text, marks)]
    only = {one.span() for one in marks if any(one.start() < right and left < one.end() for left, right in blank)}
    neighbours = [*pairwise(marks), *((two, one) for one, two in reversed([*pairwise(marks)]))]
    for one, other in neighbours:  # "[[A]], [[B]] or [[C]]" is quoted as a whole
        if one.span() in only and _JOINED.fullmatch(
            text[min(one.end(), other.end()) : max(one.start(), other.start())]
        ):
            only.add(other.span())
    for line in _of_lines(text, marks):  # so is a line with all the labels
        if len({one[0] for one in line}) >= _ALL_LABELS and any(one.span() in only for one in line):
            only.update(one.span() for one in line)
    for start, end in only:
        text = text[:start] + " " * (end - start) + text[end:]
    return text


def _decides_alone(text: str, fence: re.Match[str], mark: re.Pattern[str]) -> bool:
    """Whether a fenced text at the end of a reply holds a mark and nothing else: the verdict, set off."""
    body = fence[0].strip("`~ \n").removeprefix("text\n").strip()
    return mark.fullmatch(body) is not None and not text[fence.end() :].strip()


def _only_mentioned(text: str, start: int, end: int) -> bool:
    """Whether the sentence around a mark makes it a condition, an example, a denial, a question or somebody else's words."""
    cuts = [0, *(cut.end() for cut in _SENTENCE_END.finditer(text)), len(text)]
    before = text[max(cut for cut in cuts if cut <= start) : start]
    after = text[end : min(cut for cut in cuts if cut >= end)]
    leads = (_CONDITION, _INSTRUCTION, _EXAMPLE, _DENIED, _REPORTED)
    return any(lead.search(before) for lead in leads) or bool(_CONDITION_AFTER.search(after) or _ASKED.search(after))


def _legend(text: str, marks: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Three lines or more in a row, each with one mark and all different: the labels and what they mean, repeated."""
    found: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for line in [*_of_lines(text, marks), []]:
        if len(line) == 1:
            run += line
        else:
            found += run if len(run) >= _ALL_LABELS and len({one[0] for one in run}) == len(run) else []
            run = []
    return found


def _of_lines(text: str, marks: Sequence[re.Match[str]]) -> Iterator[list[re.Match[str]]]:
    """The marks of every line that is not empty."""
    place = 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            yield [one for one in marks if place <= one.start() < place + len(line)]
        place += len(line)


def answer_part(reply: str) -> str:
    """The reply without its thinking: what follows the last ``</think>``; nothing, where the thinking never ended.

    >>> answer_part("<think>2 + 2</think> 4 ")
    '4'
    >>> answer_part("<think>2 + 2, so the answer is 4")
    ''
    """
    _, closed, after = reply.rpartition("</think>")
    if closed:
        return after.strip()
    return "" if "<think>" in reply else reply.strip()
