"""The page of ``posttrain arena``: every number is there, nothing foreign gets through, equal facts equal bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import write_json
from posttrain.errors import RunError
from posttrain.report.arena_figures import (
    MOST_MODELS,
    AnchorFacts,
    ArenaFacts,
    RatedModel,
    ratings_figure,
    style_figure,
)
from posttrain.report.arena_page import (
    paragraph,
    read_ratings,
    render_arena_page,
    write_arena_page,
)
from posttrain.report.win_matrix import cell_style

ATTACK = '<script>alert("x")</script><img src="http://evil.example/x.png" onerror="alert(1)">'
VOID = {"meta", "link", "img", "br"}


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
        "cluster": {"column": "question_id", "clusters": 80},
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
def facts(folder: Path) -> ArenaFacts:
    return read_ratings(folder)


class Reader(HTMLParser):
    """Collects tags, attributes and text, and sees that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def parsed(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def words(html: str) -> str:
    return re.sub(r"\s+", " ", " ".join(parsed(html).text))


def test_the_page_shows_every_number(facts: ArenaFacts) -> None:
    shown = words(render_arena_page(facts))
    for text in ("human.jsonl", "2,000", "12.5%", "17", "1,100", "1,080 to 1,120", "812", "792 to 832", "1,234"):
        assert text in shown, text
    for text in ("52%", "48%", "87%", "13%", "1,111", "889", "54.2%", "80 groups of equal question_id", "90%"):
        assert text in shown, text
    assert "1 pair was never compared" in shown


def test_equal_facts_give_equal_bytes_beside_the_facts(folder: Path) -> None:
    first = write_arena_page(folder).read_bytes()
    assert write_arena_page(folder) == folder / "arena.html"
    assert (folder / "arena.html").read_bytes() == first


def test_the_page_is_self_contained_and_runs_nothing(facts: ArenaFacts) -> None:
    html = render_arena_page(facts)
    reader = parsed(html)
    assert [tag for tag, _ in reader.seen if tag in ("script", "img", "iframe", "object")] == []
    for tag, attributes in reader.seen:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "default-src 'none'" in html
    assert "url(" not in html
    assert "prefers-color-scheme: dark" in html


def test_foreign_names_stay_text(folder: Path) -> None:
    hostile = record(file=ATTACK, warnings=[ATTACK], anchor={"model": ATTACK, "rating": 1000.0})
    hostile["models"][0]["model"] = ATTACK
    hostile["style"] = [{"name": ATTACK, "estimate": 0.3, "low": 0.1, "high": 0.5}]
    write_json(folder / "ratings.json", hostile)
    reader = parsed(render_arena_page(read_ratings(folder)))
    assert [tag for tag, _ in reader.seen if tag in ("script", "img")] == []
    assert "<script>" in " ".join(reader.text)


def test_every_table_has_as_many_cells_as_headings(facts: ArenaFacts) -> None:
    html = render_arena_page(facts)
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert len(tables) == 3
    for table in tables:
        cells = [len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
        assert len(cells) == 4
        assert len(set(cells)) == 1


def test_every_link_of_the_contents_leads_somewhere(facts: ArenaFacts) -> None:
    html = render_arena_page(facts)
    targets = {attributes["id"] for _, attributes in parsed(html).seen if "id" in attributes}
    assert set(re.findall(r'href="#([^"]+)"', html)) <= targets


# ---- words ---------------------------------------------------------------------------------------------------------


def test_the_paragraph_says_who_can_not_be_told_apart(facts: ArenaFacts) -> None:
    assert "dpo has the highest rating, 1,100 points (90% interval 1,080 to 1,120)" in paragraph(facts)
    assert "can't tell it apart from sft: rank 1 is shared" in paragraph(facts)
    alone = replace(facts, models=(facts.models[0], facts.models[2]))
    assert "No other model shares its rank" in paragraph(alone)


def test_an_anchored_leader_has_no_interval(facts: ArenaFacts) -> None:
    anchored = replace(facts, anchor=AnchorFacts("dpo", 1100.4))
    assert "1,100 points, to which it is anchored" in paragraph(anchored)
    other = replace(facts, anchor=AnchorFacts("base", 812.0))
    assert "(90% interval 1,080 to 1,120)" in paragraph(other)
    assert "the anchor, base, 812 points" in ratings_figure(other).caption
    assert "base 812, the anchor" in ratings_figure(other).alt
    assert "792 to 832" not in render_arena_page(other)


def test_points_mean_something_for_bradley_terry_only(facts: ArenaFacts) -> None:
    chance = 1 / (1 + 10 ** (-100 / 400))
    assert chance == pytest.approx(0.64, abs=5e-4)
    assert "64 of 100" in paragraph(facts)
    assert "64 of 100" not in paragraph(replace(facts, method="elo"))


def test_colours_of_cells_are_symmetric_and_stronger_far_from_a_half() -> None:
    def strength(rate: float) -> int:
        return int(re.findall(r"(\d+)%", cell_style(rate))[0])

    assert cell_style(None) == ""
    assert strength(0.5) == 0
    assert strength(0.1) == strength(0.9) < strength(1.0) == strength(0.0)
    assert "--s1" in cell_style(0.6)
    assert "--s2" in cell_style(0.4)


def test_pairs_that_never_met_are_counted_once(facts: ArenaFacts) -> None:
    assert facts.matrix.never_met == 1
    assert replace(facts, counts_MM=((0, 1, 1), (1, 0, 1), (1, 1, 0))).matrix.never_met == 0


# ---- figures -------------------------------------------------------------------------------------------------------


def test_whiskers_stand_where_the_intervals_are(facts: ArenaFacts) -> None:
    drawn = str(ratings_figure(facts).body)
    dots = [float(x) for x in re.findall(r'<circle[^>]* cx="([\d.]+)"', drawn)]
    lines = [
        (float(a), float(b))
        for a, b in re.findall(r'<line class="whisker s1" x1="([\d.]+)" x2="([\d.]+)"', drawn)
        if a != b
    ]
    assert len(dots) == len(lines) == 3
    for at, (low, high) in zip(dots, lines, strict=True):
        assert at == pytest.approx((low + high) / 2, abs=0.11)
    assert dots[0] > dots[1] > dots[2]
    points = (dots[0] - dots[2]) / (1100.4 - 812.0)  # widths on paper a point
    assert (lines[0][1] - lines[0][0]) / points == pytest.approx(40, abs=0.5)


def test_a_long_list_is_cut_in_the_figure_and_says_so(facts: ArenaFacts) -> None:
    many = tuple(
        RatedModel(f"m{n}", 1000.0 - n, 990.0 - n, 1010.0 - n, 1, 9, 3, 3, 3, 0.5) for n in range(MOST_MODELS + 5)
    )
    figure = ratings_figure(replace(facts, models=many))
    assert str(figure.body).count("<circle") == MOST_MODELS
    assert f"The first {MOST_MODELS} of {MOST_MODELS + 5} models" in figure.caption


def test_a_long_name_keeps_both_ends(facts: ArenaFacts) -> None:
    name = "organisation/some-model-with-a-very-long-name-7B-instruct-v2"
    figure = ratings_figure(replace(facts, models=(replace(facts.models[0], model=name),)))
    [shown] = re.findall(r">(organisation[^<]*v2)</text>", str(figure.body))
    assert len(shown) == 34
    assert shown == f"{name[:14]}…{name[-19:]}"
    assert name in figure.alt


def test_style_is_drawn_where_it_is_controlled(folder: Path, facts: ArenaFacts) -> None:
    assert style_figure(facts) is None
    assert "What style is worth" not in render_arena_page(facts)
    style = [{"name": "tokens", "estimate": 0.31, "low": 0.22, "high": 0.4}]
    write_json(folder / "ratings.json", record(method="style_controlled", style=style))
    html = render_arena_page(read_ratings(folder))
    assert "What style is worth" in html
    assert "+0.310" in html


# ---- bad artefacts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, "schema 2"),
        ({"comparisons": "many"}, "comparisons"),
        ({"method": "dice"}, "method"),
        ({"counts_MM": [[0]]}, "counts_MM is not 3 x 3"),
        ({"win_rates_MM": [[None] * 3] * 2}, "win_rates_MM is not 3 x 3"),
        ({"models": [], "win_rates_MM": [], "counts_MM": []}, "no models"),
    ],
)
def test_a_wrong_file_is_one_clear_error(folder: Path, change: dict[str, Any], told: str) -> None:
    write_json(folder / "ratings.json", record(**change))
    with pytest.raises(RunError, match=told) as caught:
        read_ratings(folder)
    assert "ratings.json" in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ratings\.json"):
        read_ratings(tmp_path)
    (tmp_path / "ratings.json").write_text(json.dumps(record())[:-20])
    with pytest.raises(RunError, match=r"ratings\.json"):
        read_ratings(tmp_path)
