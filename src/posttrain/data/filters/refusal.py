"""Answers that refuse, or speak of being a language model instead of answering."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from posttrain.data.filters.base import Conversation, Filter, Measurement, at_most, excerpt


@dataclass(frozen=True, kw_only=True)
class Refusal(Filter):
    """Stock refusals at the beginning of an assistant turn, English and Chinese. Turn it off for safety data."""

    max_turns: Annotated[int, Ge(0)] = 0
    """Most assistant turns that refuse."""
    with_tools: bool = False
    """Also where tools are offered; there, to say that none of them fits is right."""

    replies = "wanted"

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        found = [words for words in map(refusal, row.assistant) if words]
        limit = self.max_turns if self.with_tools or not row.tools else None
        yield at_most("refusal.turns", len(found), limit, "refusal", excerpt(found[0]) if found else "", "turns")


_HEAD = 240
"""A refusal shows within so many characters."""
_SELF = r"(?:an?\s+)?(?:(?:ai|artificial\s+intelligence)(?:[\s-]+(?:(?:large\s+)?language|text|chat))?(?:[\s-]*(?:model|assistant|system|program|chatbot|bot))?|(?:large\s+)?language\s+model|(?:text|chat)[\s-]?bot)\b"
_CANT = r"(?:can\s?not|can[’']?t|(?:am|[’']m)\s+(?:currently\s+)?(?:unable|incapable|not\s+(?:able|allowed|programmed|capable|designed|equipped))|won[’']t|will\s+not|could\s?n[o’']t)"
_LACK = rf"(?:{_CANT}|do\s+not|don[’']t|unable|not\s+(?:able|capable|possible)|lack|no\s+(?:access|ability))"
_VERBS = (
    "assist|help|fulfil+|provide|comply|engage|create|generate|support|answer|discuss|participate|offer|write|give|share|continue|"
    "do|perform|complete|process|access|browse|produce|respond|promote|encourage|condone|teach|tell|book|order|open|view|see|"
    "draw|retrieve|predict|estimate|determine|execute|make"
)
_ENGLISH = re.compile(
    rf"""
      (?:^|[.!?\n]\s*|sorry,?\s+(?:but\s+)?|unfortunately,?\s+|however,?\s+)"?
      (?:as\s+{_SELF}|(?:(?:since|because)\s+)?i(?:[’']m|\s+am)\s+(?:(?:just|only|merely|simply)\s+)?{_SELF})[^.!?\n]{{0,100}}?\b{_LACK}\b
    | ^\W*(?:(?:i[’']m\s+|i\s+am\s+)?(?:(?:very|so|really|truly)\s+)?(?:sorry|afraid)|i\s+apologi[sz]e|(?:my\s+)?apologies|unfortunately)\b[^.!?\n]{{0,40}}\bi\s*{_CANT}\s+(?:(?:to|of|directly|actually)\s+)?(?:{_VERBS})
    | ^\W*(?:no\W+)?i\s*{_CANT}\s+(?:to\s+)?(?:assist|help|fulfil+|comply|provide|engage|generate|create|support|participate|condone|promote)\b
    """,
    re.I | re.X,
)
_CHINESE_SELF = (
    "(?:人工智能|ＡＩ|AI|大型|文本|聊天|虚拟|自然)?(?:语言|聊天|文本)?(?:AI|模型|助手|助理|程序|机器人|系统|人工智能)"
)
_CHINESE = re.compile(
    rf"""
      (?:^|[。！？\n，,：:]\W*)(?:由于|因为)?(?:我)?(?:作为|(?:只|仅仅)?是)(?:一个|一名|一款|一种|个)?{_CHINESE_SELF}[^。！？\n]{{0,30}}?
      (?:无法|不能|没有|不具备|不会|不可以|不支持)
    | ^\W*(?:非常|很|十分|真的|实在)?(?:抱歉|遗憾|对不起|不好意思)[，,。！\ ]*[^。！？\n]{{0,25}}?(?:我|本模型)[^。！？\n]{{0,12}}?
      (?:无法|不能|没有?办法|没法|不会|不可以|不便)
    | ^\W*我(?:无法|不能)(?:回答|提供|满足|协助|帮助|完成|执行|生成|参与)
    """,
    re.I | re.X,
)


def refusal(answer: str) -> str:
    """The words by which the beginning of an answer refuses; empty where it does not."""
    head = answer[:_HEAD]
    match = _ENGLISH.search(head) or (None if head.isascii() else _CHINESE.search(head))
    return match[0] if match else ""
