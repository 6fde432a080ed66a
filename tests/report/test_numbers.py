from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.8234, "1.823"),
        (-0.2354, "−0.235"),
        (0.0, "0.000"),
        (0.0004, "0.0004"),
        (-0.00003, "−3.0e−05"),
        (1234.5, "1,234.500"),
        (math.nan, "not a number"),
        (math.inf, "infinite"),
        (None, "–"),
    ],
)
def test_fixed(value: float | None, text: str) -> None:
    assert numbers.fixed(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False).filter(bool))
def test_a_number_that_is_not_zero_never_looks_like_zero(value: float) -> None:
    assert any(digit in numbers.fixed(value) for digit in "123456789")
    assert numbers.signed(value)[0] == ("+" if value > 0 else "−")


def test_interval_keeps_both_signs() -> None:
    assert numbers.signed_interval_in_unit(-0.2691, 0.0312, "number") == "−0.269 to +0.031"
    assert numbers.signed_interval_in_unit(0.0, 8 / 13, "share") == "0.0 to +61.5"
    assert numbers.signed_interval_in_unit(None, None, "share") == "–"
    assert numbers.interval_in_unit(0.2906, 0.7677, "share", 0) == "29% to 77%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0004, "p < 0.001"), (0.0123, "p = 0.012"), (0.21875, "p = 0.22"), (1.0, "p = 1.00"), (None, "–")],
)
def test_p_value(value: float | None, text: str) -> None:
    assert numbers.p_value(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.44, "2.4 seconds"),
        (42.0, "42 seconds"),
        (402.0, "6.7 minutes"),
        (7500.0, "2 h 05 min"),
        (7199.0, "2 h 00 min"),
        (None, "–"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_short_duration() -> None:
    assert [numbers.short_duration(s) for s in (2.44, 402.0, 7500.0)] == ["2.4 s", "6.7 min", "2 h 05 min"]


def test_sizes() -> None:
    assert numbers.memory(3_120_000_000) == "3.12 GB"
    assert numbers.memory(64_000_000) == "64 MB"
    assert numbers.compact(4_884_480) == "4.88 million"
    assert numbers.compact(134_515_008) == "134.5 million"
    assert numbers.compact(7_241_732_096) == "7.24 billion"
    assert numbers.compact(950_000) == "950,000"
    assert numbers.scientific(2e-4) == "2e−4"
    assert numbers.scientific(1.5e-5) == "1.5e−5"
    assert numbers.scientific(0.0) == "0"
    assert numbers.signed_percent(math.expm1(-0.235)) == "−20.9%"
    assert numbers.moment(0.0) == "1970-01-01 00:00 UTC"
    assert numbers.moment(float("nan")) == numbers.moment(1e300) == numbers.NOTHING
