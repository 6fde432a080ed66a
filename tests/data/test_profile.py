"""The profile: numbers worked by hand, the funnel of a chain, examples, no dependence on order, block or workers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.artifacts import Ledger, read_json
from posttrain.data.chain_profile import chain_steps, funnel
from posttrain.data.mix import MixStep
from posttrain.data.profile import (
    Counts,
    TokenCounter,
    comparison_counts,
    length_summary,
    profile,
)
from posttrain.data.rows import rows_frame, write_rows
from posttrain.data.split import SplitStep
from posttrain.data.steps import REJECTS, Decisions, StepRun, apply
from posttrain.errors import DataError
from posttrain.types import Message, Origin, SftRow, ToolCall

RUN = StepRun(resolve=lambda name: None)


def talk(
    number: int, user: str, assistant: str, source: str = "a", meta: dict[str, Any] | None = None, *before: Message
) -> SftRow:
    messages = (*before, Message("user", user), Message("assistant", assistant))
    return SftRow(messages, Origin(f"{source}.jsonl", number), source, meta=meta or {})


def write(path: Path, rows: Sequence[SftRow], **columns: list[Any]) -> Path:
    frame = rows_frame(rows).with_columns(**{name: pl.Series(name, values) for name, values in columns.items()})
    write_rows(path, frame)
    return path


ROWS = [
    talk(1, "one two three", "four", meta={"topic": "x", "n": 1}),
    talk(2, "Why is the sky blue on a clear day?", "Because the air scatters blue light the most of all.", meta={"topic": "y"}),
    talk(3, "为什么天空是蓝色的？", "因为空气散射蓝光。", "b", None, Message("system", "be brief")),
    talk(4, "hello", "hi", "a", {"topic": "x"}, Message("user", "first"), Message("assistant", "second")),
]  # fmt: skip


def profiled(files: Sequence[Path], out: Path, **options: Any) -> dict[str, Any]:
    """What a profile has written."""
    profile(files, out, **options)
    found: dict[str, Any] = read_json(out / "profile.json")
    return found


def test_numbers_by_hand(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.parquet", ROWS, split=["train", "train", "test", "train"], weight=[1.0, 3.0, 1.0, 1.0]
    )
    found = profiled([path], tmp_path / "out", limits=(4, 17))
    assert (found["rows"], found["distinct_ids"], found["rows_counted"]) == (4, 4, 6.0)
    # tokens: 3 + 1; 9 + 10; 2 of the system turn, 9 and 8 characters; 2 + 2
    whole = found["lengths"]["whole"]
    assert (whole["total"], whole["min"], whole["p50"], whole["p90"], whole["max"]) == (4 + 19 + 19 + 4, 4, 4, 19, 19)
    assert [entry["rows"] for entry in whole["over"]] == [2, 2]
    assert whole["over"][0]["share"] == 0.5
    assert found["lengths"]["user"]["percentiles"][100] == 9
    assert found["lengths"]["assistant"]["total"] == 1 + 10 + 8 + 2
    assert found["covering"] == {"share": 0.95, "length": 19, "rounded": 64, "rounded_share": 1.0}
    assert found["turns"] == {"mean": 2.5, "max": 4, "counts": [{"turns": 2, "rows": 3}, {"turns": 4, "rows": 1}]}
    features = {name: rows for name, rows in found["features"].items() if rows}
    assert features == {"system": 1, "several_exchanges": 1}
    assert [(s["name"], s["rows"], s["tokens"], s["rows_counted"]) for s in found["sources"]] == [
        ("a", 3, 27, 5.0),
        ("b", 1, 19, 1.0),
    ]
    assert [(s["name"], s["rows"]) for s in found["splits"]] == [("train", 3), ("test", 1)]
    assert found["meta_keys"] == [
        {"key": "topic", "rows": 3, "types": ["str"], "values": ["x", "y"]},
        {"key": "n", "rows": 1, "types": ["int"], "values": ["1"]},
    ]
    assert {entry["language"] for entry in found["languages"]} >= {"zh"}
    assert found["columns"][0] == {"name": "id", "type": "text", "nulls": 0}
    assert (found["funnel"], found["removed"], found["clusters"], found["contamination"]) == ([], [], None, None)


@pytest.mark.slow
def test_order_files_and_workers_do_not_matter(tmp_path: Path) -> None:
    rows = [
        talk(n, f"question {n} " * (n % 7 + 1), f"答案{n}" * (n % 5 + 1), "ab"[n % 2], {"k": n % 3})
        for n in range(9000)
    ]
    one = profiled([write(tmp_path / "rows.parquet", rows)], tmp_path / "one")
    random.Random(0).shuffle(rows)
    write(tmp_path / "x" / "rows.parquet", rows)
    two = profiled([tmp_path / "x" / "rows.parquet"], tmp_path / "two", workers=2)
    assert one == two
    parts = [write(tmp_path / f"{n}.parquet", rows[begin : begin + 5000]) for n, begin in enumerate((0, 5000))]
    three = profiled(parts, tmp_path / "three")
    assert {key: value for key, value in three.items() if key != "files"} == {
        key: value for key, value in one.items() if key != "files"
    }


@given(values=st.lists(st.integers(0, 5000), min_size=1, max_size=300))
def test_lengths_are_exact(values: list[int]) -> None:
    found = asdict(length_summary(np.array(values, np.uint32), (100, 1000)))
    ordered = sorted(values)
    for percent in (1, 50, 90, 95, 100):
        # the smallest value that so many percent of all are not above
        expected = next(v for v in ordered if sum(x <= v for x in values) * 100 >= percent * len(values) - 1e-9)
        assert found["percentiles"][percent] == expected
    assert (found["p95"], found["max"]) == (found["percentiles"][95], max(values))
    histogram = found["histogram"]
    assert sum(histogram["counts"]) + histogram["beyond"] == len(values)
    for low, high, count in zip(histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False):
        assert count == sum(low <= value < high for value in values)
    assert [entry["rows"] for entry in found["over"]] == [sum(v > limit for v in values) for limit in (100, 1000)]


def test_tokens_of_tools_and_reasoning_count() -> None:
    messages = (
        Message("system", "two words"),
        Message("user", "what is 3 + 4?"),
        Message("assistant", "seven", reasoning="add them", tool_calls=(ToolCall("add", '{"a": 3, "b": 4}'),)),
        Message("tool", "7"),
    )
    assert comparison_counts([(messages, ())]) == [Counts(2 + 4 + 8 + 1, 4, 1 + 2 + 5)]


def test_a_model_counts_through_the_callers_function(tmp_path: Path) -> None:
    counter = TokenCounter("letters of x", True, lambda block: [Counts(len(m) * 10, len(m), 1) for m, _ in block])
    found = profiled([write(tmp_path / "rows.parquet", ROWS)], tmp_path / "out", counter=counter)
    assert found["tokenizer"] == {"name": "letters of x", "is_model": True}
    assert found["lengths"]["whole"]["percentiles"][0] == 20
    assert found["lengths"]["whole"]["max"] == 40


def chain(folder: Path) -> Path:
    """A stage's folder: its own ledger, a filter, a split and a mix, with files as steps write them."""
    rows = [
        talk(n, f"prompt number {n} about {'abc'[n % 3]} thing {n * 17}", f"reply {n}", "ab"[n % 2]) for n in range(60)
    ]
    path = write(folder / "rows" / "all.parquet", rows)
    ledger = Ledger()
    read = ledger.step("read", 62)
    read.rows_out = 61
    ledger.drop(read, Origin("a.jsonl", 99), "broken_json", "line 99")
    unique = ledger.step("deduplicate", 61)
    unique.rows_out = 60
    ledger.drop(unique, Origin("a.jsonl", 98), "exact_duplicate", "same as a.jsonl:1")
    ledger.step("split", 40).rows_out = 40
    ledger.write(folder / "ledger.json")
    rejects = pl.DataFrame(
        {"row": [1, 4, 7, 10, 13], "reason": ["short"] * 4 + ["garbled"], "detail": ["x"] * 5, "twin": [None] * 5},
        schema=REJECTS,
    )
    out = folder / "steps" / "01-filter"
    out.mkdir(parents=True)
    apply("filter", path, Decisions(rejects), out)
    for name, step in (
        ("02-split", SplitStep(kind="split", validation=5)),
        ("03-mix", MixStep(kind="mix", counts={"a": 10})),
    ):
        before, out = out, folder / "steps" / name
        out.mkdir()
        apply(step.kind, before / "rows.parquet", step.decide(before / "rows.parquet", 0, RUN), out)
    return out / "rows.parquet"


