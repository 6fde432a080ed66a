"""The generated part of docs/recipes.md: every key of a recipe, read from the dataclasses themselves.

``python -m posttrain.lab.reference docs/recipes.md`` writes it anew; a test holds the page to it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from posttrain.artifacts import write_text
from posttrain.config import Section, sections
from posttrain.lab.recipe import Recipe

START, END = "<!-- generated: keys -->", "<!-- end of generated -->"


def markdown() -> str:
    """One section for every dataclass of a recipe: where it stands, what it does, a table of its keys."""
    return "\n\n".join(_section(section) for section in sections(Recipe))


def replaced(page: str) -> str:
    """The page with everything between the two markers generated anew."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{markdown()}\n\n{END}{after}"


def _section(section: Section) -> str:
    title = f"`{section.path}`" if section.path else "The recipe"
    if section.choice:
        title += f" with `{section.choice}`"
    lines = [
        f"### {title}",
        "",
        _code(section.meaning),
        "",
        "| key | allowed | default | meaning |",
        "|---|---|---|---|",
    ]
    for key in section.keys:
        default = "required" if key.default is None else f"`{key.default}`"
        lines.append(f"| `{key.name}` | {key.allowed} | {default} | {_code(key.meaning)} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    page = Path(sys.argv[1])
    write_text(page, replaced(page.read_text(encoding="utf-8")))
