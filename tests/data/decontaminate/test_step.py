"""The step: limits to the row, verdicts, tables, actions; equal results for any order and any number of workers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from posttrain.data import steps
from posttrain.data.decontaminate.benchmarks import Benchmark
from posttrain.data.decontaminate.proposals import EmbeddingTier
from posttrain.data.decontaminate.step import DecontaminateStep
from posttrain.data.steps import Decisions, apply
from posttrain.errors import ConfigError
from posttrain.types import SftRow

from .conftest import RUN, row

Rows = Callable[[Sequence[SftRow]], Path]
Bench = Callable[..., Benchmark]

TEN = "one two three four five six seven eight nine ten"
SIXTEEN = " ".join(f"w{i}" for i in range(16))
SEVENTEEN = " ".join(f"v{i}" for i in range(17))


def decide(path: Path, *benchmarks: Benchmark, workers: int = 1, **keys: Any) -> Decisions:
    step = DecontaminateStep(kind="decontaminate", benchmarks=benchmarks, **keys)
    return step.decide(path, 0, replace(RUN, workers=workers))


def test_more_than_half_of_the_prompt_must_stand_in_one_row(rows_file: Rows, benchmark_file: Bench) -> None:
    half, less = " ".join(SIXTEEN.split()[:8]), " ".join(SEVENTEEN.split()[:8])
    more = " ".join(SEVENTEEN.split()[:9])
    rows = rows_file([row(half), row(less), row(more), row("nothing of it")])
    found = decide(rows, benchmark_file([SIXTEEN], [SEVENTEEN]))
    assert found.verdicts["value"].to_list() == pytest.approx([0.5, 8 / 17, 9 / 17, 0])
    assert found.verdicts["passed"].to_list() == [True, True, False, True], "exactly half is not more than half"
    assert set(found.verdicts["limit"]) == {"<= 0.5"}
    assert set(found.verdicts["check"]) == {"overlap"}
    assert found.rejects.rows() == [(2, "contaminated", "52% of bench 1", None)]
    assert found.tables["nearest"]["prompt"].to_list() == ["0", "1"]


def test_matches_are_not_added_up_over_rows(rows_file: Rows, benchmark_file: Bench) -> None:
    words = SIXTEEN.split()
    rows = rows_file([row(" ".join(words[:8])), row(" ".join(words[8:]))])
    assert decide(rows, benchmark_file([SIXTEEN])).rejects.is_empty()
    together = rows_file([row(" ".join(words[:8]), " ".join(words[8:]))])
    assert len(decide(together, benchmark_file([SIXTEEN])).rejects) == 1


def test_every_turn_of_a_prompt_counts_by_itself(rows_file: Rows, benchmark_file: Bench) -> None:
    found = decide(rows_file([row(TEN), row(SEVENTEEN)]), benchmark_file([TEN, SEVENTEEN], [TEN]))
    matches = found.tables["matches"].select("row", "prompt", "turn", "overlap", "found_by")
    assert matches.rows() == [(0, "0", 1, 1.0, "8-gram"), (0, "1", 1, 1.0, "8-gram"), (1, "0", 2, 1.0, "8-gram")]
    assert len(found.rejects) == 2, "a row that matches two prompts is dropped once"


def test_short_prompts_are_found_exactly(rows_file: Rows, benchmark_file: Bench) -> None:
    rows = rows_file([row("WHO is Larry  Page"), row("Who is Larry Bird?")])
    found = decide(rows, benchmark_file(["Who is Larry Page?"]))
    assert found.rejects["row"].to_list() == [0]
    assert found.tables["matches"]["found_by"].to_list() == ["exact"]


def test_a_source_is_contaminated_over_two_percent(rows_file: Rows, benchmark_file: Bench) -> None:
    prompts = [[f"{TEN} number{i}"] for i in range(100)]
    rows = [row(prompts[i][0], source="two", line=i) for i in (0, 1, 1)]
    rows += [row(prompts[i][0], source="three", line=i) for i in (0, 1, 2)] + [row("else", source="three")]
    found = decide(rows_file(rows), benchmark_file(*prompts), limit=0.95)
    table = found.tables["benchmarks"]
    assert table.rows() == [
        ("three", "bench", 100, 3, 0.03, 0.02, True, 4, 3, 3),
        ("two", "bench", 100, 2, 0.02, 0.02, False, 3, 3, 3),
    ]
    [fact] = found.facts["benchmarks"]
    assert fact["contaminated_prompts"] == 3, "of all sources together"
    assert fact["matching_rows"] == 6


def test_actions(rows_file: Rows, benchmark_file: Bench) -> None:
    rows = rows_file([row(TEN, source="bad"), row("fine", source="bad"), row("good", source="good")])
    bench = benchmark_file([TEN])
    assert decide(rows, bench).rejects["row"].to_list() == [0]
    reported = decide(rows, bench, action="report")
    assert reported.rejects.is_empty()
    assert reported.notes == {"contaminated": 1}
    assert reported.tables["benchmarks"]["removed_rows"].to_list() == [0, 0]
    assert reported.verdicts["passed"].to_list() == [False, True, True]
    whole = decide(rows, bench, action="drop_sources")
    assert whole.rejects.rows() == [
        (0, "contaminated", "100% of bench 0", None),
        (1, "contaminated_source", "bad: 1 of 1 prompts of bench", None),
    ]


def test_the_files_of_the_step(rows_file: Rows, benchmark_file: Bench, tmp_path: Path) -> None:
    rows = rows_file([row(TEN), row("fine")])
    out = tmp_path / "out"
    out.mkdir()
    line = apply("decontaminate", rows, decide(rows, benchmark_file([TEN])), out)
    assert (line.rows_in, line.rows_out, line.dropped) == (2, 1, {"contaminated": 1})
    kept, dropped = pl.read_parquet(out / "rows.parquet"), pl.read_parquet(out / "rejects.parquet")
    assert kept["verdicts"].to_list() == [
        [{"step": "decontaminate", "check": "overlap", "value": 0.0, "limit": "<= 0.5", "passed": True}]
    ]
    assert dropped["verdicts"][0][0]["value"] == 1.0
    assert dropped["detail"].to_list() == ["100% of bench 0"]
    assert pl.read_parquet(out / "matches.parquet")["id"].to_list() == dropped["id"].to_list()
    facts = json.loads((out / "facts.json").read_text())
    assert facts["ngram"] == 8
    assert facts["benchmarks"][0]["prompts"] == 1
    assert (out / "benchmarks.parquet").exists()
    assert (out / "nearest.parquet").exists()


def test_no_rows_and_no_matches(rows_file: Rows, benchmark_file: Bench) -> None:
    for rows in ([], [row("fine")]):
        found = decide(rows_file(rows), benchmark_file([TEN]), action="drop_sources")
        assert found.rejects.is_empty()
        assert found.tables["matches"].is_empty()
        assert len(found.verdicts) == len(rows)


def test_rows_with_the_same_text_go_together(rows_file: Rows, benchmark_file: Bench) -> None:
    rows = rows_file([row(TEN, line=1), row(TEN, line=2, source="other")])
    assert decide(rows, benchmark_file([TEN])).rejects["row"].to_list() == [0, 1]


@pytest.mark.slow
def test_order_workers_and_blocks_change_nothing(
    rows_file: Rows, benchmark_file: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1)
    vocabulary = [f"t{i}" for i in range(9)]
    prompts = [[" ".join(draw.choices(vocabulary, k=draw.randint(1, 14)))] for _ in range(60)]
    rows = [row(" ".join(draw.choices(vocabulary, k=30)), source=draw.choice("ab"), line=i) for i in range(300)]
    rows += [row(f"x {prompt} y {prompt}", line=300 + i) for i, [prompt] in enumerate(prompts)]
    bench = benchmark_file(*prompts)
    first = decide(rows_file(rows), bench, ngram=4)
    assert 60 <= len(first.rejects) < 360

    def by_id(found: Decisions, rows: Sequence[SftRow]) -> set[tuple[Any, ...]]:
        ids = [r.id for r in rows]
        tables = [found.rejects.drop("twin"), found.verdicts, found.tables["matches"].drop("id")]
        return {
            (ids[line[0]], *line[1:])
            for table in tables
            for line in table.select("row", pl.all().exclude("row")).rows()
        }

    expected = by_id(first, rows)
    shuffled = draw.sample(rows, len(rows))
    again = decide(rows_file(shuffled), bench, ngram=4)
    assert by_id(again, shuffled) == expected
    assert again.tables["benchmarks"].equals(first.tables["benchmarks"])

    monkeypatch.setattr(steps, "BLOCK_ROWS", 50)
    for workers in (1, 2):
        blocked = decide(rows_file(rows), bench, ngram=4, workers=workers)
        assert blocked.rejects.equals(first.rejects)
        assert blocked.verdicts.equals(first.verdicts)
        assert all(blocked.tables[name].equals(table) for name, table in first.tables.items())


def test_progress_ends_at_the_total(rows_file: Rows, benchmark_file: Bench) -> None:
    told: list[tuple[str, int, int]] = []
    step = DecontaminateStep(kind="decontaminate", benchmarks=(benchmark_file([TEN]),))
    step.decide(rows_file([row("a")]), 0, replace(RUN, progress=lambda *a: told.append(a)))
    assert told[-1] == ("decontaminate", 1, 1)


def test_two_benchmarks_of_one_name(rows_file: Rows, benchmark_file: Bench) -> None:
    bench = benchmark_file([TEN])
    with pytest.raises(ConfigError, match="two benchmarks are called 'bench'"):
        decide(rows_file([row("a")]), bench, bench)


def test_report_and_drop_contradict_each_other(rows_file: Rows, benchmark_file: Bench) -> None:
    with pytest.raises(ConfigError, match="action: report drops nothing"):
        decide(rows_file([row("a")]), benchmark_file([TEN]), action="report", embedding=EmbeddingTier(drop=True))


def test_the_configuration_is_checked() -> None:
    adapter = TypeAdapter(DecontaminateStep)
    good = {"kind": "decontaminate", "benchmarks": [{"name": "mt_bench", "path": "x"}]}
    assert adapter.validate_python(good).limit == 0.5
    for bad in (
        {"benchmarks": []},
        {"limit": 1.0},
        {"limit": -0.1},
        {"ngram": 1},
        {"source_limit": 2},
        {"action": "x"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(good | bad)


@pytest.mark.slow
def test_a_ray_cluster_changes_nothing(rows_file: Rows, benchmark_file: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(steps, "BLOCK_ROWS", 50)
    rows = rows_file([row(f"{TEN} {i}" if i % 7 == 0 else f"nothing {i}", line=i) for i in range(120)])
    step = DecontaminateStep(kind="decontaminate", benchmarks=(benchmark_file([TEN]),))
    local, ray = (step.decide(rows, 0, replace(RUN, engine=engine, workers=2)) for engine in ("local", "ray"))
    assert len(local.rejects) == 18
    assert ray.rejects.equals(local.rejects)
    assert ray.verdicts.equals(local.verdicts)
    assert ray.tables["matches"].equals(local.tables["matches"])
