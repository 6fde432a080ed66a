"""Pairs and feedback through the data stage: kinds, conversions, accounts, the chain of steps, the profile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from posttrain.artifacts import RunDir, StageDir, read_json
from posttrain.data.config import ChainStep, DataSettings, PairRule, Source
from posttrain.data.decontaminate.benchmarks import Benchmark
from posttrain.data.decontaminate.step import DecontaminateStep
from posttrain.data.dedup.step import DedupStep
from posttrain.data.filters.step import FilterStep
from posttrain.data.formats.base import RowError
from posttrain.data.mix import MixStep
from posttrain.data.pipeline import gather, prepare, row_at, rows_at
from posttrain.data.profile import profile
from posttrain.data.reading import rows_as
from posttrain.data.rows import (
    PREFERENCE,
    read_feedback,
    read_pairs,
    read_rows,
    row_kind_of,
    rows_frame,
    scan_rows,
    write_rows,
)
from posttrain.data.select.apart import Diversity, NgramNovelty
from posttrain.data.select.step import SelectStep
from posttrain.data.split import SplitStep, prompt_key
from posttrain.data.steps import StepRun
from posttrain.errors import DataError
from posttrain.lab.engine import Experiment
from posttrain.lab.one_stage import one_stage
from posttrain.report.live import Display
from posttrain.types import Message, Origin, PairRow, SftRow, UnpairedRow

TALK = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}


def no_asset(name: str) -> None:
    return None


def write(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def pair(number: int, copy: int = 0) -> dict[str, str]:
    prompt = f"Tell me about number {number} and the {['sky', 'sea', 'sun'][number % 3]} above the hill"
    return {"prompt": prompt, "chosen": f"Number {number} is fine, {copy}.", "rejected": f"I will not say {number}."}


def judged(number: int) -> dict[str, Any]:
    return {"prompt": f"question {number}", "completion": f"answer {number}", "label": number % 3 == 0}


def stage(*sources: Source | Path, held_out: float | None = 0.0, **more: Any) -> DataSettings:
    found = tuple(source if isinstance(source, Source) else Source(path=str(source)) for source in sources)
    return DataSettings(sources=found, held_out=held_out, **more)


def run(config: DataSettings, folder: Path, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """(ledger, result)"""
    result = prepare(config, StageDir(folder), seed, no_asset)
    return read_json(folder / "ledger.json"), result


# ---- kinds ---------------------------------------------------------------------------------------------------------


def test_the_formats_say_what_the_rows_are(tmp_path: Path) -> None:
    for name, record, kind in (("a", TALK, "conversations"), ("b", pair(1), "pairs"), ("c", judged(1), "feedback")):
        path, _ = gather(
            [Source(path=str(write(tmp_path / f"{name}.jsonl", [record])))], tmp_path / name, StepRun(no_asset)
        )
        assert row_kind_of(path) == kind


@pytest.mark.parametrize("wanted", ["auto", "pairs", "feedback", "conversations"])
def test_one_stage_has_rows_of_one_kind(tmp_path: Path, wanted: str) -> None:
    first = write(tmp_path / "pairs.jsonl", [pair(1)])
    second = write(tmp_path / "judged.jsonl", [judged(3)])
    config = stage(first, second, rows=wanted)
    if wanted in ("conversations", "feedback"):
        ledger, _ = run(config, tmp_path / "out")
        assert ledger["rows_kept"] == (2 if wanted == "conversations" else 3)
        return
    with pytest.raises(DataError) as caught:
        run(config, tmp_path / "out")
    if wanted == "auto":
        assert f"{second}: these rows are feedback, and those of {first} are pairs" in str(caught.value)
    else:
        assert f"{second}: these rows are feedback (read as 'feedback'), and no pairs can be made" in str(caught.value)
    assert "docs/data-preferences.md" in str(caught.value)


@pytest.mark.parametrize("wanted", ["pairs", "feedback"])
def test_preferences_can_not_be_made_of_conversations(tmp_path: Path, wanted: str) -> None:
    path = write(tmp_path / "talks.jsonl", [TALK])
    with pytest.raises(DataError, match=rf"talks.jsonl: these rows are conversations .* no {wanted} can be made"):
        run(stage(path, rows=wanted), tmp_path / "out")


def test_a_named_conversation_format_reads_the_conversation_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**TALK, "label": False}])
    run(stage(Source(path=str(path), format="messages")), tmp_path / "out")
    (row,) = read_rows(tmp_path / "out" / "rows" / "train.parquet")
    assert row.meta == {"label": False}


def test_a_file_without_any_good_record_is_of_no_kind(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.jsonl", ["{"])
    ledger, _ = run(stage(broken, write(tmp_path / "a.jsonl", [pair(1), pair(2)])), tmp_path / "out")
    assert (ledger["rows_in"], ledger["dropped"]) == (3, {"broken_json": 1})


# ---- conversions ---------------------------------------------------------------------------------------------------


def test_what_becomes_of_a_row() -> None:
    prompt, good, bad = (
        (Message(role, text),) for role, text in (("user", "x"), ("assistant", "y"), ("assistant", "z"))
    )
    beside = (Origin("a", 1), "s", ({"name": "f"},), {"margin": 1.5})
    one = PairRow(prompt, good, bad, *beside)
    yes, no = UnpairedRow(prompt, good, True, *beside), UnpairedRow(prompt, bad, False, *beside)
    talk = SftRow(prompt + good, *beside)
    assert rows_as(one, "pairs") == (one,)
    assert rows_as(one, "feedback") == (yes, no)
    assert rows_as(one, "conversations") == rows_as(yes, "conversations") == rows_as(talk, "conversations") == (talk,)
    assert rows_as(no, "feedback") == (no,)
    with pytest.raises(RowError, match="undesirable"):
        rows_as(no, "conversations")


def test_pairs_as_feedback_sum_up(tmp_path: Path) -> None:
    records = [pair(1), pair(1), {**pair(1), "rejected": "Another."}, {**pair(2), "chosen": ""}, "{", pair(3)]
    ledger, result = run(stage(write(tmp_path / "a.jsonl", records), rows="feedback"), tmp_path / "out")
    assert [(s["name"], s["rows_in"], s["added"], s["rows_out"], s["dropped"]) for s in ledger["steps"]] == [
        ("read", 6, 0, 5, {"broken_json": 1}),
        ("format", 5, 4, 8, {"empty_assistant_turn": 1}),
        ("deduplicate", 8, 0, 5, {"exact_duplicate": 3}),
        ("split", 5, 0, 5, {}),
    ]
    assert (ledger["rows_in"] + ledger["added"], ledger["rows_kept"]) == (5 + sum(ledger["dropped"].values()), 5)
    assert [(r["line"], r["reason"]) for r in ledger["rejects"]] == [
        *((2, "exact_duplicate"),) * 2,
        (3, "exact_duplicate"),
        (4, "empty_assistant_turn"),
        (5, "broken_json"),
    ]
    rows = read_feedback(tmp_path / "out" / "rows" / "train.parquet")
    assert [(row.origin.line, row.desirable) for row in rows] == [
        (1, True),
        (1, False),
        (3, False),
        (6, True),
        (6, False),
    ]
    assert result["train_rows"] == 5


def test_conversations_of_preferences_imitate_the_good_replies(tmp_path: Path) -> None:
    ledger, _ = run(
        stage(write(tmp_path / "a.jsonl", [judged(n) for n in range(9)]), rows="conversations"), tmp_path / "out"
    )
    assert ledger["dropped"] == {"undesirable": 6}
    rows = read_rows(tmp_path / "out" / "rows" / "train.parquet")
    assert [row.messages[1].content for row in rows] == ["answer 0", "answer 3", "answer 6"]


def test_both_replies_of_pairs_are_conversations_where_judgements_are_read_in_a_conversation_format(
    tmp_path: Path,
) -> None:
    run(stage(write(tmp_path / "a.jsonl", [pair(1), pair(2)]), rows="feedback"), tmp_path / "judged")
    judgements = tmp_path / "judged" / "rows" / "train.parquet"
    run(stage(Source(path=str(judgements), format="messages"), rows="conversations"), tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "rows" / "train.parquet")
    assert [row.messages for row in rows] == [row.prompt + row.completion for row in read_feedback(judgements)]
    assert len(rows) == 4


def rated(name: str, *scores: float) -> dict[str, Any]:
    return {"instruction": "x", "responses": [f"{name}{n}" for n in range(len(scores))], "scores": list(scores)}


def test_the_rule_for_pairs_of_a_source(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", [rated("a", 1, 3, 2), rated("b", 5, 5.5), rated("c", 7, 7)]))
    rules = {
        None: ([("a1", "a0", 2.0), ("b1", "b0", 0.5)], {"margin_too_small": 1}, 0),
        PairRule(min_margin=1): ([("a1", "a0", 2.0)], {"margin_too_small": 2}, 0),
        PairRule(min_margin=1, take="all"): (
            [("a1", "a2", 1.0), ("a1", "a0", 2.0), ("a2", "a0", 1.0)],
            {"margin_too_small": 2},
            2,
        ),
    }
    for number, (rule, (found, dropped, added)) in enumerate(rules.items()):
        rows, ledger = gather([Source(path=path, pairs=rule)], tmp_path / str(number), StepRun(no_asset))
        pairs = read_pairs(rows)
        assert [(r.chosen[0].content, r.rejected[0].content, r.meta["margin"]) for r in pairs] == found
        assert (ledger.steps[1].dropped, ledger.steps[1].added) == (dropped, added)
        ledger.check()


def test_a_rule_without_rated_answers_is_an_error(tmp_path: Path) -> None:
    source = Source(path=str(write(tmp_path / "a.jsonl", [pair(1)])), pairs=PairRule(min_margin=1))
    with pytest.raises(DataError, match=r"a rule for pairs is given.*\n.*ultrafeedback, nectar, scored_responses"):
        run(stage(source), tmp_path / "out")


def test_a_limit_counts_records_of_the_source(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", [{**pair(0), "chosen": ""}, *map(pair, range(1, 9))]))
    rows, ledger = gather([Source(path=path, max_rows=3)], tmp_path / "out", StepRun(no_asset), wanted="feedback")
    assert [row.origin.line for row in read_feedback(rows)] == [2, 2, 3, 3, 4, 4]
    assert ledger.steps[0].rows_in == 4


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.pipeline.BLOCK_ROWS", 4)
    source = Source(path=str(write(tmp_path / "a.jsonl", [*map(pair, range(9)), "{", *map(pair, range(4, 20))])))
    files = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        gather([source], out, StepRun(no_asset, workers), wanted="feedback")
        files.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert files[0] == files[1]


def test_one_record_alone(tmp_path: Path) -> None:
    source = Source(path=str(write(tmp_path / "a.jsonl", ["{", pair(1), judged(1)])), format="pairs")
    (row,) = rows_at(source, 1, no_asset)
    assert isinstance(row, PairRow)
    assert [type(row) for row in rows_at(source, 1, no_asset, "feedback")] == [UnpairedRow] * 2
    assert row_at(source, 1, no_asset) == SftRow(row.messages, row.origin, row.source)
    with pytest.raises(DataError, match="row 2 can't be used: wrong_shape"):
        rows_at(source, 2, no_asset)


# ---- the split -----------------------------------------------------------------------------------------------------


@settings(max_examples=5)
@given(prompts=st.lists(st.integers(0, 7), min_size=5, max_size=20), seed=st.integers(0, 3))
def test_a_pair_and_its_judgements_are_on_the_same_side(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    records = [pair(number, copy) for copy, number in enumerate([*prompts, 8, 9])]
    path = write(folder / "a.jsonl", records)
    for step in ({"held_out": 0.3}, {"held_out": None, "steps": (SplitStep(kind="split", validation=0.3),)}):
        config = stage(path, profile=False, **step)
        out = folder / str(len(list(folder.iterdir())))
        run(config, out, seed)
        sides = [read_pairs(out / "rows" / f"{side}.parquet") for side in ("train", "held_out")]
        keys = [{prompt_key(row.messages) for row in side} for side in sides]
        assert keys[0].isdisjoint(keys[1])
        assert all(keys)
        if step["held_out"] is None:
            continue
        asked = [{prompt_key(row.prompt) for row in side} for side in sides]
        assert asked == keys
        judged_out = folder / "judged"
        run(stage(path, profile=False, rows="feedback", held_out=0.3), judged_out, seed)
        judgements = [read_feedback(judged_out / "rows" / f"{side}.parquet") for side in ("train", "held_out")]
        assert not {row.prompt for row in judgements[0]} & {row.prompt for row in judgements[1]}


# ---- the chain -----------------------------------------------------------------------------------------------------


def chain(folder: Path) -> tuple[ChainStep, ...]:
    benchmark = write(folder / "bench.jsonl", [{"prompt": pair(3)["prompt"]}])
    return (
        FilterStep(kind="filter"),
        DedupStep(kind="dedup", fields="conversation", threshold=0.9),
        DecontaminateStep(kind="decontaminate", benchmarks=(Benchmark(name="b", path=str(benchmark)),)),
        SelectStep(
            kind="select",
            rule=Diversity(method="diversity", distance=NgramNovelty(measure="ngram", min_novelty=0.0), budget=20),
        ),
        SplitStep(kind="split", validation=3, test=2),
    )


@pytest.mark.parametrize("wanted", ["pairs", "feedback"])
def test_every_step_keeps_what_preferences_say(tmp_path: Path, wanted: str) -> None:
    records = [
        *map(pair, range(30)),
        {**pair(1), "rejected": "Something else."},
        {**pair(2), "chosen": "Fine. Fine. " * 60},
    ]
    config = stage(
        write(tmp_path / "a.jsonl", records),
        rows=wanted,
        held_out=None,
        steps=chain(tmp_path),
        mix=MixStep(kind="mix", share=0.8),
    )
    ledger, result = run(config, tmp_path / "out")
    names = [line["name"] for line in ledger["steps"]]
    assert names == ["read", "format", "deduplicate", "filter", "dedup", "decontaminate", "select", "split", "mix"]
    assert all(
        step["rows_in"] + step["added"] == step["rows_out"] + sum(step["dropped"].values()) for step in ledger["steps"]
    )
    told = {line["name"]: line["dropped"] for line in ledger["steps"]}
    assert told["filter"]
    assert told["decontaminate"]
    if wanted == "pairs":
        assert told["dedup"] == {"exact_duplicate": 1}
    reader = read_pairs if wanted == "pairs" else read_feedback
    read = {row.id: row for row in reader(tmp_path / "out" / "read" / "rows.parquet")}
    kept = [
        row for side in ("train", "held_out", "test") for row in reader(tmp_path / "out" / "rows" / f"{side}.parquet")
    ]
    assert all(read[row.id] == row for row in kept)
    assert len(kept) == sum(result[f"{side}_rows"] for side in ("train", "held_out", "test"))
    for rejects in (tmp_path / "out" / "steps").glob("*/rejects.parquet"):
        assert row_kind_of(rejects) in (wanted, None)
        assert {row.id for row in reader(rejects)} <= read.keys()


def test_a_step_reads_files_without_the_columns_of_preferences(tmp_path: Path) -> None:
    rows = [
        SftRow((Message("user", f"question {n}"), Message("assistant", f"answer {n}")), Origin("a.jsonl", n), "a")
        for n in (1, 2, 2, 3)
    ]
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    rows_frame(rows).drop(*PREFERENCE).write_parquet(old)
    write_rows(new, rows_frame(rows))
    kept = [deduplicated(path, tmp_path / path.stem) for path in (old, new)]
    assert kept[0].equals(kept[1])
    both, _ = gather([Source(path=str(old)), Source(path=str(new))], tmp_path / "both", StepRun(no_asset))
    assert len(read_rows(both)) == 3
    assert asdict(profile([old], tmp_path / "profile"))["preferences"] is None


# ---- commands ------------------------------------------------------------------------------------------------------


def deduplicated(path: Path, out: Path) -> pl.DataFrame:
    step = DedupStep(kind="dedup", fields="conversation", method="exact")
    settings = DataSettings(sources=(Source(path=str(path)),), steps=(step,), held_out=0, profile=False)
    prepare(settings, StageDir(out), 0, no_asset)
    return pl.read_parquet(out / "rows" / "train.parquet")


@pytest.mark.parametrize("wanted", ["pairs", "feedback"])
def test_a_step_reads_the_rows_another_wrote(tmp_path: Path, wanted: str) -> None:
    records = [*map(pair, range(4)), {**pair(1), "rejected": "No."}]
    read, _ = gather(
        [Source(path=str(write(tmp_path / "a.jsonl", records)))], tmp_path / "read", StepRun(no_asset), wanted=wanted
    )
    first = deduplicated(read, tmp_path / "first")
    second = deduplicated(tmp_path / "first" / "rows" / "train.parquet", tmp_path / "second")
    ledger = read_json(tmp_path / "second" / "ledger.json")
    assert (ledger["steps"][0]["name"], sum(ledger["dropped"].values())) == ("read", 0)
    assert first.drop("verdicts").equals(second.drop("verdicts"))
    assert row_kind_of(tmp_path / "second" / "rows" / "train.parquet") == wanted


@pytest.mark.parametrize("wanted", ["pairs", "feedback"])
def test_written_rows_are_a_source_like_any_other(tmp_path: Path, wanted: str) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"name": "f", "arguments": {"x": "é"}}],
        "reasoning": "why",
    }
    turns = [{"role": "user", "content": "x"}, call, {"role": "tool", "content": "1"}]
    records = [
        {"prompt": turns, "chosen": [call, turns[2], {"role": "assistant", "content": "y"}], "rejected": "z"},
        {**pair(1), "score_chosen": 2, "score_rejected": 1, "id": "ab", "source": "web", "tools": [{"name": "f"}]},
    ]
    first, _ = gather(
        [Source(path=str(write(tmp_path / "a.jsonl", records)))], tmp_path / "1", StepRun(no_asset), wanted=wanted
    )
    second, ledger = gather([Source(path=str(first), name="a")], tmp_path / "2", StepRun(no_asset))
    assert ledger.steps[-1].rows_out == (2 if wanted == "pairs" else 4)
    same = ["id", "messages", *PREFERENCE, "tools", "meta"]
    assert scan_rows(first).select(same).collect().equals(scan_rows(second).select(same).collect())


@pytest.mark.demo_model
@pytest.mark.parametrize("wanted", ["pairs", "feedback"])
def test_scores_are_those_of_the_conversation(tmp_path: Path, tiny_model: Path, wanted: str) -> None:
    # two pairs with one chosen reply; in feedback the rows of one record share their place
    records = [pair(1), {**pair(1), "rejected": "No."}, {**pair(2), "rejected": "Never. " * 99}]
    read, _ = gather(
        [Source(path=str(write(tmp_path / "a.jsonl", records)))], tmp_path / "read", StepRun(no_asset), wanted=wanted
    )
    talks = tmp_path / "talks.parquet"
    rows = read_pairs(read) if wanted == "pairs" else read_feedback(read)
    write_rows(talks, rows_frame([SftRow(row.messages, row.origin, row.source) for row in rows]))
    found = []
    for path in (read, talks):
        out = tmp_path / f"scored {path.stem}"
        words = [str(path), "--model", str(tiny_model), "--dtype", "fp32", "--max_length", "96"]
        with Display(Console(quiet=True)) as display:
            Experiment(one_stage("score", words).recipe(out), RunDir(out), display).execute()
        found.append(pl.read_parquet(out / "score" / "rows" / "train.parquet"))
    values = [[{s["name"]: s["value"] for s in scores} for scores in frame["scores"].to_list()] for frame in found]
    assert [value for n, value in enumerate(values[0]) if value not in values[0][:n]] == values[1]
    assert sum(map(bool, values[0])) == (3 if wanted == "pairs" else 4)


def test_files_of_two_kinds_are_told_apart(tmp_path: Path) -> None:
    paths = [
        gather([Source(path=str(write(tmp_path / f"{n}.jsonl", [record])))], tmp_path / str(n), StepRun(no_asset))[0]
        for n, record in enumerate((pair(1), judged(1)))
    ]
    with pytest.raises(DataError, match=r"are feedback, and those of .* are pairs"):
        gather([Source(path=str(path)) for path in paths], tmp_path / "both", StepRun(no_asset))
    with pytest.raises(DataError, match=r"are feedback, and those of .* are pairs"):
        profile(paths, tmp_path / "profile")


# ---- the profile ---------------------------------------------------------------------------------------------------


def test_the_profile_of_pairs_by_hand(tmp_path: Path) -> None:
    records = [
        {"prompt": f"question {n}", "chosen": " ".join("abcdefgh"[:good]), "rejected": " ".join("stuvwxyz"[:bad])}
        for n, (good, bad) in enumerate([(1, 2), (2, 1), (3, 3), (8, 7)])
    ]
    records[0]["prompt"] = [{"role": role, "content": "one two"} for role in ("user", "assistant", "user")]
    rows, _ = gather([Source(path=str(write(tmp_path / "a.jsonl", records)))], tmp_path / "read", StepRun(no_asset))
    assert asdict(profile([rows], tmp_path / "out"))["preferences"] == {
        "kind": "pairs",
        "rows": 4,
        "replies": {
            "chosen": {"rows": 4, "p50": 2, "p90": 8, "p95": 8, "max": 8},
            "rejected": {"rows": 4, "p50": 2, "p90": 7, "p95": 7, "max": 7},
        },
        "chosen_longer": 0.5,
        "desirable": None,
    }


def test_the_profile_of_feedback_by_hand(tmp_path: Path) -> None:
    records = [{"prompt": "x", "completion": "a " * n, "label": n == 3} for n in (1, 2, 3, 4)]
    rows, _ = gather([Source(path=str(write(tmp_path / "a.jsonl", records)))], tmp_path / "read", StepRun(no_asset))
    assert asdict(profile([rows], tmp_path / "out"))["preferences"] == {
        "kind": "feedback",
        "rows": 4,
        "replies": {
            "desirable": {"rows": 1, "p50": 3, "p90": 3, "p95": 3, "max": 3},
            "undesirable": {"rows": 3, "p50": 2, "p90": 4, "p95": 4, "max": 4},
        },
        "chosen_longer": None,
        "desirable": 0.25,
    }
    one_class, _ = gather(
        [Source(path=str(write(tmp_path / "b.jsonl", records[:1])))], tmp_path / "one", StepRun(no_asset)
    )
    assert list(asdict(profile([one_class], tmp_path / "two"))["preferences"]["replies"]) == ["undesirable"]
