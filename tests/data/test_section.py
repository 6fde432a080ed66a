"""The page of a data profile: every number and example is there, in a browser and in a terminal."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from posttrain.artifacts import write_json
from posttrain.data.section import profile_page, read_profile, write_profile_page
from posttrain.errors import RunError
from posttrain.report import html, terminal

ATTACK = '<script>alert("x")</script><img src="http://evil.example/x.png" onerror="alert(1)">'


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


def rendered(folder: Path) -> str:
    return html.page(profile_page(read_profile(folder), "Rows"))


def printed(folder: Path) -> str:
    console = Console(width=150)
    page = profile_page(read_profile(folder), "Rows")
    with console.capture() as capture:
        console.print(terminal.page(page), *map(terminal.section, page.sections))
    return capture.get()


def test_the_page_stands_beside_the_profile_and_its_links_lead_somewhere(folder: Path) -> None:
    path = write_profile_page(folder, "Rows")
    page = path.read_text(encoding="utf-8")
    assert path.name == "profile.html"
    assert page == rendered(folder)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert page.count("<svg ") == 9  # funnel, coverage, three lengths, turns, languages, sources, clusters
    assert "<img" not in page


def test_every_number_is_on_the_page(folder: Path) -> None:
    page = rendered(folder)
    for words in (
        *("near_duplicate", "3.8%", "MT-Bench", "12 clusters hold 62 rows", "similarity 0.830", "twin bb"),
        *("120 tokens cover 95%", "200 rows, 199 different conversations", "250 \N{RIGHTWARDS ARROW} 200 (80.0%)"),
        *("The last bar holds all of 21 and more", "an epoch has 300 conversations", "kept (76.9%)"),
        *('lang="zh-Hans"', "1 rows are exact copies"),
    ):
        assert words in page, words


def test_the_terminal_shows_the_same(folder: Path) -> None:
    text = printed(folder)
    for words in ("near_duplicate", "Whole conversations", "MT-Bench", "train", "Chinese 100.0%", "80.0%", "3.8%"):
        assert words in text
    assert "Key of meta" not in text  # folded


def test_what_is_absent_leaves_no_section(folder: Path) -> None:
    profile = replace(read_profile(folder), funnel=(), removed=(), clusters=None, contamination=None, splits=())
    page = html.page(profile_page(profile, "Rows"))
    for name in ("funnel", "removed", "clusters", "contamination", "preferences"):
        assert f'id="{name}"' not in page
    assert "by split" not in page


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("pairs", {"chosen_longer": 0.625, "desirable": None}, "the chosen reply is the longer one in 62.5% of them"),
        ("feedback", {"chosen_longer": None, "desirable": 0.25}, "200 judged replies, 25.0% of them desirable"),
    ],
)
def test_replies_that_are_compared_have_a_section(folder: Path, kind: str, values: dict[str, Any], said: str) -> None:
    lengths = {"rows": 200, "p50": 80, "p90": 310, "p95": 402, "max": 1999}
    compared = {"kind": kind, "rows": 200, "replies": {"rejected": lengths}, **values}
    write_json(folder / "profile.json", json.loads((folder / "profile.json").read_text()) | {"preferences": compared})
    for shown in (rendered(folder), printed(folder)):
        assert said in shown
        assert "Rejected" in shown
        assert "1,999" in shown


def test_a_damaged_profile_is_named(folder: Path) -> None:
    (folder / "profile.json").write_text('{"schema": 1}')
    with pytest.raises(RunError, match=r"profile\.json: rows: "):
        read_profile(folder)
    with pytest.raises(RunError, match="can't read this artefact"):
        read_profile(folder / "nowhere")
