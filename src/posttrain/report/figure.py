"""One drawing of a report, and its two forms: inline in the page and as a file of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup

from posttrain.report.svg import WIDTH, tag


@dataclass(frozen=True, slots=True)
class Figure:
    """One drawing. ``name`` is its file name without ending, ``alt`` says in words what it shows."""

    name: str
    title: str
    alt: str
    caption: str
    height: float
    body: Markup
    width: float = WIDTH

    @property
    def small(self) -> bool:
        """Whether it is one of the drawings of which three stand side by side."""
        return self.width < WIDTH

    def inline(self) -> Markup:
        """Return the SVG for the page; colours come from the page's CSS variables."""
        return self._svg(self.body, class_="figure small" if self.small else "figure", viewBox=self._box)

    def standalone(self, css: str) -> str:
        """Return the SVG as a file of its own, with the given style sheet inside."""
        style = Markup("<style>{}</style>").format(Markup(css))
        background = tag("rect", class_="background", width="100%", height="100%")
        names = {"xmlns": "http://www.w3.org/2000/svg", "class_": "figure", "viewBox": self._box}
        size = {"width": f"{self.width:g}", "height": f"{self.height:g}"}
        drawing = self._svg(style + background + self.body, **names, **size)
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{drawing}\n'

    @property
    def _box(self) -> str:
        return f"0 0 {self.width:g} {self.height:g}"

    def _svg(self, inside: Markup, **attributes: str) -> Markup:
        return tag("svg", inside, **attributes, role="img", aria_label=self.alt)


def file_name(*parts: str) -> str:
    """Return a file name from words: anything but letters, digits, ``-`` and ``_`` becomes ``-``."""
    return "-".join(re.sub(r"[^\w-]+", "-", part) for part in parts)