def test_the_funnel_of_a_chain(tmp_path: Path) -> None:
    last = chain(tmp_path / "stage")
    found = profiled([last], tmp_path / "out", chain=tmp_path / "stage")
    lines = [(line["step"], line["rows_in"], line["rows_out"]) for line in found["funnel"]]
    kept = found["rows"]
    # the stage's own line "split" gives way to that of the step of the same name
    assert lines == [
        ("read", 62, 61),
        ("deduplicate", 61, 60),
        ("filter", 60, 55),
        ("split", 55, 55),
        ("mix", 55, kept),
    ]
    assert found["funnel"][2]["kept_share"] == 55 / 60
    assert found["funnel"][2]["share_of_start"] == 55 / 62
    reasons = [(entry["step"], entry["reason"], entry["rows"], len(entry["examples"])) for entry in found["removed"]]
    assert reasons == [
        ("read", "broken_json", 1, 1),
        ("deduplicate", "exact_duplicate", 1, 1),
        ("01-filter", "short", 4, 3),
        ("01-filter", "garbled", 1, 1),
        ("03-mix", "mix_quota", 55 - kept, 3),
    ]
    assert found["removed"][0]["examples"][0]["prompt"] is None
    short = found["removed"][2]["examples"]
    assert [example["id"] for example in short] == sorted(example["id"] for example in short)
    assert short[0]["prompt"].startswith("prompt number")
    assert sum(split["rows"] for split in found["splits"]) == kept


