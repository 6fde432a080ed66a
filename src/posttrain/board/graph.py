"""The stages of a run as a drawing: what reads what, and how far each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from markupsafe import Markup

from posttrain.board.listing import RunFacts
from posttrain.errors import PosttrainError
from posttrain.lab.recipe import load_recipe, stage_inputs
from posttrain.report.svg import tag

COLUMN, ROW, BOX_WIDTH, BOX_HEIGHT, EDGE = 178.0, 62.0, 146.0, 46.0, 2.0
MOST_LETTERS = 18


def graph(facts: RunFacts, recipe: str, changed: int, label: str) -> Markup:
    """Draw the stages from left to right, each after what it reads; without a recipe that can be read, one after the other.

    ``recipe``: path of recipe.yaml; ``changed``: when it was written last.
    """
    reads = _reads(recipe, changed)
    names = [stage.name for stage in facts.stages]
    reads = {name: [one for one in reads.get(name, ()) if one in names] for name in names}
    if not any(reads.values()):
        reads = {name: names[place - 1 : place] if place else [] for place, name in enumerate(names)}
    depth: dict[str, int] = {}

    def place(name: str) -> int:
        if name not in depth:
            depth[name] = 0  # of a circle, which no recipe has
            depth[name] = max((place(one) + 1 for one in reads[name]), default=0)
        return depth[name]

    columns: dict[int, list[str]] = {}
    for name in names:
        columns.setdefault(place(name), []).append(name)
    at = {name: (c * COLUMN, r * ROW) for c, several in columns.items() for r, name in enumerate(several)}
    width = max(columns, default=0) * COLUMN + BOX_WIDTH + 2 * EDGE
    height = (max(map(len, columns.values()), default=1) - 1) * ROW + BOX_HEIGHT + 2 * EDGE
    lines = [
        _line(at[one], at[name])
        for name in names
        for one in reads[name]
        if depth[name] - depth[one] == 1 or len(reads[name]) < 3
    ]
    boxes = []
    for stage in facts.stages:
        x, y = at[stage.name]
        short = (
            stage.name
            if len(stage.name) <= MOST_LETTERS
            else f"{stage.name[: MOST_LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
        )
        status = stage.status if stage.status != "running" or facts.state.is_running else "stopped"
        parts = [
            tag("title", f"{stage.name} ({stage.kind}): {status}"),
            tag("rect", x=x, y=y, width=BOX_WIDTH, height=BOX_HEIGHT, rx=9, class_="box"),
            tag(
                "rect",
                x=x,
                y=y + BOX_HEIGHT - 5,
                width=max(0.0, BOX_WIDTH * stage.share),
                height=5,
                rx=2.5,
                class_="done",
            ),
            tag("text", short, x=x + 12, y=y + 20, class_="strong"),
            tag("text", stage.kind, x=x + 12, y=y + 35, class_="label"),
        ]
        boxes.append(tag("g", *parts, class_=f"stage {status.replace(' ', '-')}"))
    return tag(
        "svg",
        *lines,
        *boxes,
        class_="figure graph",
        viewBox=f"{-EDGE} {-EDGE} {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    x, y, to_x, to_y = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2, end[0], end[1] + BOX_HEIGHT / 2
    middle = (x + to_x) / 2
    return tag(
        "path", d=f"M{x:.0f} {y:.0f} C{middle:.0f} {y:.0f} {middle:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}", class_="edge"
    )


@lru_cache(maxsize=256)
def _reads(recipe: str, changed: int) -> Mapping[str, Sequence[str]]:
    """Stage -> the stages it reads; empty where the recipe can't be read."""
    try:
        loaded = load_recipe(recipe)
        return {name: list(dict.fromkeys(stage_inputs(loaded, name).values())) for name in loaded.stages}
    except PosttrainError:
        return {}
