"""The page of ``posttrain arena``: every number is there, equal ratings give equal bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import write_json
from posttrain.errors import RunError
from posttrain.judge.arena import ArenaRatings, RatedModel, arena_section, paragraph, read_ratings
from posttrain.report import html
from posttrain.report.charts import MOST_LANES, Chart, draw
from posttrain.report.values import Page, charts_of
from posttrain.stats.ratings import Anchor
from posttrain.stats.style_control import StyleCoefficient


def page(found: ArenaRatings) -> Page:
    return Page(kind="", title="", sections=(arena_section(found, "arena"),))


def chart(found: ArenaRatings, name: str) -> Chart:
    return next(one for one in charts_of(page(found)) if one.name == name)


def model(name: str, rating: float, rank: int, **values: Any) -> dict[str, Any]:
    ended = {"comparisons": 1234, "wins": 600, "ties": 34, "losses": 600, "average_win_rate": 0.5417}
    return {"model": name, "rating": rating, "low": rating - 20, "high": rating + 20, "rank": rank, **ended, **values}


def record(**values: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "file": "votes/human.jsonl",
        "method": "bradley_terry",
        "interval": "sandwich",
        "confidence": 0.9,
        "anchor": None,
        "cluster": "question_id",
        "clusters": 80,
        "comparisons": 2000,
        "ties": 250,
        "missing": 17,
        "models": [model("dpo", 1100.4, 1), model("sft", 1087.6, 1), model("base", 812.0, 3)],
        "win_rates_MM": [[None, 0.5234, 0.871], [0.4766, None, None], [0.129, None, None]],
        "counts_MM": [[0, 1111, 889], [1111, 0, 0], [889, 0, 0]],
        "style": [],
        "warnings": [],
    } | values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "ratings.json", record())
    return tmp_path


@pytest.fixture
def facts(folder: Path) -> ArenaRatings:
    return read_ratings(folder / "ratings.json")


def words(found: ArenaRatings) -> str:
    return re.sub(
        r"\s+", " ", unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html.page(page(found)), flags=re.DOTALL))
    )


def test_the_page_shows_every_number(facts: ArenaRatings) -> None:
    shown = words(facts)
    for text in ("human.jsonl", "2,000", "250", "17", "1,100", "1,080 to 1,120", "812", "792 to 832", "1,234"):
        assert text in shown, text
    for text in ("52%", "48%", "87%", "13%", "1,111", "889", "54.2%", "80 groups of equal question_id", "90%"):
        assert text in shown, text
    assert "1 pair was never compared" in shown


# ---- words ---------------------------------------------------------------------------------------------------------


def test_the_paragraph_says_who_can_not_be_told_apart(facts: ArenaRatings) -> None:
    assert "dpo has the highest rating, 1,100 points (90% interval 1,080 to 1,120)" in paragraph(facts)
    assert "can't tell it apart from sft: rank 1 is shared" in paragraph(facts)
    alone = replace(facts, models=(facts.models[0], facts.models[2]))
    assert "No other model shares its rank" in paragraph(alone)


def test_an_anchored_leader_has_no_interval(facts: ArenaRatings) -> None:
    anchored = replace(facts, anchor=Anchor("dpo", 1100.4))
    assert "1,100 points, to which it is anchored" in paragraph(anchored)
    other = replace(facts, anchor=Anchor("base", 812.0))
    assert "(90% interval 1,080 to 1,120)" in paragraph(other)
    assert "the anchor, base, 812 points" in chart(other, "ratings").caption
    assert "812 the anchor" in words(other)
    assert "792 to 832" not in words(other)


def test_points_mean_something_for_bradley_terry_only(facts: ArenaRatings) -> None:
    chance = 1 / (1 + 10 ** (-100 / 400))
    assert chance == pytest.approx(0.64, abs=5e-4)
    assert "64 of 100" in paragraph(facts)
    assert "64 of 100" not in paragraph(replace(facts, method="elo"))


def test_pairs_that_never_met_are_counted_once(facts: ArenaRatings) -> None:
    assert facts.never_met == 1
    assert replace(facts, counts_MM=((0, 1, 1), (1, 0, 1), (1, 1, 0))).never_met == 0


# ---- figures -------------------------------------------------------------------------------------------------------


def test_a_long_list_is_cut_in_the_chart_and_says_so(facts: ArenaRatings) -> None:
    many = tuple(
        RatedModel(f"m{n}", 1000.0 - n, 990.0 - n, 1010.0 - n, 1, 9, 3, 3, 3, 0.5) for n in range(MOST_LANES + 5)
    )
    figure = draw(chart(replace(facts, models=many, win_rates_MM=(), counts_MM=()), "ratings"))
    assert figure is not None
    assert str(figure.body).count("<circle") == MOST_LANES
    assert f"The first {MOST_LANES} of {MOST_LANES + 5} models" in figure.caption


def test_a_long_name_keeps_both_ends(facts: ArenaRatings) -> None:
    name = "organisation/some-model-with-a-very-long-name-7B-instruct-v2"
    figure = draw(chart(replace(facts, models=(replace(facts.models[0], model=name),)), "ratings"))
    assert figure is not None
    [shown] = re.findall(r">(organisation[^<]*v2)</text>", str(figure.body))
    assert shown == f"{name[:14]}…{name[-19:]}"
    assert name in figure.alt


def test_style_is_drawn_where_it_is_controlled(facts: ArenaRatings) -> None:
    assert "What style is worth" not in words(facts)
    controlled = replace(facts, method="style_controlled", style=(StyleCoefficient("tokens", 0.31, 0.22, 0.4),))
    assert "What style is worth" in words(controlled)
    assert "+0.310" in words(controlled)


# ---- bad artefacts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, "schema 2"),
        ({"comparisons": "many"}, "comparisons"),
        ({"method": "dice"}, "method"),
        ({"counts_MM": [[0]]}, "a matrix is not 3 x 3"),
        ({"win_rates_MM": [[None] * 3] * 2}, "a matrix is not 3 x 3"),
        ({"models": [], "win_rates_MM": [], "counts_MM": []}, "no models"),
    ],
)
def test_a_wrong_file_is_one_clear_error(folder: Path, change: dict[str, Any], told: str) -> None:
    write_json(folder / "ratings.json", record(**change))
    with pytest.raises(RunError, match=told) as caught:
        read_ratings(folder / "ratings.json")
    assert "ratings.json" in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ratings\.json"):
        read_ratings(tmp_path / "ratings.json")
    (tmp_path / "ratings.json").write_text(json.dumps(record())[:-20])
    with pytest.raises(RunError, match=r"ratings\.json"):
        read_ratings(tmp_path / "ratings.json")
