"""What a reply should not be: nothing but boilerplate, fewer sentences than asked for, a refusal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from posttrain.data import text
from posttrain.data.filters.base import Conversation, Filter, Measurement, at_most, excerpt, within


@dataclass(frozen=True, kw_only=True)
class Template(Filter):
    """Stock phrases and sentence count of the assistant's text."""

    max_boilerplate_share: Annotated[float, Ge(0), Le(1)] | None = 0.6
    """Largest share of its tokens in stock openings and closings (``Sure! Here is``, ``希望对您有帮助``); 0: none; null: any."""
    min_sentences: Annotated[int, Ge(0)] = 0
    """Fewest sentences; 2 drops answers of only one. 0: not measured."""

    replies = "wanted"

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        stock = [phrase for answer in row.assistant for phrase in boilerplate(answer)]
        tokens = len(row.assistant_tokens)
        share = len(text.tokens("\n".join(stock))) / tokens if stock and tokens else 0.0
        most, found = self.max_boilerplate_share, excerpt(" ".join(stock))
        yield at_most("template.boilerplate", share, most, "boilerplate", found, "of the tokens")
        if self.min_sentences:
            count = sentences(row.assistant_parts.prose)
            yield within("template.sentences", count, self.min_sentences, None, ("few_sentences", ""), "sentences")


_OPENING = re.compile(
    r"""\s*(?:
      (?:(?:sure(?:\s+thing)?|certainly|of\s+course|absolutely|definitely|no\s+problem|great\s+question|okay|ok)\b\s*[!,.:]*\s*)
      (?:(?:i(?:'d|\s+would)\s+be\s+(?:happy|glad)\s+to|i\s+can|let\s+me)\s+(?:help|assist)[^.!?:\n]{0,60}[.!?:]?\s*)?
      (?:here(?:'s|\s+is|\s+are)\b[^.!?:\n]{0,80}[.!?:])?
    | (?:i(?:'d|\s+would)\s+be\s+(?:happy|glad)\s+to\s+(?:help|assist))[^.!?:\n]{0,60}[.!?:]
    | (?:that's|this\s+is)\s+an?\s+(?:great|good|excellent|interesting)\s+question[.!,]
    | (?:好的|当然(?:可以)?|没问题|可以的)[，,！!。]?\s*(?:(?:以下|下面|这里|这)(?:是|为|有)[^。：:！!\n]{0,30}[：:。！!])?
    | (?:很|非常)?(?:高兴|乐意|荣幸)(?:能够?)?(?:为您|为你|帮助您|帮助你)[^。！!\n]{0,20}[。！!]
    )""",
    re.I | re.X,
)
_CLOSING = re.compile(
    r"""(?:
      (?:i\s+hope\s+(?:this|that|it)\s+helps?|hope\s+(?:this|that)\s+helps?)[^.!?\n]{0,60}
    | (?:please\s+)?(?:let\s+me\s+know|feel\s+free\s+to\s+(?:ask|contact|reach))[^.!?\n]{0,120}
    | is\s+there\s+anything\s+else\b[^.!?\n]{0,80}
    | if\s+you\s+(?:have|need)\s+any\s+(?:other|more|further|additional)?\s*(?:questions?|help|assistance)\b[^.!?\n]{0,120}
    | (?:请)?(?:希望|但愿)(?:以上|这些?|我的|本)?[^。！!\n]{0,15}(?:对您|对你|能|可以)[^。！!\n]{0,10}(?:帮助|帮到您|帮到你)[^。！!\n]{0,6}
    | (?:如果|如)(?:您|你)?(?:还)?有(?:任何|其他|其它|什么)[^。！!\n]{0,12}(?:问题|疑问|需要)[^。！!\n]{0,30}
    )[.!?。！]?\s*$""",
    re.I | re.X,
)
_CLOSING_HINTS = (
    *("hope", "let me know", "feel free", "anything else", "if you"),
    *("希望", "但愿", "如果", "如有", "如您", "如你", "如还有"),
)
"""Every closing holds one of these."""
_SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"')\]]|$)|[。！？；…]+|\n+")
_LONGEST_END = 400
"""A closing stands within so many characters of the end."""


def boilerplate(answer: str) -> list[str]:
    """The stock opening and the stock closings of an answer, in their order; a closing that is all of it is its content."""
    found = []
    if opening := _OPENING.match(answer):
        found.append(opening[0])
        answer = answer[opening.end() :]
    closings: list[str] = []
    end = answer[-_LONGEST_END:].lower()
    if not any(hint in end for hint in _CLOSING_HINTS):
        return found
    while closing := _CLOSING.search(answer, max(0, len(answer) - _LONGEST_END)):
        closings.insert(0, closing[0])
        answer = answer[: closing.start()]
    return found + closings if found or answer.strip() else []


def sentences(prose: str) -> int:
    """Number of sentences and lines that have a letter or digit; a full stop inside a number ends none."""
    return sum(any(map(str.isalnum, part)) for part in _SENTENCE_END.split(prose))


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
