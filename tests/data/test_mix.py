"""The mix: targets worked by hand, nested samples, repetition, untouched held-out rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.artifacts import read_json
from posttrain.config import Document, build
from posttrain.data.mix import MixStep, row_repeats, targets
from posttrain.data.rows import PREFERENCE, rows_frame, write_rows
from posttrain.data.steps import Decisions, StepRun, apply
from posttrain.errors import DataError
from posttrain.types import Message, Origin, PairRow, Row, SftRow

RUN = StepRun(resolve=lambda name: None)


def row(source: str, number: int, words: int = 3) -> SftRow:
    messages = (Message("user", f"{source} {number}"), Message("assistant", "word " * (words - 2)))
    return SftRow(messages, Origin(f"{source}.jsonl", number + 1), source)


def write(path: Path, rows: Sequence[Row], **columns: list[Any]) -> Path:
    frame = rows_frame(rows).with_columns(**{name: pl.Series(name, values) for name, values in columns.items()})
    write_rows(path, frame)
    return path


def mixed(path: Path, out: Path, step: MixStep, seed: int = 0) -> tuple[pl.DataFrame, Decisions]:
    out.mkdir()
    decisions = step.decide(path, seed, RUN)
    apply("mix", path, decisions, out)
    return pl.read_parquet(out / "rows.parquet"), decisions


def mix(**keys: Any) -> MixStep:
    return MixStep(kind="mix", **keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"a": 100, "b": 40, "c": 10}),
        ({"counts": {"a": 30, "b": 0.25}}, {"a": 30, "b": 10, "c": 10}),
        ({"counts": {"a": 0}}, {"a": 0, "b": 40, "c": 10}),
        ({"cap": 50}, {"a": 50, "b": 40, "c": 10}),
        ({"cap": 20, "caps": {"a": 60}}, {"a": 60, "b": 20, "c": 10}),
        ({"leave_out": ("b",)}, {"a": 100, "b": 0, "c": 10}),
        ({"share": 0.25}, {"a": 25, "b": 10, "c": 3}),  # 37.5 rows in all make 38; 2.5 of c has the largest remainder
        # 2 : 1 without repetition: b is the smaller half, 40, so a gives 80
        ({"weights": {"a": 2, "b": 1}}, {"a": 80, "b": 40, "c": 10}),
        # with repetition every row of a counts, so b must give 50 of its 40
        ({"weights": {"a": 2, "b": 1}, "upsample": True}, {"a": 100, "b": 50, "c": 10}),
        ({"weights": {"a": 1, "b": 1, "c": 0}, "total": 41}, {"a": 21, "b": 20, "c": 0}),
        ({"weights": {"a": 3, "b": 1}, "counts": {"c": 2}, "total": 42}, {"a": 30, "b": 10, "c": 2}),
        ({"counts": {"c": 25}, "upsample": True, "share": 0.2}, {"a": 20, "b": 8, "c": 5}),
    ],
)
def test_targets_by_hand(keys: Mapping[str, Any], expected: dict[str, float]) -> None:
    assert targets(mix(**keys), {"a": 100.0, "b": 40.0, "c": 10.0}) == expected


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"weights": {"aa": 1}}, r"mix.weights: there is no source 'aa' .*did you mean 'a'"),
        ({"leave_out": ("x",)}, "mix.leave_out: there is no source 'x'"),
        ({"counts": {"c": 11}}, "'c' should give 11 rows, but has 10"),
        ({"counts": {"c": 41}, "upsample": True}, "repeat its 10 more than 4 times"),
        ({"counts": {"a": 60}, "cap": 50}, "mix.cap: 'a' should give 60 rows, more than its cap of 50"),
        ({"weights": {"a": 1}, "total": 50}, "already make 50 of 50"),
        ({"weights": {"a": 1}, "counts": {"a": 5}}, "a weight and a count"),
        ({"weights": {"a": 0}}, "all weights are 0"),
        ({"weights": {"a": 2}}, "'a' alone has one"),
        ({"total": 5}, "there are none"),
    ],
)
def test_what_can_not_be_mixed(keys: Mapping[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        targets(mix(**keys), {"a": 100.0, "b": 40.0, "c": 10.0})


def test_rows_verdicts_and_ledger(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", [*(row("a", n) for n in range(20)), *(row("b", n) for n in range(5))])
    kept, decisions = mixed(path, tmp_path / "out", mix(counts={"a": 6}))
    assert Counter(kept["source"]) == {"a": 6, "b": 5}
    assert set(kept["weight"]) == {1.0}
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert set(rejects["reason"]) == {"mix_quota"}
    assert rejects["detail"][0] == "6 of 20 rows of a are wanted"
    ledger = read_json(tmp_path / "out" / "ledger.json")["steps"][0]
    assert (ledger["rows_in"], ledger["rows_out"], ledger["dropped"]) == (25, 11, {"mix_quota": 14})
    verdicts = (
        pl.concat([kept, rejects.select(kept.columns)]).explode("verdicts").unnest("verdicts").drop_nulls("check")
    )
    assert sorted(verdicts["value"]) == [n + 0.5 for n in range(20)]  # the rows of b were never in question
    assert set(verdicts["limit"]) == {"<= 6"}
    assert all(passed == (value <= 6) for value, passed in verdicts.select("value", "passed").iter_rows())
    facts = {entry["source"]: entry for entry in decisions.facts["sources"]}
    assert facts["a"]["share_before"] == 20 / 25
    assert (facts["a"]["rows"], facts["a"]["share"], facts["b"]["share"]) == (6, 6 / 11, 5 / 11)


@given(
    sizes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 30), min_size=1),
    shares=st.lists(st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=2),
    seed=st.integers(0, 3),
    order=st.randoms(),
)
@settings(max_examples=12)
def test_samples_are_nested_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: dict[str, int],
    shares: list[float],
    seed: int,
    order: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    rows = [row(source, n) for source, size in sizes.items() for n in range(size)]
    small, large = sorted(shares)
    first, _ = mixed(write(folder / "a.parquet", rows), folder / "small", mix(share=small), seed)
    order.shuffle(rows)
    second, _ = mixed(write(folder / "b.parquet", rows), folder / "large", mix(share=large), seed)
    assert set(first["id"]) <= set(second["id"])
    assert len(second) == int(sum(sizes.values()) * large + 0.5)
    for source, size in sizes.items():
        assert abs(sum(second["source"] == source) - size * large) < 1


def test_another_seed_takes_other_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", [row("a", n) for n in range(400)])
    first, _ = mixed(path, tmp_path / "0", mix(share=0.5), 0)
    second, _ = mixed(path, tmp_path / "1", mix(share=0.5), 1)
    assert 60 < len(set(first["id"]) & set(second["id"])) < 140


def test_by_tokens_the_nearest_whole_row_decides(tmp_path: Path) -> None:
    rows = [*(row("a", n, 10) for n in range(10)), *(row("b", n, 30) for n in range(10))]
    path = write(tmp_path / "in.parquet", rows)
    kept, decisions = mixed(path, tmp_path / "out", mix(by="tokens", weights={"a": 1, "b": 1}))
    # a has 100 tokens and b 300: b gives 100 of them, which is 3 rows and a third; three are nearest
    assert Counter(kept["source"]) == {"a": 10, "b": 3}
    facts = {entry["source"]: entry for entry in decisions.facts["sources"]}
    assert (facts["b"]["available"], facts["b"]["target"], facts["b"]["amount"]) == (300, 100, 90)
    more, _ = mixed(path, tmp_path / "more", mix(by="tokens", counts={"b": 106}))
    assert Counter(more["source"]) == {"a": 10, "b": 4}  # the fourth row lies at 90..120, its middle at 105


def pair(source: str, number: int, chosen: int, rejected: int) -> PairRow:
    """Two words of the user; so many words on each side."""
    replies = [(Message("assistant", "word " * words),) for words in (chosen, rejected)]
    prompt = (Message("system", "not counted"), Message("user", f"{source} {number}"))
    return PairRow(prompt, *replies, Origin(f"{source}.jsonl", number + 1), source)


def test_by_tokens_a_pair_counts_its_prompt_once_and_both_replies(tmp_path: Path) -> None:
    rows = [*(pair("a", n, 3, 5) for n in range(10)), *(pair("b", n, 3, 35) for n in range(10))]
    path = write(tmp_path / "in.parquet", rows)
    kept, decisions = mixed(path, tmp_path / "out", mix(by="tokens", weights={"a": 1, "b": 1}))
    # a pair of a is 2 + 3 + 5 = 10 tokens, one of b 40: 100 against 400, of which two rows and a half are 100; the middle of
    # the third row lies at 100, so it stays
    facts = {entry["source"]: entry for entry in decisions.facts["sources"]}
    assert [facts[name]["available"] for name in "ab"] == [100, 400]
    assert Counter(kept["source"]) == {"a": 10, "b": 3}
    by_rows, _ = mixed(path, tmp_path / "rows", mix(weights={"a": 1, "b": 1}))
    assert Counter(by_rows["source"]) == {"a": 10, "b": 10}
    # swapped sides are as long
    swapped = write(
        tmp_path / "swapped.parquet", [replace(one, chosen=one.rejected, rejected=one.chosen) for one in rows]
    )
    again = mix(by="tokens").decide(swapped, 0, RUN).facts["sources"]
    assert [entry["available"] for entry in again] == [100, 400]


def test_files_from_before_there_were_pairs_are_mixed_by_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", [row("a", n, 10) for n in range(4)])
    new = mix(by="tokens", share=0.5).decide(path, 0, RUN)
    for name, frame in (("old", pl.read_parquet(path)), ("none", pl.read_parquet(path).head(0))):
        frame.drop(*PREFERENCE).write_parquet(tmp_path / f"{name}.parquet")
    old = mix(by="tokens", share=0.5).decide(tmp_path / "old.parquet", 0, RUN)
    assert old.facts == new.facts
    assert old.rejects.equals(new.rejects)
    assert mix(by="tokens").decide(tmp_path / "none.parquet", 0, RUN).facts["sources"] == []


def test_repetition_is_a_weight(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", [*(row("a", n) for n in range(10)), *(row("b", n) for n in range(4))])
    kept, decisions = mixed(path, tmp_path / "out", mix(counts={"b": 10}, upsample=True))
    assert len(kept) == 14
    assert sorted(kept.filter(pl.col("source") == "b")["weight"]) == [2, 2, 3, 3]
    assert set(kept.filter(pl.col("source") == "a")["weight"]) == {1.0}
    assert {entry["source"]: entry["amount"] for entry in decisions.facts["sources"]} == {"a": 10, "b": 10}
    repeats = row_repeats(tmp_path / "out" / "rows.parquet")
    assert sorted(repeats.values()) == [2, 2, 3, 3]
    # a mix of that mix counts a row as often as it stands for: half of b is five
    (tmp_path / "half").mkdir()
    half = mix(counts={"b": 5}).decide(tmp_path / "out" / "rows.parquet", 0, RUN)
    found = next(entry for entry in half.facts["sources"] if entry["source"] == "b")
    assert (found["available"], found["target"]) == (10, 5)
    assert abs(found["amount"] - 5) <= 1.5


def test_weights_of_dropped_and_held_out_rows_stay(tmp_path: Path) -> None:
    rows = [*(row("a", n) for n in range(6)), *(row("b", n) for n in range(2))]
    splits = ["train"] * 4 + ["test", "validation"] + ["train", "test"]
    path = write(tmp_path / "in.parquet", rows, split=splits)
    kept, decisions = mixed(path, tmp_path / "out", mix(counts={"a": 2, "b": 3}, upsample=True))
    assert Counter(kept["split"]) == {"train": 3, "test": 2, "validation": 1}
    assert kept.filter(pl.col("source") == "b").select("split", "weight").rows() == [("train", 3.0), ("test", 1.0)]
    assert decisions.facts["untouched_rows"] == 3


def test_nothing_to_mix(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", [row("a", 0)], split=["test"])
    kept, decisions = mixed(path, tmp_path / "out", mix(share=0.5))
    assert len(kept) == 1
    assert decisions.facts["sources"] == []
    kept, _ = mixed(write(tmp_path / "empty.parquet", []), tmp_path / "none", mix(by="tokens"))
    assert len(kept) == 0


def test_rows_without_words_follow_their_source(tmp_path: Path) -> None:
    silent = [SftRow((Message("user", "?" * n), Message("assistant", "!")), Origin("f", n), "a") for n in range(1, 5)]
    path = write(tmp_path / "in.parquet", silent)
    everything, _ = mixed(path, tmp_path / "all", mix(by="tokens"))
    assert len(everything) == 4


def test_fractional_weights_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", [row("a", 0), row("a", 1)], weight=[1.0, 0.5])
    with pytest.raises(DataError, match=r"has the weight 0\.5"):
        row_repeats(path)


def test_the_configuration_is_read_strictly() -> None:
    value = {"kind": "mix", "weights": {"a": 2, "b": 1.5}, "by": "tokens", "leave_out": ["c"]}
    step = build(MixStep, Document("f", value, {}))
    assert step == mix(weights={"a": 2, "b": 1.5}, by="tokens", leave_out=("c",))


@pytest.mark.shared
def test_real_sources(shared_data: Path, tmp_path: Path) -> None:
    from posttrain.artifacts import StageDir
    from posttrain.data.config import DataSettings, Source
    from posttrain.data.pipeline import prepare

    folder = shared_data / "llama-factory-demo"
    sources = tuple(
        Source(path=str(folder / f"data__alpaca_{language}_demo.json"), name=language) for language in ("en", "zh")
    )
    prepare(DataSettings(sources=sources, held_out=0), StageDir(tmp_path), 0, lambda name: None)
    path = tmp_path / "rows" / "train.parquet"
    kept, decisions = mixed(path, tmp_path / "out", mix(by="tokens", weights={"en": 1, "zh": 1}))
    facts = {entry["source"]: entry for entry in decisions.facts["sources"]}
    assert abs(facts["en"]["share"] - 0.5) < 0.005
    assert min(entry["rows"] / entry["rows_before"] for entry in facts.values()) < 1
    assert len(kept) == sum(entry["rows"] for entry in facts.values())
