"""The page of a data profile: every number and example is there, nothing foreign gets through, equal facts equal bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from posttrain.artifacts import write_json
from posttrain.errors import RunError
from posttrain.report.data_page import (
    paragraph,
    read_profile,
    render_data_page,
    table_cell,
    terminal_profile,
    text_language,
    write_data_page,
)
from posttrain.report.data_records import ProfileFacts

ATTACK = '<script>alert("x")</script><img src="http://evil.example/x.png" onerror="alert(1)">'
VOID = {"meta", "link", "img", "br"}


def lengths(scale: int) -> dict[str, Any]:
    return {
        "count": 200,
        "total": 200 * 10 * scale,
        "mean": 10.0 * scale,
        "min": scale,
        "p50": 8 * scale,
        "p90": 20 * scale,
        "p95": 30 * scale,
        "max": 900 * scale,
        "percentiles": [min(scale * (1 + n // 3), 40 * scale) for n in range(100)] + [900 * scale],
        "histogram": {"edges": [scale * 3 * n for n in range(41)], "counts": [40 - n for n in range(40)], "beyond": 7},
        "over": [{"limit": 512, "rows": 3, "share": 0.015}, {"limit": 2048, "rows": 0, "share": 0.0}],
    }


def part(name: str, rows: int) -> dict[str, Any]:
    return {
        "name": name,
        "rows": rows,
        "share": rows / 200,
        "rows_counted": rows * 1.5,
        "tokens": rows * 90,
        "token_share": rows / 200,
        "turns": 2.25,
        "user_p50": 11,
        "assistant_p50": 42,
        "p95": 300,
        "languages": [{"language": "zh", "rows": rows, "share": 1.0}],
    }


def example(**values: Any) -> dict[str, Any]:
    return {
        "id": None,
        "file": "a.jsonl",
        "line": 7,
        "detail": None,
        "twin": None,
        "prompt": None,
        "reply": None,
    } | values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    line = {"added": 0, "notes": {}, "folder": None}
    write_json(
        tmp_path / "profile.json",
        {
            "schema": 1,
            "rows": 200,
            "files": [{"file": "rows.parquet", "rows": 200}],
            "tokenizer": {"name": "comparison tokenizer", "is_model": False},
            "columns": [{"name": "id", "type": "text", "nulls": 0}],
            "distinct_ids": 199,
            "rows_counted": 300.0,
            "features": {"system": 12, "tools": 0},
            "meta_keys": [{"key": ATTACK, "rows": 5, "types": ["str"], "values": [ATTACK]}],
            "turns": {"mean": 2.1, "max": 60, "counts": [{"turns": 2, "rows": 190}, {"turns": 60, "rows": 10}]},
            "lengths": {"whole": lengths(4), "user": lengths(1), "assistant": lengths(3)},
            "covering": {"share": 0.95, "length": 120, "rounded": 128, "rounded_share": 0.953},
            "languages": [
                {"language": "en", "rows": 150, "share": 0.75},
                {"language": "zh", "rows": 50, "share": 0.25},
            ],
            "language_rule": "script alone",
            "sources": [part(f"{ATTACK} 资料", 150), part("b", 50)],
            "splits": [part("train", 180), part("test", 20)],
            "funnel": [
                {**line, "step": "read", "rows_in": 260, "rows_out": 250, "dropped": {"broken_json": 10}, "kept_share": 250 / 260, "share_of_start": 250 / 260},
                {**line, "step": "dedup", "rows_in": 250, "rows_out": 200, "dropped": {"near_duplicate": 50}, "kept_share": 0.8, "share_of_start": 200 / 260},
            ],
            "removed": [
                {"step": "read", "reason": "broken_json", "rows": 10, "examples": [example(detail="line 7")]},
                {"step": "01-dedup", "reason": "near_duplicate", "rows": 50, "examples": [example(id="aa", twin="bb", detail="0.83", prompt=f"写一首诗 {ATTACK}", reply=ATTACK)]},
            ],
            "clusters": {
                "clusters": 12,
                "rows": 62,
                "dropped": 50,
                "sizes": [{"size": 2, "clusters": 11}, {"size": 40, "clusters": 1}],
                "examples": [{"cluster": "c1", "size": 40, "members": [{"id": "bb", "similarity": 1.0, "kept": True, "prompt": "写诗", "reply": "春眠不觉晓"}, {"id": "aa", "similarity": 0.83, "kept": False, "prompt": ATTACK, "reply": None}]}],
            },
            "contamination": {"columns": ["benchmark", "prompts", "share", "contaminated"], "rows": [{"benchmark": "MT-Bench", "prompts": 80, "share": 0.0375, "contaminated": True}]},
        },
    )  # fmt: skip
    return tmp_path


class Balance(HTMLParser):
    """Checks that tags close in order, and gathers tags and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_nothing_foreign_gets_through(folder: Path) -> None:
    path = write_data_page(folder, f"Rows {ATTACK}")
    page = path.read_text(encoding="utf-8")
    assert path.name == "profile.html"
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    tags = [tag for tag, _ in parser.tags]
    assert "script" not in tags
    assert "img" not in tags
    assert not re.search(r'(src|href)="https?:', page)
    ids = [attributes["id"] for _, attributes in parser.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"] for tag, a in parser.tags if tag == "a" and a.get("href", "").startswith("#")}  # type: ignore[union-attr]
    assert {str(link)[1:] for link in links} <= set(ids)
    assert tags.count("svg") == 9  # funnel, coverage, three lengths, turns, languages, sources, clusters
    assert page == render_data_page(read_profile(folder), f"Rows {ATTACK}")


def test_every_number_is_on_the_page(folder: Path) -> None:
    page = render_data_page(read_profile(folder), "Rows")
    for words in (
        *("near_duplicate", "3.8%", "MT-Bench", "12 clusters hold 62 rows", "similarity 0.830", "twin <span"),
        *("120 tokens cover 95%", "200 rows, 199 different conversations", "250 \N{RIGHTWARDS ARROW} 200 (80.0%)"),
        *("The last bar holds all of 21 and more", "an epoch has 300 conversations", "kept (76.9%)"),
    ):
        assert words in page, words
    assert 'lang="zh-Hans"' in page
    assert "1 rows are exact copies" in paragraph(read_profile(folder))


def test_what_is_absent_leaves_no_section(folder: Path) -> None:
    facts = replace(read_profile(folder), funnel=(), removed=(), clusters=None, contamination=None, splits=())
    page = render_data_page(facts, "Rows")
    for name in ("funnel", "removed", "clusters", "contamination", "splits"):
        assert f'id="{name}"' not in page
    assert isinstance(facts, ProfileFacts)


def test_preferences_are_shown(folder: Path) -> None:
    facts = read_profile(folder)
    assert facts.preferences is None  # also of a profile written before there were preferences
    assert 'id="preferences"' not in render_data_page(facts, "Rows")
    one = {"rows": 200, "p50": 80, "p90": 310, "p95": 402, "max": 1999}
    pairs = {
        "kind": "pairs",
        "rows": 200,
        "replies": {"chosen": one, "rejected": one},
        "chosen_longer": 0.625,
        "desirable": None,
    }
    write_json(folder / "profile.json", json.loads((folder / "profile.json").read_text()) | {"preferences": pairs})
    page = render_data_page(read_profile(folder), "Rows")
    assert 'href="#preferences"' in page
    assert "200 pairs; the chosen reply is the longer one in 62.5% of them" in page
    assert '<th scope="row">Rejected</th>' in page
    assert "1,999" in page
    judged = {**pairs, "kind": "feedback", "replies": {"desirable": one}, "chosen_longer": None, "desirable": 0.25}
    write_json(folder / "profile.json", json.loads((folder / "profile.json").read_text()) | {"preferences": judged})
    page = render_data_page(read_profile(folder), "Rows")
    assert "200 judged replies, 25.0% of them desirable" in page
    console = Console(width=150)
    with console.capture() as capture:
        console.print(terminal_profile(read_profile(folder)))
    assert "25.0% of them desirable" in capture.get()


def test_the_terminal_shows_the_same(folder: Path) -> None:
    console = Console(width=150)
    with console.capture() as capture:
        console.print(terminal_profile(read_profile(folder)))
    text = capture.get()
    for words in ("near_duplicate 50", "Whole conversations", "MT-Bench", "train", "Chinese 25.0%", "80.0%"):
        assert words in text


def test_a_damaged_profile_is_told(folder: Path) -> None:
    (folder / "profile.json").write_text('{"schema": 1}')
    with pytest.raises(RunError, match=r"profile\.json: rows: "):
        read_profile(folder)
    with pytest.raises(RunError, match="can't read this artefact"):
        read_profile(folder / "nowhere")


def test_small_words() -> None:
    assert (text_language("天空"), text_language("そら"), text_language("sky")) == ("zh-Hans", "ja", None)
    assert [
        table_cell("share", 0.5),
        table_cell("prompts", 80),
        table_cell("contaminated", True),
        table_cell("x", None),
    ] == [
        "50.0%",
        "80",
        "yes",
        "\N{EN DASH}",
    ]
