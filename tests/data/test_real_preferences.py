"""Real public preference files, read through the whole stage; the numbers were counted in the files themselves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import StageDir, read_json
from posttrain.data.config import DataSettings, PairRule, Source
from posttrain.data.pipeline import prepare
from posttrain.data.rows import read_feedback, read_pairs, read_rows, row_kind_of
from posttrain.data.split import prompt_key

pytestmark = pytest.mark.shared

LLAMA = "llama-factory-demo/data__"
HH = "_derived/hh_harmless_test.first1000.jsonl"
OASST = "_derived/oasst_en_100.preference_pairs.jsonl"
BOOK = "llms-from-scratch/ch07__04_preference-tuning-with-dpo__instruction-data-with-preference.json"
STACK = "torchtune-tiny/tests__assets__stack_exchange_paired_tiny.json"
MAGPIE = "magpie-example/data_po__example_instructions_5res_armorm.json"
READERS = {"pairs": read_pairs, "feedback": read_feedback, "conversations": read_rows}


def rows_of(path: Path, folder: Path, rows: Any = "auto", **source: Any) -> tuple[str, list[Any], dict[str, int], int]:
    """(kind, all kept rows, dropped by reason, rows made beside the first of a record)"""
    config = DataSettings(sources=(Source(path=str(path), **source),), held_out=0, rows=rows, profile=False)
    prepare(config, StageDir(folder), 0, lambda name: None)
    ledger = read_json(folder / "ledger.json")
    train = folder / "rows" / "train.parquet"
    kind = row_kind_of(train)
    assert kind is not None
    found = READERS[kind](train)
    assert ledger["rows_in"] + ledger["added"] == len(found) + sum(ledger["dropped"].values())
    return kind, found, ledger["dropped"], ledger["added"]


@pytest.mark.parametrize(
    ("name", "kept", "dropped"),
    [
        (f"{LLAMA}dpo_en_demo.json", 295, {"exact_duplicate": 5}),
        (f"{LLAMA}dpo_zh_demo.json", 289, {"exact_duplicate": 11}),
        (f"{LLAMA}v1_dpo_demo.jsonl", 10, {}),
        (BOOK, 1094, {"equal_sides": 6}),
        (HH, 997, {"empty_assistant_turn": 3}),
        (OASST, 212, {}),
        (STACK, 25, {}),
        (MAGPIE, 5, {}),
    ],
)
def test_pairs_kept_and_dropped(
    shared_data: Path, tmp_path: Path, name: str, kept: int, dropped: dict[str, int]
) -> None:
    kind, rows, found, added = rows_of(shared_data / name, tmp_path)
    assert (kind, len(rows), found, added) == ("pairs", kept, dropped, 0)


@pytest.mark.parametrize(
    ("name", "kept", "dropped", "added"),
    [
        (f"{LLAMA}kto_en_demo.json", 300, {}, 0),
        (f"{LLAMA}dpo_en_demo.json", 590, {"exact_duplicate": 10}, 300),
        (HH, 1994, {"empty_assistant_turn": 3}, 997),
        # 16 answers are the better one of some pair, 14 the worse one
        (STACK, 30, {"exact_duplicate": 20}, 25),
    ],
)
def test_pairs_as_feedback(
    shared_data: Path, tmp_path: Path, name: str, kept: int, dropped: dict[str, int], added: int
) -> None:
    kind, rows, *found = rows_of(shared_data / name, tmp_path, rows="feedback")
    assert (kind, len(rows), *found) == ("feedback", kept, dropped, added)


@pytest.mark.parametrize(
    ("name", "kept", "dropped"),
    [
        (f"{LLAMA}kto_en_demo.json", 150, {"undesirable": 150}),
        (f"{LLAMA}dpo_zh_demo.json", 289, {"exact_duplicate": 11}),
        (STACK, 16, {"exact_duplicate": 9}),
    ],
)
def test_preferences_as_conversations(
    shared_data: Path, tmp_path: Path, name: str, kept: int, dropped: dict[str, int]
) -> None:
    kind, rows, found, _ = rows_of(shared_data / name, tmp_path, rows="conversations")
    assert (kind, len(rows), found) == ("conversations", kept, dropped)


def test_the_turns_of_the_ranking_are_those_of_the_file(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / f"{LLAMA}dpo_en_demo.json"
    _, rows, _, _ = rows_of(path, tmp_path)
    foreign = [
        ([t["value"] for t in r["conversations"]], r["chosen"]["value"], r["rejected"]["value"])
        for r in json.loads(path.read_text(encoding="utf-8"))
    ]
    seen = [([m.content for m in row.prompt], row.chosen[0].content, row.rejected[0].content) for row in rows]
    assert all(row in foreign for row in seen)
    assert Counter(len(row.prompt) for row in rows) == {1: 112, 2: 80, 5: 55, 7: 45, 3: 1, 9: 1, 13: 1}
    assert sum(row.prompt[0].role == "system" for row in rows) == 80


def test_transcripts_are_cut_at_the_last_reply(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / HH
    _, rows, _, _ = rows_of(path, tmp_path)
    lines = path.read_text(encoding="utf-8").split("\n")
    names = {"user": "Human", "assistant": "Assistant"}
    for row in rows:
        record = json.loads(lines[row.origin.line - 1])
        assert row.prompt[-1].role == "user"
        for side, key in ((row.chosen, "chosen"), (row.rejected, "rejected")):
            written = "".join(f"\n\n{names[m.role]}: {m.content}" for m in (*row.prompt, *side))
            assert written.split() == record[key].split()
    # rows 667 and 763 (from 0) hold a speaker's name in a line, and two turns of the assistant in a row
    odd = [row for row in rows if row.origin.line in (668, 764)]
    assert [sum(m.role == "assistant" for m in row.prompt) for row in odd] == [9, 2]


def test_feedback_keeps_its_labels(shared_data: Path, tmp_path: Path) -> None:
    _, rows, _, _ = rows_of(shared_data / f"{LLAMA}kto_en_demo.json", tmp_path)
    assert Counter(row.desirable for row in rows) == {True: 150, False: 150}
    assert all(len(row.completion) == 1 and row.prompt[-1].role == "user" for row in rows)
    assert max(len(row.prompt) for row in rows) == 11


def test_scored_responses_give_margins(shared_data: Path, tmp_path: Path) -> None:
    _, rows, _, _ = rows_of(shared_data / MAGPIE, tmp_path / "best")
    assert [round(row.meta["margin"], 4) for row in rows] == [0.0093, 0.0073, 0.0225, 0.0273, 0.0322]
    _, rows, dropped, _ = rows_of(shared_data / MAGPIE, tmp_path / "margin", pairs=PairRule(min_margin=0.01))
    assert (len(rows), dropped) == (3, {"margin_too_small": 2})
    _, rows, _, added = rows_of(shared_data / MAGPIE, tmp_path / "all", pairs=PairRule(take="all"))
    assert (len(rows), added) == (50, 45)


@pytest.mark.parametrize("name", [f"{LLAMA}dpo_en_demo.json", HH, STACK])
@pytest.mark.parametrize("rows", ["pairs", "feedback"])
def test_no_prompt_is_on_both_sides(shared_data: Path, tmp_path: Path, name: str, rows: Any) -> None:
    config = DataSettings(sources=(Source(path=str(shared_data / name)),), held_out=0.1, rows=rows, profile=False)
    result = prepare(config, StageDir(tmp_path), 0, lambda name: None)
    sides = [READERS[rows](tmp_path / "rows" / f"{side}.parquet") for side in ("train", "held_out")]
    keys = [{prompt_key(row.messages) for row in side} for side in sides]
    assert keys[0].isdisjoint(keys[1])
    assert 0 < result["held_out_rows"] <= round(0.1 * sum(map(len, sides)))
