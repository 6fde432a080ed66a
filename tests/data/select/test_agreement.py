"""Rank correlation and shared middles: by hand, and against scipy."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posttrain.data.select.agreement import agreement, middle_shared, spearman


def column(*values: float) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64)


def test_spearman_by_hand() -> None:
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6
    assert spearman(column(1, 2, 3, 4), column(20, 10, 40, 30)) == pytest.approx(0.6)
    assert spearman(column(1, 2, 3), column(5, 5, 5)) is None
    assert spearman(column(1), column(2)) is None
    assert spearman(column(), column()) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = column(*(a for a, _ in pairs)), column(*(b for _, b in pairs))
    found = spearman(first, second)
    if first.n_unique() == 1 or second.n_unique() == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_middle_shared_by_hand() -> None:
    """The middle half of 1..8 is 3..6; the second column has 5..8 there."""
    assert middle_shared(column(*range(1, 9)), column(1, 2, 7, 8, 3, 4, 5, 6)) == 0.5
    assert middle_shared(column(*range(1, 9)), column(*range(8, 0, -1))) == 1.0
    assert middle_shared(column(), column()) is None
    assert middle_shared(column(1, 2), column(1, 2)) is None  # the quartiles lie between the two


def test_every_pair_over_all_and_by_source() -> None:
    table = pl.DataFrame({"source": ["b", "b", "a", "a"], "x": [1.0, 2.0, 3.0, None], "y": [2.0, 1.0, 4.0, 5.0]})
    found = agreement(table, ["x", "y"])
    assert [(e["source"], e["a"], e["b"], e["rows"], e["spearman"]) for e in found] == [
        (None, "x", "y", 3, pytest.approx(0.5)),
        ("a", "x", "y", 1, None),
        ("b", "x", "y", 2, pytest.approx(-1.0)),
    ]
