"""Real public files of every kind, read through the whole stage; the numbers were counted in the files themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from posttrain.artifacts import StageDir, read_json
from posttrain.data.config import DataSettings, Source
from posttrain.data.formats import FORMATS
from posttrain.data.pipeline import prepare
from posttrain.data.places import DataFile
from posttrain.data.rows import read_rows
from posttrain.data.sources import Record, read
from posttrain.errors import DataError
from posttrain.types import SftRow

pytestmark = pytest.mark.shared

LLAMA = "llama-factory-demo/data__"


def rows_of(path: Path, folder: Path, **source: Any) -> tuple[list[SftRow], dict[str, int]]:
    """(all kept rows, dropped by reason)"""
    config = DataSettings(sources=(Source(path=str(path), **source),), held_out=0)
    prepare(config, StageDir(folder), 0, lambda name: None)
    ledger = read_json(folder / "ledger.json")
    rows = read_rows(folder / "rows" / "train.parquet")
    assert ledger["rows_in"] == len(rows) + sum(ledger["dropped"].values())
    return rows, ledger["dropped"]


@pytest.mark.parametrize(
    ("name", "kept", "dropped"),
    [
        (f"{LLAMA}alpaca_en_demo.json", 985, {"exact_duplicate": 14}),
        (f"{LLAMA}alpaca_zh_demo.json", 992, {"exact_duplicate": 8}),
        ("_derived/alpaca_en_demo.parquet", 985, {"exact_duplicate": 14}),
        (f"{LLAMA}identity.json", 91, {}),
        (f"{LLAMA}glaive_toolcall_en_demo.json", 265, {"exact_duplicate": 35}),
        (f"{LLAMA}glaive_toolcall_zh_demo.json", 257, {"exact_duplicate": 43}),
        (f"{LLAMA}reason_tool_use_demo_50.jsonl", 50, {}),
        (f"{LLAMA}v1_sft_demo.jsonl", 499, {"exact_duplicate": 1}),
        ("_derived/oasst_en_100.openai_messages.jsonl", 100, {}),
        ("tinker-cookbook/tinker_cookbook__example_data__conversations.jsonl", 128, {}),
        ("torchtune-tiny/tests__assets__alpaca_tiny.json", 100, {}),
        ("gsm8k/grade_school_math__data__test.jsonl", 1319, {}),
        ("self-instruct/data__seed_tasks.jsonl", 175, {}),
        ("self-instruct/human_eval__user_oriented_instructions.jsonl", 252, {}),
        ("belle/data__1.5M__zh_seed_tasks.json", 175, {}),
        ("belle/eval__eval_set.json", 631, {"empty_assistant_turn": 369}),
        ("bespoke-parquet/tests__integrations__common_fixtures__reasoning_dataset.parquet", 5, {}),
        ("alpaca-eval/results__text_davinci_003__model_outputs.json", 803, {"empty_assistant_turn": 2}),
        ("xstest/model_completions__xstest_v2_completions_llama2orig.csv", 450, {}),
    ],
)
def test_rows_kept_and_dropped(
    shared_data: Path, tmp_path: Path, name: str, kept: int, dropped: dict[str, int]
) -> None:
    rows, found = rows_of(shared_data / name, tmp_path)
    assert (len(rows), found) == (kept, dropped)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{LLAMA}c4_demo.jsonl", "text alone is not a conversation"),
        (f"{LLAMA}dataset_info.json", "no row format fits"),
        (f"{LLAMA}wiki_demo.txt", "not a data file"),
        ("open-assistant/model__model_eval__manual__data__en_100_text.jsonl", "not_an_object 100"),
        ("magpie-example/data_po__example_instructions_5res.json", "no row format fits"),
        ("ultrachat-eval/data__ultra_eval.json", "keys found: class, data"),
        ("evaluation/mt_bench/human_votes.jsonl", "keys found: judge, model_a, model_b, question_id, turn, winner"),
        ("open-instruct/human_eval__data__eval_instances_tulu_1.jsonl", "keys found: id, prompt, completions"),
        (
            "open-instruct/scripts__synth_pref__example__create_annotation_mix_out__full__helpfulness-full.jsonl",
            "keys found: prompt_hash, id, raw_text, models, completions",
        ),
    ],
)
def test_files_that_hold_no_rows_say_why(shared_data: Path, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(shared_data / name, tmp_path)
    assert words in str(caught.value)


def test_alpaca_prompts_are_those_of_the_file(shared_data: Path) -> None:
    path = shared_data / f"{LLAMA}alpaca_en_demo.json"
    foreign = json.loads(path.read_text(encoding="utf-8"))
    lines = path.read_text(encoding="utf-8").split("\n")
    for record, original in zip(read(DataFile("demo", path)), foreign, strict=True):
        assert isinstance(record, Record)
        assert lines[record.origin.line - 1] == "  {"
        row = FORMATS["alpaca"].parse(record.value, record.origin, "demo")
        assert [m.content for m in row.messages] == [
            (original["instruction"] + "\n" + original["input"]).strip(),
            original["output"],
        ]


def test_parquet_and_json_give_the_same_rows(shared_data: Path, tmp_path: Path) -> None:
    of_json, _ = rows_of(shared_data / f"{LLAMA}alpaca_zh_demo.json", tmp_path)
    of_parquet, _ = rows_of(shared_data / "_derived/alpaca_zh_demo.parquet", tmp_path)
    assert [row.id for row in of_json] == [row.id for row in of_parquet]


def test_reasoning_tools_and_calls_of_typed_parts(shared_data: Path, tmp_path: Path) -> None:
    rows, _ = rows_of(shared_data / f"{LLAMA}reason_tool_use_demo_50.jsonl", tmp_path)
    replies = [m for row in rows for m in row.messages if m.role == "assistant"]
    assert len(replies) == 112
    assert all(m.reasoning for m in replies)
    assert sum(len(m.tool_calls) for m in replies) == 41 + 9 * 2 + 3 * 3
    assert all(isinstance(json.loads(call.arguments), dict) for m in replies for call in m.tool_calls)
    assert all(row.messages[0].role == "system" for row in rows)
    assert all(row.tools for row in rows if any(m.tool_calls for m in row.messages))


def test_function_calls_of_sharegpt(shared_data: Path, tmp_path: Path) -> None:
    rows, _ = rows_of(shared_data / f"{LLAMA}glaive_toolcall_en_demo.json", tmp_path)
    calls = [call for row in rows for m in row.messages for call in m.tool_calls]
    assert len(calls) == sum(m.role == "tool" for row in rows for m in row.messages) > 150
    assert all(row.tools for row in rows if any(m.tool_calls for m in row.messages))


def test_weights_of_the_source_are_kept(shared_data: Path, tmp_path: Path) -> None:
    rows, _ = rows_of(shared_data / f"{LLAMA}v1_sft_demo.jsonl", tmp_path)
    assert {(m.role, m.weight) for row in rows for m in row.messages} == {("user", None), ("assistant", 1.0)}


def test_a_named_format_reads_preference_files_as_conversations(shared_data: Path, tmp_path: Path) -> None:
    rows, dropped = rows_of(shared_data / f"{LLAMA}kto_en_demo.json", tmp_path, format="messages")
    assert len(rows) + sum(dropped.values()) == 300
    assert {row.meta["label"] for row in rows} == {True, False}


def test_every_compression_of_one_file_gives_the_same_records(shared_data: Path) -> None:
    plain = shared_data / "decon-bundled-evals" / "tests__fixtures__training__contaminated_mixed.jsonl"
    names = [plain.name + suffix for suffix in ("", ".gz", ".bz2", ".xz", ".zst")]
    read_all = [[r.value for r in read(DataFile("x", plain.parent / name)) if isinstance(r, Record)] for name in names]
    assert read_all[0]
    assert all(found == read_all[0] for found in read_all[1:])


def test_the_rows_are_usable_by_others(shared_data: Path, tmp_path: Path) -> None:
    rows_of(shared_data / "gsm8k/grade_school_math__data__test.jsonl", tmp_path)
    first = pl.read_parquet(tmp_path / "rows" / "train.parquet").row(0, named=True)
    assert first["messages"][1]["content"].endswith("#### 18")
    assert first["line"] == 1
