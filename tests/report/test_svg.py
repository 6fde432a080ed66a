from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from posttrain.report.svg import Scale, path, tag, tick_text

numbers = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


@given(numbers, st.floats(min_value=1e-6, max_value=1e6), st.booleans())
def test_linear_ticks_are_few_ascending_inside_and_readable(low: float, extent: float, whole: bool) -> None:
    scale = Scale(low, low + extent, 0, 100, whole=whole)
    ticks = scale.ticks()
    assert len(ticks) <= 7
    assert all(a < b for a, b in pairwise(ticks))
    slack = 1e-6 * max(1, abs(low) + extent)  # far below a pixel
    assert all(low - slack <= tick <= low + extent + slack for tick in ticks)
    if whole:
        assert all(tick == round(tick) for tick in ticks)


def test_ticks_by_hand() -> None:
    assert Scale(0, 118, 0, 1, whole=True).ticks() == [0, 20, 40, 60, 80, 100]
    assert Scale(1.6, 2.3, 0, 1).ticks() == [1.6, 1.8, 2.0, 2.2]
    assert Scale(0, 3, 0, 1, whole=True).ticks() == [0, 1, 2, 3]
    assert Scale(0.1, 100, 0, 1, log=True).ticks() == [0.1, 1, 10, 100]
    assert Scale(0.3, 8, 0, 1, log=True).ticks() == [0.5, 1, 2, 5]


@given(st.floats(min_value=1e-6, max_value=1e3), st.floats(min_value=1.5, max_value=1e8))
def test_logarithmic_ticks_lie_inside(low: float, factor: float) -> None:
    ticks = Scale(low, low * factor, 0, 1, log=True).ticks()
    assert len(ticks) >= 2
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


def test_tick_text_has_the_decimals_the_distance_needs() -> None:
    text = tick_text([0.0, 0.25, 0.5])
    assert [text(v) for v in (0.0, 0.25, 0.5)] == ["0.00", "0.25", "0.50"]
    assert tick_text([0.0, 200.0])(1200.0) == "1,200"
    small = tick_text([0.0, 5e-5, 1e-4, 1.5e-4])
    assert [small(v) for v in (0.0, 1e-4, 1.5e-4)] == ["0", "1e−4", "1.5e−4"]


@given(numbers, numbers)
def test_scale_keeps_order_and_range(a: float, b: float) -> None:
    scale = Scale(-10.0, 10.0, 50.0, 500.0)
    low, high = sorted((a, b))
    assert 50 <= scale(low) <= scale(high) <= 500


def test_scale_at_its_ends() -> None:
    assert Scale(0, 10, 260, 20)(0) == 260
    assert Scale(0, 10, 260, 20)(10) == 20
    assert Scale(1, 100, 0, 200, log=True)(10) == 100
    assert math.isnan(Scale(0, 1, 0, 1)(math.nan))


def test_path_is_interrupted_where_a_value_is_not_finite() -> None:
    drawn = path([(0, 1), (1, 2), (2, math.nan), (3, 4), (4, 5)], "line")
    assert 'd="M0 1 L1 2 M3 4 L4 5"' in drawn


@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))
)
def test_text_and_attributes_survive_as_they_are(text: str) -> None:
    element = ElementTree.fromstring(tag("g", tag("title", text), aria_label=text, stroke_width=1.25))
    assert element.get("aria-label") == text
    assert element.get("stroke-width") == "1.2"
    assert element.findtext("title") == text
