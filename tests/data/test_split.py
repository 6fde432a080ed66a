"""The split is a function of content and seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ngrams import ngrams

from posttrain.artifacts import read_json
from posttrain.config import Document, build
from posttrain.data.held_out_overlap import distinct_ngrams
from posttrain.data.rows import read_rows, rows_frame, write_rows
from posttrain.data.split import SplitStep, held_out_prompts, prompt_key
from posttrain.data.steps import Decisions, StepRun, apply
from posttrain.data.text import tokens
from posttrain.errors import DataError
from posttrain.types import Message, Origin, SftRow, ToolCall

PROMPTS = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=2).filter(lambda prompts: len(set(prompts)) > 1)


def test_the_prompt_is_everything_before_the_first_reply() -> None:
    system, user = Message("system", "be brief"), Message("user", "hi")
    key = prompt_key([system, user, Message("assistant", "hello")])
    assert key == prompt_key([system, user, Message("assistant", "good day"), Message("user", "and?")])
    assert key == prompt_key([system, user, Message("assistant", "", tool_calls=(ToolCall("f", "{}"),), weight=0.5)])
    assert key == prompt_key([system, user])
    assert key != prompt_key([user, Message("assistant", "hello")])
    assert key != prompt_key([Message("user", "be brief"), user])
    assert key != prompt_key([system, Message("user", "Hi")])


@given(prompts=PROMPTS, share=st.floats(0.001, 0.6), seed=st.integers(0, 5), random=st.randoms())
def test_order_does_not_matter_and_the_size_is_kept(
    prompts: list[str], share: float, seed: int, random: object
) -> None:
    chosen = held_out_prompts(prompts, share, seed)
    shuffled = list(prompts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert held_out_prompts(shuffled, share, seed) == chosen
    sizes = Counter(prompts)
    held_out = sum(sizes[prompt] for prompt in chosen)
    wanted = max(1, round(share * len(prompts)))
    assert 0 < held_out < len(prompts)
    assert held_out <= max(wanted, min(sizes.values()))
    assert all(sizes[prompt] > wanted - held_out for prompt in sizes if prompt not in chosen)


def test_unequal_prompts_give_the_number_exactly() -> None:
    prompts = [str(n) for n in range(1000)]
    assert len(held_out_prompts(prompts, 0.05, 0)) == 50
    assert len(held_out_prompts(prompts, 37, 0)) == 37
    assert held_out_prompts(prompts, 0, 0) == frozenset()


def test_another_seed_holds_out_other_rows() -> None:
    prompts = [str(n) for n in range(1000)]
    assert len(held_out_prompts(prompts, 0.1, 0) & held_out_prompts(prompts, 0.1, 1)) < 30


def test_the_chosen_rows_stay_when_the_set_grows() -> None:
    few, many = [str(n) for n in range(1000)], [str(n) for n in range(1100)]
    assert len(held_out_prompts(few, 0.1, 0) & held_out_prompts(many, 0.1, 0)) > 80


@pytest.mark.parametrize(
    ("prompts", "held_out", "words"),
    [
        (["a"], 0.05, "can't hold out 1 of 1 row:"),
        (["a", "b"], 2, "can't hold out 2 of 2 rows"),
        (["a", "b"], 300, "can't hold out 300 of 2 rows"),
        (["a", "b"], 0.99, "can't hold out 2 of 2 rows"),
        (["a", "a", "a"], 1, "all 3 rows have the same prompt"),
        (["a", "b", "c"], 1.5, "neither a share"),
    ],
)
def test_what_can_not_be_split(prompts: list[str], held_out: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        held_out_prompts(prompts, held_out, 0)


# ---- the step ------------------------------------------------------------------------------------------------------

RUN = StepRun(resolve=lambda name: None)
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
]


def row(prompt: str, number: int = 0, source: str = "s", meta: dict[str, Any] | None = None) -> SftRow:
    messages = (Message("user", prompt), Message("assistant", f"reply {number}"))
    return SftRow(messages, Origin("f.jsonl", number + 1), source, meta=meta or {})


def distinct(count: int, source: str = "s", length: int = 12, seed: int = 0) -> list[SftRow]:
    """Rows whose prompts share no 8-gram."""
    draw = random.Random(f"{source} {seed}")
    return [
        row(" ".join(f"{draw.choice(WORDS)}{draw.randrange(1000)}" for _ in range(length)), number, source)
        for number in range(count)
    ]


def write(path: Path, rows: Sequence[SftRow], **columns: list[Any]) -> Path:
    frame = rows_frame(rows).with_columns(**{name: pl.Series(name, values) for name, values in columns.items()})
    write_rows(path, frame)
    return path


def split(path: Path, out: Path, seed: int = 0, **keys: Any) -> tuple[pl.DataFrame, Decisions]:
    """(kept rows, decisions)"""
    out.mkdir()
    decisions = SplitStep(kind="split", **keys).decide(path, seed, RUN)
    apply("split", path, decisions, out)
    return pl.read_parquet(out / "rows.parquet"), decisions


def sides(frame: pl.DataFrame) -> dict[str, set[str]]:
    return {name: set(frame.filter(pl.col("split") == name)["id"]) for name in ("train", "validation", "test")}


def test_sizes_files_and_ledger(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", distinct(200))
    kept, decisions = split(path, tmp_path / "out", validation=0.1, test=30)
    assert decisions.facts["splits"] == {"train": 150, "validation": 20, "test": 30}
    assert read_json(tmp_path / "out" / "ledger.json")["steps"][0]["notes"] == {
        "split train": 150,
        "split validation": 20,
        "split test": 30,
    }
    assert decisions.facts["check"] == {
        "matches_dropped": 0,
        "matches_left": 0,
        "equal_prompts": 0,
        "equal_texts": 0,
        "divided_clusters": 0,
    }
    for name, ids in sides(kept).items():
        assert {r.id for r in read_rows(tmp_path / "out" / f"{name}.parquet")} == ids
    split(path, tmp_path / "again", validation=0.1)
    assert not (tmp_path / "again" / "test.parquet").exists()


def test_a_plain_split_holds_out_what_held_out_does(tmp_path: Path) -> None:
    rows = distinct(100)
    kept, _ = split(write(tmp_path / "in.parquet", rows), tmp_path / "out", seed=3, validation=0.1)
    expected = held_out_prompts([prompt_key(r.messages) for r in rows], 0.1, 3)
    assert sides(kept)["validation"] == {r.id for r in rows if prompt_key(r.messages) in expected}


def test_training_rows_may_be_limited(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", distinct(100))
    kept, decisions = split(path, tmp_path / "out", validation=10, train=0.5)
    assert decisions.facts["splits"] == {"train": 50, "validation": 10, "test": 0}
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert set(rejects["reason"]) == {"split_quota"}
    verdicts = pl.concat([kept, rejects.select(kept.columns)]).explode("verdicts").unnest("verdicts")
    room = verdicts.filter(pl.col("check") == "train_room")
    assert Counter(room["passed"]) == {True: 50, False: 40}
    assert set(room.filter(~pl.col("passed"))["limit"]) == {"<= 0"}
    smaller, _ = split(path, tmp_path / "smaller", validation=10, train=20)
    assert sides(smaller)["validation"] == sides(kept)["validation"]
    assert sides(smaller)["train"] < sides(kept)["train"]


def test_groups_join_prompts_and_clusters(tmp_path: Path) -> None:
    # 0 and 1 share a prompt, 1 and 2 a cluster, 2 and 3 differ by punctuation and case only: one group of four
    rows = [row("what is two", 0), row("what is two", 1), row("Name a colour", 2), row("name a colour!", 3)]
    rows += distinct(20)
    clusters = [None, "c", "c", None, *([None] * 20)]
    path = write(tmp_path / "in.parquet", rows, cluster=clusters)
    for seed in range(6):
        kept, decisions = split(path, tmp_path / str(seed), seed=seed, validation=6)
        assert kept["split"][:4].n_unique() == 1
        assert (decisions.facts["groups"], decisions.facts["largest_group"]) == (21, 4)
        assert decisions.facts["clusters_together"]
        assert decisions.facts["splits"]["validation"] == 6


@settings(max_examples=8, deadline=None)
@given(
    prompts=st.lists(st.lists(st.sampled_from(WORDS[:4]), min_size=1, max_size=12), min_size=8, max_size=40),
    clusters=st.lists(st.sampled_from([None, None, "a", "b"]), min_size=40, max_size=40),
    seed=st.integers(0, 3),
    order=st.randoms(),
)
def test_nothing_stands_on_both_sides_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory,
    prompts: list[list[str]],
    clusters: list[str | None],
    seed: int,
    order: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("split")
    rows = [*(row(" ".join(words), number) for number, words in enumerate(prompts)), *distinct(4, length=20)]
    carried = [*clusters[: len(prompts)], *([None] * 4)]
    keys: dict[str, Any] = {"validation": 0.2, "test": 2, "ngram": 3}
    kept, _ = split(write(folder / "a.parquet", rows, cluster=carried), folder / "a", seed, **keys)

    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    path = write(folder / "b.parquet", [rows[i] for i in shuffled], cluster=[carried[i] for i in shuffled])
    again, _ = split(path, folder / "b", seed, **keys)
    assert sides(again) == sides(kept)

    text = {r.id: tokens(r.messages[0].content) for r in rows}
    found = sides(kept)
    for near, far in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for held in found[far]:
            grams = ngrams(text[held], 3)
            for other in found[near]:
                assert text[held] != text[other]
                assert len(grams & ngrams(text[other], 3)) <= 0.5 * len(grams)
    divided = kept.filter(pl.col("cluster").is_not_null()).group_by("cluster").agg(pl.col("split").n_unique())
    assert set(divided["split"]) <= {1}


def test_a_training_row_that_holds_a_held_out_prompt_is_dropped(tmp_path: Path) -> None:
    rows = distinct(40)
    plain, _ = split(write(tmp_path / "plain.parquet", rows), tmp_path / "plain", validation=4)
    held = next(r for r in rows if r.id in sides(plain)["validation"])
    words = held.messages[0].content.split()
    # 12 tokens make 5 8-grams: 11 of them in a row hold 4 of the 5, 9 hold 2 of the 5
    copy = row(f"please {' '.join(words[:11])} thank you", 90)
    part = row(f"please {' '.join(words[:9])} thank you", 91)
    path = write(tmp_path / "in.parquet", [*rows, copy, part])
    for seed in range(50):  # the two new prompts must fall into train
        kept, decisions = split(path, tmp_path / f"out{seed}", seed=seed, validation=4)
        found = sides(kept)
        if held.id in found["validation"] and part.id in found["train"] and copy.id not in found["validation"]:
            break
    rejects = pl.read_parquet(tmp_path / f"out{seed}" / "rejects.parquet")
    dropped = rejects.filter(pl.col("id") == copy.id).row(0, named=True)
    assert (dropped["reason"], dropped["twin"]) == ("matches_held_out", held.id)
    assert dropped["detail"] == f"80% of the 8-grams of validation row {held.id}"
    (verdict,) = (v for v in dropped["verdicts"] if v["check"] == "held_out_overlap")
    assert (verdict["value"], verdict["limit"], verdict["passed"]) == (0.8, "<= 0.5", False)
    (verdict,) = kept.filter(pl.col("id") == part.id)["verdicts"][0]
    assert (verdict["value"], verdict["passed"]) == (0.4, True)
    assert (decisions.facts["check"]["matches_dropped"], decisions.facts["check"]["matches_left"]) == (1, 0)
    with pytest.raises(DataError, match=r"1 rows match a held-out row\n  row .* holds 80% of the 8-grams"):
        split(path, tmp_path / "error", seed=seed, validation=4, on_match="error")
    # a looser limit keeps it
    loose, _ = split(path, tmp_path / "loose", seed=seed, validation=4, max_overlap=0.8)
    assert copy.id in sides(loose)["train"]


def test_a_template_that_many_prompts_share_is_no_match(tmp_path: Path) -> None:
    draw = random.Random(0)
    head = "decide whether the following sentence is positive or negative and explain why in one line"
    rows = [row(f"{head} {' '.join(f'w{draw.randrange(10**6)}' for _ in range(9))}", n) for n in range(400)]
    kept, decisions = split(write(tmp_path / "in.parquet", rows), tmp_path / "out", validation=100)
    assert (len(kept), decisions.facts["check"]["matches_dropped"]) == (400, 0)


def test_strata_by_source_and_topic(tmp_path: Path) -> None:
    rows = [*distinct(60, "a"), *distinct(30, "b"), *distinct(10, "c")]
    path = write(tmp_path / "in.parquet", rows)
    _, decisions = split(path, tmp_path / "source", validation=0.1, test=0.2, stratify="source")
    assert decisions.facts["strata"] == [
        {"stratum": "a", "rows": 60, "train": 42, "validation": 6, "test": 12},
        {"stratum": "b", "rows": 30, "train": 21, "validation": 3, "test": 6},
        {"stratum": "c", "rows": 10, "train": 7, "validation": 1, "test": 2},
    ]
    topics = [SftRow(r.messages, r.origin, r.source, meta={"class": i % 2}) for i, r in enumerate(rows)]
    path = write(tmp_path / "topics.parquet", topics)
    _, decisions = split(path, tmp_path / "topic", validation=20, stratify="topic", topic="class")
    assert [s["validation"] for s in decisions.facts["strata"]] == [10, 10]
    # topics in the column cluster are strata: they are divided, not kept whole
    path = write(tmp_path / "clusters.parquet", rows, cluster=["t"] * 50 + ["u"] * 50)
    _, decisions = split(path, tmp_path / "cluster", validation=20, stratify="topic")
    assert [s["validation"] for s in decisions.facts["strata"]] == [10, 10]
    assert not decisions.facts["clusters_together"]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    share=st.floats(0.05, 0.4),
)
@settings(max_examples=8, deadline=None)
def test_every_stratum_gives_its_part(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], share: float) -> None:
    folder = tmp_path_factory.mktemp("strata")
    rows = [r for number, size in enumerate(sizes) for r in distinct(size, f"s{number}")]
    if len(rows) < 3:
        return
    _, decisions = split(write(folder / "in.parquet", rows), folder / "out", validation=share, stratify="source")
    wanted = max(1, round(share * len(rows)))
    assert decisions.facts["splits"]["validation"] == wanted
    for stratum in decisions.facts["strata"]:
        assert abs(stratum["validation"] - wanted * stratum["rows"] / len(rows)) < 1


@pytest.mark.parametrize(
    ("rows", "keys", "words"),
    [
        (distinct(5), {"validation": 5}, "split.validation: can't hold out 5 of 5 rows"),
        (distinct(5), {"validation": 3, "test": 2}, "validation and test take all 5 rows"),
        (distinct(5), {"validation": 1.5}, "neither a share"),
        (distinct(9), {"validation": 2, "train": 8}, "split.train: 8 training rows are wanted, but only 7 are left"),
        (distinct(9), {"validation": 2, "train": 2.5}, "split.train: 2.5 is neither"),
        ([row("same", n) for n in range(9)], {"validation": 1}, "the 9 rows are 1 group of equal prompts"),
        (distinct(9), {"validation": 2, "stratify": "topic"}, "split.topic: no row has a cluster"),
        (distinct(9), {"stratify": "topic", "topic": "kind"}, "no row has the key 'kind' in its meta"),
    ],
)
def test_what_the_step_refuses(tmp_path: Path, rows: list[SftRow], keys: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        split(write(tmp_path / "in.parquet", rows), tmp_path / "out", **keys)


def test_everything_to_train_and_an_empty_file(tmp_path: Path) -> None:
    kept, _ = split(write(tmp_path / "in.parquet", distinct(5)), tmp_path / "out", validation=0)
    assert kept["split"].to_list() == ["train"] * 5
    kept, decisions = split(write(tmp_path / "empty.parquet", []), tmp_path / "none", validation=0)
    assert (len(kept), decisions.facts["groups"]) == (0, 0)


@given(texts=st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=8), n=st.integers(1, 5))
def test_hashed_ngrams_are_the_sets_of_ngrams(texts: list[list[str]], n: int) -> None:
    pairs = distinct_ngrams([" ".join(words) for words in texts], n)
    found = [set(pairs.filter(pl.col("text") == number)["gram"]) for number in range(len(texts))]
    sets = [ngrams(words, n) for words in texts]
    assert [len(one) for one in found] == [len(one) for one in sets]
    for i in range(len(texts)):
        for j in range(i):
            assert len(found[i] & found[j]) == len(sets[i] & sets[j])


def test_the_configuration_is_read_strictly() -> None:
    value = {"kind": "split", "validation": 200, "test": 0.1, "stratify": "topic", "topic": "category"}
    step = build(SplitStep, Document("f", value, {}))
    assert step == SplitStep(kind="split", validation=200, test=0.1, stratify="topic", topic="category")


@pytest.mark.shared
def test_real_rows_english_and_chinese(shared_data: Path, tmp_path: Path) -> None:
    from posttrain.artifacts import StageDir
    from posttrain.data.config import DataSettings, Source
    from posttrain.data.pipeline import prepare

    folder = shared_data / "llama-factory-demo"
    sources = tuple(
        Source(path=str(folder / f"data__alpaca_{language}_demo.json"), name=language) for language in ("en", "zh")
    )
    prepare(DataSettings(sources=sources, held_out=0), StageDir(tmp_path), 0, lambda name: None)
    path = tmp_path / "rows" / "train.parquet"
    kept, decisions = split(path, tmp_path / "out", validation=0.05, test=0.05, stratify="source")
    assert decisions.facts["check"]["matches_left"] == 0
    assert all(abs(s["validation"] - 50) <= 1 and abs(s["test"] - 50) <= 1 for s in decisions.facts["strata"])
    assert len(kept) >= 1970
