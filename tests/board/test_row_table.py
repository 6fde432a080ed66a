"""Rows of files and stages as the board lists, searches and opens them; no web."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_examples import FORMAT_EXAMPLES
from posttrain.board import row_clusters
from posttrain.board.row_readers import source_of
from posttrain.board.row_sets import RowSet, find, original, sets_of_folders, sets_of_run
from posttrain.board.row_source import Sieve
from posttrain.board.row_table import RowPage, lengths_of, original_of, page, row_at, texts_in_run
from posttrain.errors import DataError
from posttrain.types import PairRow
from row_files import data_run, lines, turns


def listed(folder: Path, name: str = "") -> RowSet:
    sets = sets_of_folders([folder])
    return find(sets, f"{folder.name}/{name}") if name else sets[0]


def opened(folder: Path, at: int = 0, limit: int = 50, **wanted: str) -> RowPage:
    return page(source_of(listed(folder)), at, limit, Sieve(**wanted), patience=60)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    return data_run(tmp_path / "runs" / "one", tmp_path / "data")


# ---- which files there are -----------------------------------------------------------------------------------------


def test_a_run_lists_what_is_handed_on_before_what_was_dropped(stage: Path) -> None:
    found = [(one.name, one.role) for one in sets_of_run(stage)]
    assert found == [
        ("prepare/rows/held_out.parquet", "rows"),
        ("prepare/rows/train.parquet", "rows"),
        ("prepare/read/rows.parquet", "rows"),
        ("prepare/steps/01-filter/rows.parquet", "rows"),
        ("prepare/steps/02-dedup/rows.parquet", "rows"),
        ("prepare/ledger.json", "dropped"),
        ("prepare/steps/01-filter/rejects.parquet", "dropped"),
        ("prepare/steps/02-dedup/rejects.parquet", "dropped"),
        ("prepare/steps/02-dedup/clusters.parquet", "table"),
    ]


def test_links_out_of_a_folder_pipes_and_hidden_files_are_not_found(tmp_path: Path) -> None:
    secret = lines(tmp_path / "elsewhere", "secret.jsonl", [turns(1)])
    data = lines(tmp_path / "data", "good.jsonl", [turns(1)]).parent
    (data / "out.jsonl").symlink_to(secret)
    (data / "folder").symlink_to(secret.parent)
    (data / "in.jsonl").symlink_to(data / "good.jsonl")
    lines(data, ".hidden.jsonl", [turns(1)])
    lines(data, "readme.txt", ["words"])
    os.mkfifo(data / "pipe.jsonl")
    sets = sets_of_folders([data])
    assert [one.name for one in sets] == ["data/good.jsonl", "data/in.jsonl"]
    for name in ("../elsewhere/secret.jsonl", str(secret), "data/../elsewhere/secret.jsonl", "data/out.jsonl", ""):
        with pytest.raises(DataError, match="no file of rows"):
            find(sets, name)
    assert original(str(secret), [data]) is None
    assert original(str(data / "out.jsonl"), [data]) is None
    assert original(str(data / ".." / "elsewhere" / "secret.jsonl"), [data]) is None
    assert original("/dev/zero", [Path("/dev")]) is None
    assert original(str(data / "good.jsonl"), [data]) is not None


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [lines(tmp_path / side / "data", "a.jsonl", [turns(1)]).parent for side in ("left", "right")]
    assert [one.name for one in sets_of_folders(folders)] == ["data/a.jsonl", "data'/a.jsonl"]
    assert sets_of_folders([tmp_path / "nowhere"]) == []


# ---- every format --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMAT_EXAMPLES)
def test_every_format_is_shown_as_rows(name: str, tmp_path: Path) -> None:
    lines(tmp_path / "data", "a.jsonl", [FORMAT_EXAMPLES[name]])
    (line,) = opened(tmp_path / "data").lines
    assert line.kind is not None, line
    assert line.prompt
    assert (line.kind == "pairs") == bool(line.rejected)
    assert line.reason == ""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_pages_of_every_kind_of_file_follow_one_another(name: str, tmp_path: Path) -> None:
    rows = [turns(n) for n in range(25)]
    data = tmp_path / "data"
    data.mkdir()
    frame = pl.DataFrame(rows)
    match name:
        case "a.json":
            (data / name).write_text(json.dumps(rows, indent=1))
        case "a.csv":
            frame.write_csv(data / name)
        case "a.parquet":
            frame.write_parquet(data / name)
        case "a.arrow":
            frame.write_ipc(data / name)
        case _:
            lines(data, name, rows)
    found, at = [], 0
    for _ in range(3):
        one = opened(data, at, 10)
        found += one.lines
        assert one.at == at
        at = one.after if one.after is not None else -1
    assert [line.prompt for line in found] == [row["prompt"] for row in rows]
    assert at == -1
    source = source_of(listed(data))
    assert source.count() == (None if name.endswith(".gz") else 25)
    shown = row_at(source, found[17].at)
    assert shown is not None
    assert shown.row is not None
    assert shown.row.messages[0].content == rows[17]["prompt"]
    assert row_at(source, 99) is None


def test_damaged_rows_stand_where_they_are_with_their_reason(tmp_path: Path) -> None:
    rows = [
        turns(1),
        "",
        "{broken <b>",
        "[1, 2]",
        {"prompt": "No reply", "completion": " "},
        turns(2),
        b"\xff".decode("latin-1"),
    ]
    lines(tmp_path / "data", "a.jsonl", rows)
    found = opened(tmp_path / "data").lines
    assert [(line.at, line.reason) for line in found] == [
        (0, ""),
        (2, "broken_json"),
        (3, "not_an_object"),
        (4, "empty_assistant_turn"),
        (5, ""),
        (6, "broken_json"),
    ]
    assert found[1].prompt == "{broken <b>"
    assert [line.at for line in opened(tmp_path / "data", reason="broken_json").lines] == [2, 6]


def test_a_file_that_no_format_fits_is_shown_all_the_same(tmp_path: Path) -> None:
    lines(tmp_path / "data", "a.jsonl", [{"colour": "blue", "number": 3}])
    (line,) = opened(tmp_path / "data").lines
    assert line.reason == "no_format"
    assert "blue" in line.prompt


def test_a_file_that_is_no_data_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\0" * 99 + b"PAR1")
    (tmp_path / "b.json").write_bytes(b"PK\x03\x04 a zip archive")
    for name in ("a.parquet", "b.json"):
        with pytest.raises(DataError):
            page(source_of(listed(tmp_path, name)), 0, 5)


def test_one_object_of_columns_is_all_its_rows(tmp_path: Path) -> None:
    columns = {"prompt": {str(n): f"Question {n}" for n in range(5)}, "completion": {str(n): "Yes." for n in range(5)}}
    (tmp_path / "a.json").write_text(json.dumps(columns))
    assert [line.prompt for line in opened(tmp_path, 3).lines] == ["Question 3", "Question 4"]


# ---- search and filters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json"])
@pytest.mark.parametrize("word", ["NEEDLE", "straße", "红色", 'say "so"', "\u00c9TUDE"])
def test_the_search_finds_words_in_any_case_however_they_are_written(name: str, word: str, tmp_path: Path) -> None:
    rows = [turns(n) for n in range(30)]
    rows[20] = turns(20, 'the needle, die Straße, 红色的花, étude; say "so"')
    data = tmp_path / "data"
    data.mkdir()
    if name == "a.parquet":
        pl.DataFrame(rows).write_parquet(data / name)
    elif name == "a.json":
        (data / name).write_text(json.dumps(rows))
    else:
        written = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows)]
        lines(data, name, written)
    assert [line.at for line in opened(data, text=word).lines] == [20]


def test_a_search_that_takes_long_says_how_far_it_has_come(tmp_path: Path) -> None:
    lines(tmp_path / "data", "a.jsonl", [turns(n) for n in range(30)])
    source = source_of(listed(tmp_path / "data"))
    first = page(source, 0, 10, Sieve(text="number"), patience=0.0)
    assert not first.found_all
    assert first.after is not None
    found, at = list(first.lines), first.after
    while at is not None:
        one = page(source, at, 10, Sieve(text="number"), patience=0.0)
        found, at = [*found, *one.lines], one.after
    assert [line.at for line in found] == list(range(30))


def test_rows_are_filtered_by_language_and_split(stage: Path) -> None:
    sets = sets_of_run(stage)
    read = source_of(find(sets, "prepare/read/rows.parquet"))
    assert [line.prompt for line in page(read, 0, 9, Sieve(language="zh"), 60).lines] == ["红色的反义词是什么？"]
    train = source_of(find(sets, "prepare/rows/train.parquet"))
    assert len(page(train, 0, 99, Sieve(split="train"), 60).lines) == train.count()
    assert page(train, 0, 99, Sieve(split="validation"), 60).lines == ()


# ---- dropped rows --------------------------------------------------------------------------------------------------


def test_a_dropped_row_is_shown_with_its_reason_and_its_text(stage: Path, tmp_path: Path) -> None:
    sets = sets_of_run(stage)
    account = source_of(find(sets, "prepare/ledger.json"))
    dropped = {line.reason: line for line in page(account, 0, 50).lines}
    assert dropped.keys() == {"broken_json", "empty_assistant_turn", "exact_duplicate"}
    assert dropped["exact_duplicate"].detail.startswith("same as ")
    shown = {one.reason: one for at in range(3) if (one := row_at(account, at)) is not None}
    for reason, text in {"broken_json": "{broken", "exact_duplicate": "Question number 3?"}.items():
        beside = original_of(shown[reason], [tmp_path / "data"])
        assert beside is not None
        assert text in beside.text
        assert original_of(shown[reason], [tmp_path / "runs"]) is None
    filtered = source_of(find(sets, "prepare/steps/01-filter/rejects.parquet"))
    (line,) = page(filtered, 0, 9, Sieve(reason="assistant_too_long"), 60).lines
    assert line.step == "filter"
    assert line.prompt == "Question number 90?"
    assert line.detail


def test_a_dropped_row_of_an_array_is_found_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([turns(n) for n in range(9)], indent=1))
    last = row_at(source_of(listed(tmp_path)), 8)
    assert last is not None
    found = original_of(replace_origin(last, str(tmp_path / "a.json")), [tmp_path])
    assert found is not None
    assert found.row == last.row or found.text == last.text


def replace_origin(one: Any, file: str) -> Any:
    from dataclasses import replace

    from posttrain.types import Origin

    return replace(one, origin=Origin(file, one.origin.line), row=None)


def test_measured_rows_without_a_text_are_found_among_the_rows_of_the_run(stage: Path) -> None:
    sets = sets_of_run(stage)
    held_out = row_at(source_of(find(sets, "prepare/rows/held_out.parquet")), 0)
    assert held_out is not None
    rows = [{"model": "base", "prompt_id": held_out.facts["id"], "sample": 0, "values": {"nll": 3.5}}]
    rows += [{"model": "base", "prompt_id": "gone", "sample": 0, "values": {"nll": 1.0}}]
    rows += [{"model": "sft", "prompt_id": held_out.facts["id"], "sample": 0, "values": {"nll": 2.5}}]
    lines(stage, "evaluate/likelihood.rows.jsonl", rows)
    source = source_of(find(sets_of_run(stage), "evaluate/likelihood.rows.jsonl"))
    shown = [one for at in range(3) if (one := row_at(source, at)) is not None]
    found = texts_in_run(shown, sets)
    assert found.keys() == {0, 2}
    assert found[0].row == held_out.row
    assert found[0].file == "prepare/rows/held_out.parquet"


def test_replies_of_models_are_rows_with_a_model(tmp_path: Path) -> None:
    rows = [
        {
            "model": model,
            "prompt_id": "p",
            "sample": 0,
            "language": "en",
            "turns": ["Hi?"],
            "replies": [f"I am {model}."],
            "tokens": 4,
        }
        for model in ("base", "sft")
    ]
    rows.append({"model": "sft", "prompt_id": "q", "sample": 0, "turns": ["And?"], "failure": "timeout"})
    lines(tmp_path, "evaluate/prompts.rows.jsonl", rows)
    source = source_of(find(sets_of_run(tmp_path), "evaluate/prompts.rows.jsonl"))
    found = page(source, 0, 9, Sieve(model="sft"), 60).lines
    assert [(line.prompt, line.reply, line.tokens) for line in found] == [("Hi?", "I am sft.", 4), ("And?", "", 1)]
    assert found[1].facts["failure"] == "timeout"


# ---- clusters and lengths ------------------------------------------------------------------------------------------


def test_near_duplicates_stand_together(stage: Path) -> None:
    table = find(sets_of_run(stage), "prepare/steps/02-dedup/clusters.parquet").path
    (cluster,), total = row_clusters.clusters(table, 0, 10)
    assert (total, cluster.size) == (1, 2)
    assert cluster.head.startswith("Say the alphabet")
    kept, dropped = row_clusters.members(table, cluster.number)
    assert (kept.kept, dropped.kept) == (True, False)
    assert kept.row is not None
    assert dropped.row is not None
    assert {kept.row.messages[1].content, dropped.row.messages[1].content} == {"abcdefghijk one", "abcdefghijk two"}
    assert row_clusters.cluster_of(table, dropped.id) == cluster.number
    assert row_clusters.cluster_of(table, "none") is None


def test_lengths_are_the_same_read_either_way(stage: Path, tmp_path: Path) -> None:
    rows = lengths_of(source_of(find(sets_of_run(stage), "prepare/read/rows.parquet")))
    data = lengths_of(source_of(listed(tmp_path / "data")), patience=60)
    assert rows is not None
    assert data is not None
    assert rows.whole
    assert data.whole
    assert data.rows == rows.rows + 1  # an exact duplicate
    assert rows.lengths.max == data.lengths.max == len("Question number 90?") + len("far " * 80)
    lines(tmp_path / "empty", "a.jsonl", ["{broken"])
    assert lengths_of(source_of(listed(tmp_path / "empty")), patience=60) is None


def test_both_sides_of_a_pair_count(tmp_path: Path) -> None:
    lines(tmp_path / "data", "a.jsonl", [{"prompt": "123", "chosen": "45", "rejected": "6789"}])
    (line,) = opened(tmp_path / "data").lines
    assert line.characters == 9
    shown = row_at(source_of(listed(tmp_path / "data")), 0)
    assert shown is not None
    assert isinstance(shown.row, PairRow)
