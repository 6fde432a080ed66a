"""Prose and code told apart, so that rules about language do not judge programs."""

from __future__ import annotations

import re
from typing import NamedTuple

_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*(?:\n.*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)|\Z)", re.M | re.S)
_INLINE = re.compile(r"`[^`\n]{1,200}`|https?://[^\s\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+|www\.[^\s\u4e00-\u9fff]+")
_SIGNS = re.compile(
    r"[(){}\[\]=;<>]|^\s*(?:import|from|return|else|try|finally|do|with|except|for|[.}#$/*>]|[A-Z]{4})", re.M
)
"""What a line of code has: only lines with it are held against the whole pattern."""

_CODE_LINE = re.compile(
    r"""\s*(?:
      [{}()\[\]<>/;,]+ \s*$                                                    # nothing but brackets
    | (?:async\s+)?(?:def|class|function|func|fn|interface|struct|enum)\s+\w+\s*[(:{<].*
    | (?:from\s+[\w.]+\s+)?import\s+[\w.*{}]+(?:\s+as\s+\w+)?(?:\s*,\s*[\w.]+(?:\s+as\s+\w+)?)*(?:\s+from\s+\S+)?\s*;?\s*$
    | [}]?\s*(?:if|while|for|elif|switch|catch|else\s+if)\s*\(.*
    | for\s+\w+(?:\s*,\s*\w+)*\s+in\s+\S.*:\s*$
    | (?:if|elif|while)\s.*(?:==|!=|[<>(\[]|\snot\s|\sin\s|\sis\s).*:\s*$
    | (?:else|try|finally|do)\s*[:{]\s*$ | [}]\s*(?:else|catch|finally).* | except\b.*:\s*$ | with\s.*\sas\s\w+:\s*$
    | (?:(?:var|let|const|int|long|float|double|char|string|String|bool|boolean|auto|public|private|protected|static|final|void|unsigned)
         (?:\[\]|<[^>]*>)?\s+)*[\w.$\[\]'"*]+\s*[-+*/%|&^]?=(?!=)\s*\S.*            # an assignment
    | (?:await\s+|return\s+|new\s+)?[\w.$:]+\([^\n]*\)\s*[;{:]?\s*$              # a call
    | return\b[^.!?]*;?\s*$
    | [#](?:include|define|ifdef|ifndef|endif)\b.* | using\s+namespace\b.* | package\s+[\w.]+;\s*$
    | (?:SELECT|INSERT\s+INTO|CREATE\s+TABLE|UPDATE|DELETE\s+FROM|ALTER\s+TABLE|DROP\s+TABLE)\s.*
    | </?[A-Za-z!][^>\n]*>.*
    | [\w-]+\s*:\s*[^;\n]+;\s*$                                             # a rule of CSS
    | (?://|/\*|\*/|\#!).* | \$\s+\w.* | >>>\s.*
    )""",
    re.X,
)
_LONGEST_LINE = 300
"""Longer lines are prose: a program has few, and the pattern need not be run over whole paragraphs."""


class Parts(NamedTuple):
    """A text taken apart."""

    prose: str
    """Without fenced and inline code, addresses, and lines that read like code."""
    code_characters: int
    """Length of the fenced code and of the lines that read like code."""


def parts_of(text: str) -> Parts:
    """Tell the prose of a text from its code. A fence that is never closed runs to the end."""
    fenced = 0
    if "```" in text or "~~~" in text:
        prose = _FENCED.sub("\n", text)
        fenced, text = len(text) - len(prose), prose
    if "`" in text or "://" in text or "www." in text:
        text = _INLINE.sub(" ", text)
    if not _SIGNS.search(text):
        return Parts(text, fenced)
    lines = text.split("\n")
    prose_lines = [
        line for line in lines if len(line) > _LONGEST_LINE or not line.strip() or not _CODE_LINE.match(line)
    ]
    if len(prose_lines) == len(lines):
        return Parts(text, fenced)
    prose = "\n".join(prose_lines)
    return Parts(prose, fenced + len(text) - len(prose))
