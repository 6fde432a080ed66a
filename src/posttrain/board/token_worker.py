"""The process beside the board that has a tokenizer: a line of JSON in, a row; a line of JSON out, its tokens as HTML.

The board itself never loads a tokenizer's library: it takes seconds and a hundred megabytes. This process goes when the board does, and after
a while without a question.

::

    {"kind": "pairs", "row": {...}, "model": "runs/a/sft"}    ->    {"html": "..."} or {"error": "..."}
"""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain.encode.preferences import sides_of
from posttrain.encode.show import show_row
from posttrain.encode.template import ChatTemplate
from posttrain.errors import PosttrainError
from posttrain.lab.row_page import row_page
from posttrain.model.targets import resolve_target
from posttrain.report import html
from posttrain.report.reading import parse
from posttrain.report.values import Section
from posttrain.types import PairRow, RowKind, SftRow, UnpairedRow

IDLE_SECONDS = 300
KINDS: Mapping[RowKind, type[SftRow | PairRow | UnpairedRow]] = {
    "conversations": SftRow,
    "pairs": PairRow,
    "feedback": UnpairedRow,
}
"""The rows that are trained on."""


@lru_cache(maxsize=4)
def _template(model: str) -> ChatTemplate:
    return resolve_target(model).spoken(None).template


def tokens_html(question: Mapping[str, Any]) -> str:
    """The rendered text and the tokens of every side of a row."""
    row = parse(KINDS[question["kind"]], question["row"], Path("row"))
    sides, found = sides_of(row), list[Section]()
    for name, side in sides.items():
        for section in row_page(show_row(side, _template(question["model"]))).sections:
            if section.anchor != "messages":
                title = f"{name}: {section.title}" if len(sides) > 1 else section.title
                found.append(replace(section, title=title, anchor=f"{name}-{section.anchor}"))
    return str(html.blocks(found, 3))


def main() -> None:
    """Answer until the input ends, or nothing was asked for a while."""
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        try:
            answer = {"html": tokens_html(json.loads(line))}
        except (PosttrainError, OSError, ValueError) as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