def test_the_mix_of_a_stage_comes_after_its_steps(tmp_path: Path) -> None:
    step = tmp_path / "steps" / "01-filter"
    for folder, names in ((tmp_path, ("read", "mix")), (step, ("filter",))):
        folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger()
        for name in names:
            ledger.step(name, 5).rows_out = 5
        ledger.write(folder / "ledger.json")
    assert [line.step for line in funnel(tmp_path, chain_steps(tmp_path))] == ["read", "filter", "mix"]


def test_clusters_and_contamination(tmp_path: Path) -> None:
    rows = [talk(n, f"prompt {n}", f"reply {n}") for n in range(6)]
    path = write(tmp_path / "in.parquet", rows)
    ids = [row.id for row in rows]
    clusters = pl.DataFrame(
        {
            "cluster": ["p", "p", "p", "q", "q", "r"],
            "id": ids,
            "representative": [ids[0]] * 3 + [ids[3]] * 2 + [ids[5]],
            "similarity": [1.0, 0.9, 0.75, 1.0, 0.7, 1.0],
            "kept": [True, False, False, True, False, True],
        }
    )
    benchmarks = pl.DataFrame(
        {"source": ["a"], "benchmark": ["MT-Bench"], "prompts": [80], "share": [0.05], "contaminated": [True]}
    )
    dropped = pl.DataFrame(
        {"row": [1, 2, 4], "reason": ["near_duplicate"] * 3, "detail": [""] * 3, "twin": [ids[0], ids[0], ids[3]]},
        schema=REJECTS,
    )
    out = tmp_path / "out"
    out.mkdir()
    apply("dedup", path, Decisions(dropped, tables={"clusters": clusters, "benchmarks": benchmarks}), out)
    found = profiled([out / "rows.parquet"], tmp_path / "profile", chain=out)
    told = found["clusters"]
    assert (told["clusters"], told["rows"], told["dropped"]) == (2, 5, 3)
    assert told["sizes"] == [{"size": 2, "clusters": 1}, {"size": 3, "clusters": 1}]
    assert [(c["cluster"], c["size"]) for c in told["examples"]] == [("p", 3), ("q", 2)]
    assert [(m["similarity"], m["kept"], m["prompt"]) for m in told["examples"][0]["members"]] == [
        (1.0, True, "prompt 0"),
        (0.9, False, "prompt 1"),
        (0.75, False, "prompt 2"),
    ]
    assert found["contamination"]["columns"] == benchmarks.columns
    assert found["contamination"]["rows"] == benchmarks.to_dicts()
    assert found["funnel"][0]["dropped"] == {"near_duplicate": 3}


def test_what_can_not_be_profiled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't read these rows"):
        profile([tmp_path / "none.parquet"], tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="can't read these rows"):
        profile([tmp_path / "rows.jsonl"], tmp_path)
    pl.DataFrame({"text": ["x"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"the columns id, source, .* are missing"):
        profile([tmp_path / "other.parquet"], tmp_path)
    with pytest.raises(DataError, match="no rows to profile"):
        profile([write(tmp_path / "empty.parquet", [])], tmp_path)


def test_rows_of_one_kind(tmp_path: Path) -> None:
    """Silent rows, a single row: nothing divides by zero."""
    found = profiled([write(tmp_path / "rows.parquet", [talk(1, "?", "!")])], tmp_path / "out")
    assert found["lengths"]["whole"]["max"] == 0
    assert found["sources"][0]["token_share"] is None
    assert found["covering"]["rounded"] == 64


@pytest.mark.shared
def test_real_rows(shared_data: Path, tmp_path: Path) -> None:
    from posttrain.artifacts import StageDir
    from posttrain.data.config import DataSettings, Source
    from posttrain.data.pipeline import prepare

    folder = shared_data / "llama-factory-demo"
    sources = tuple(
        Source(path=str(folder / f"data__alpaca_{language}_demo.json"), name=language) for language in ("en", "zh")
    )
    prepare(DataSettings(sources=sources, held_out=0), StageDir(tmp_path), 0, lambda name: None)
    found = profiled([tmp_path / "rows" / "train.parquet"], tmp_path / "out", chain=tmp_path)
    languages = {source["name"]: source["languages"][0] for source in found["sources"]}
    assert languages["zh"]["language"] == "zh"
    assert languages["zh"]["share"] > 0.95
    assert (
        found["lengths"]["whole"]["total"] == found["lengths"]["user"]["total"] + found["lengths"]["assistant"]["total"]
    )
    assert found["funnel"][0]["rows_in"] == found["rows"] + sum(entry["rows"] for entry in found["removed"])
