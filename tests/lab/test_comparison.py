"""``posttrain compare``: hand-worked numbers through the whole path, and its refusals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import ConfigError, DataError
from posttrain.lab.comparison import CompareSettings, MeasureComparison, compare, sentence, settings_of
from posttrain.stats import intervals as stats
from posttrain.stats.intervals import IntervalSettings


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- scores -----------------------------------------------------------------------------------------------


def scores(values: Mapping[str, Iterable[Any]], measure: str = "score") -> list[dict[str, Any]]:
    return [
        {"model": model, "prompt_id": f"p{n}", measure: value}
        for model, column in values.items()
        for n, value in enumerate(column)
    ]


def compared(path: Path, rows: Iterable[Mapping[str, Any]], **options: Any) -> tuple[MeasureComparison, ...]:
    return compare(CompareSettings(**{"a": "a", "b": "b", "file": str(write(path / "f.jsonl", rows)), **options}))


def test_scores_by_hand(tmp_path: Path) -> None:
    rows = scores({"a": [1, 2, 3], "b": [2, 2, 5]})
    [one] = compared(tmp_path, reversed(rows))  # rows pair by prompt, not by place
    assert (one.kind, one.mean_a, one.mean_b, one.difference.estimate) == ("scores", 2.0, 3.0, 1.0)
    # differences 1, 0, 2: of the sums +-1 +-2 two of four are as far from 0 as 3
    assert (one.p_value, one.p_exact) == (0.5, True)
    # their standard deviation is 1
    assert one.minimum_detectable == pytest.approx((1.959964 + 0.841621) / math.sqrt(3), abs=1e-5)
    assert (one.a_better, one.ties, one.b_better) == (0, 1, 2)
    assert (one.pairs, one.units, one.missing, one.mcnemar) == (3, 3, 0, None)
    assert not one.different
    assert one.sentence.startswith("No difference shown in mean score between a and b: b − a is +1.000")
    assert "to be found in 80 of 100 such comparisons" in one.sentence


def test_booleans_by_hand(tmp_path: Path) -> None:
    rows = scores({"a": [True, *[False] * 7], "b": [True] * 7 + [False]}, "passed")
    [one] = compared(tmp_path, rows, measure=("passed",))
    assert one.kind == "booleans"
    assert one.mcnemar is not None
    # six prompts that only b passes: 2 / 2^6, for the exact test and for the permutations
    assert one.mcnemar == (0, 6, 0.03125)
    assert one.p_value == 0.03125
    assert one.different
    assert one.sentence.startswith("b has the higher share of passed than a: the difference b − a is +75.0 points")


def test_intervals_are_those_of_the_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(60) < 0.5, rng.random(60) < 0.7
    [one] = compared(tmp_path, scores({"a": a.tolist(), "b": b.tolist()}), resamples=500, seed=3, confidence=0.9)
    assert (
        one.difference == stats.compare(a, b, settings=IntervalSettings(confidence=0.9, resamples=500, seed=3)).interval
    )


def test_samples_of_a_prompt_are_averaged_and_do_not_make_prompts(tmp_path: Path) -> None:
    rows = [
        *({"model": "a", "prompt_id": 1, "score": value} for value in (1, 3)),
        {"model": "b", "prompt_id": 1, "score": 5},
        {"model": "a", "prompt_id": 2, "score": 4},
        {"model": "b", "prompt_id": 2, "score": 4},
    ]
    [one] = compared(tmp_path, rows)
    assert (one.pairs, one.mean_a, one.mean_b) == (2, 3.0, 4.5)
    twice = compared(tmp_path, [*scores({"a": [True], "b": [False]}), *scores({"a": [True], "b": [False]})])
    assert twice[0].kind == "booleans"
    assert twice[0].mcnemar is None  # it needs one value a prompt


def test_what_only_one_has_is_counted_and_left_out(tmp_path: Path) -> None:
    rows = scores({"a": [1, 2, None, 4], "b": [2, 3, 9], "c": [7, 7, 7, 7, 7]})
    [one] = compared(tmp_path, rows)
    assert (one.pairs, one.missing, one.mean_a, one.mean_b) == (2, 2, 1.5, 2.5)


def test_clusters_are_swapped_as_a_whole(tmp_path: Path) -> None:
    rows = [row | {"topic": row["prompt_id"] in ("p0", "p1")} for row in scores({"a": [0, 0, 0], "b": [1, 1, 1]})]
    [alone], [joined] = compared(tmp_path, rows), compared(tmp_path, rows, cluster="topic")
    assert (alone.units, joined.units) == (3, 2)
    assert alone.p_value == 2 / 8
    assert joined.p_value == 2 / 4
    booleans = [row | {"score": bool(row["score"])} for row in rows]
    assert compared(tmp_path, booleans)[0].mcnemar is not None
    assert compared(tmp_path, booleans, cluster="topic")[0].mcnemar is None  # its prompts must be independent


def test_several_measures_are_adjusted_by_holm(tmp_path: Path) -> None:
    rows = scores({"a": [0] * 7, "b": [1] * 7}, "one")
    rows = [row | {"two": row["one"], "three": 5} for row in rows]
    one, two, three = compared(tmp_path, rows, measure=("one", "two", "three"))
    assert (one.p_value, three.p_value) == (2 / 128, 1.0)
    assert (one.p_holm, two.p_holm, three.p_holm) == (3 * 2 / 128, 3 * 2 / 128, 1.0)
    assert one.different
    assert "after Holm for 3 measures" in one.sentence
    [single] = compared(tmp_path, rows, measure=("one",))
    assert single.p_holm == single.p_value


def test_columns_and_csv(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["who", "question", "ok"])
        writer.writerows([["a", 1, "True"], ["a", 2, "false"], ["b", 1, "true"], ["b", 2, "TRUE"], ["b", 3, ""]])
    [one] = compare(CompareSettings(a="a", b="b", file=str(path), model="who", item="question", measure=("ok",)))
    assert (one.kind, one.mean_a, one.mean_b, one.missing) == ("booleans", 0.5, 1.0, 1)


@given(
    st.lists(st.tuples(*[st.integers(-5, 5)] * 2), min_size=1, max_size=12),
)
@settings(max_examples=25)
def test_turned_round_it_says_the_same(tmp_path_factory: pytest.TempPathFactory, values: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("turned")
    rows = scores({"a": [x for x, _ in values], "b": [y for _, y in values]})
    [one], [other] = (compared(folder, rows, a=a, b=b, resamples=400) for a, b in (("a", "b"), ("b", "a")))
    assert one.difference.estimate == -other.difference.estimate
    assert one.difference.low == pytest.approx(-other.difference.high, abs=1e-12)
    assert (one.p_value, one.minimum_detectable) == (other.p_value, other.minimum_detectable)
    assert (one.a_better, one.ties, one.b_better) == (other.b_better, other.ties, other.a_better)
    assert one.difference.low <= one.difference.high


# ---- verdicts ---------------------------------------------------------------------------------------------


def verdict(a: str, b: str, winner: str | None, question: int) -> dict[str, Any]:
    return {"model_a": a, "model_b": b, "winner": winner, "question_id": question}


def test_verdicts_by_hand_whichever_stands_first(tmp_path: Path) -> None:
    rows = [
        verdict("a", "b", "model_b", 1),
        verdict("b", "a", "model_a", 1),
        verdict("b", "a", "model_a", 2),
        verdict("a", "b", "tie", 3),
        verdict("a", "b", "model_a", 4),
        verdict("a", "b", None, 5),
        verdict("a", "c", "model_a", 1),
    ]
    [one] = compared(tmp_path, rows)
    assert (one.kind, one.mean_b, one.mean_a) == ("verdicts", 0.7, 0.3)
    assert (one.b_better, one.ties, one.a_better) == (3, 1, 1)
    assert (one.pairs, one.units, one.missing) == (5, 4, 1)
    assert one.difference.estimate == pytest.approx(0.4)
    # sums by question 2, 1, 0, -1: of the eight sums +-2 +-1 +-1 six are as far from 0 as 2
    assert one.p_value == 6 / 8
    assert "5 verdicts in 4 groups" in one.sentence


def test_verdicts_without_a_prompt_stand_alone(tmp_path: Path) -> None:
    rows = [{"model_a": "a", "model_b": "b", "winner": "model_b"}] * 6
    [one] = compared(tmp_path, rows)
    assert (one.units, one.p_value, one.different) == (6, 2 / 64, True)
    assert one.sentence.startswith("b has the higher share of wins than a: the difference b − a is +100.0 points")


# ---- refusals ---------------------------------------------------------------------------------------------

SCORES = scores({"a": [1, 2], "b": [2, 3]})
VERDICTS = [verdict("a", "b", "model_a", 1)]


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        (SCORES, {"b": "a"}, "compared with itself"),
        (SCORES, {"winner": "w"}, "--winner"),
        (SCORES, {"model_a": "x"}, "--model-a"),
        (VERDICTS, {"measure": ("score",)}, "--measure"),
        (VERDICTS, {"model": "m"}, "--model"),
        (VERDICTS, {"item": "question_id", "cluster": "question_id"}, "--item: verdicts are joined by --cluster"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        compared(tmp_path, rows, **options)


@pytest.mark.parametrize("option", [["--confidence", "1"], ["--resamples", "0"], ["--seed", "-1"], ["--mesure", "x"]])
def test_wrong_options_are_named(option: list[str]) -> None:
    with pytest.raises(ConfigError, match=option[0]):
        settings_of(["a", "b", "f.jsonl", *option])


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        (SCORES, {"b": "bb"}, r"no model 'bb' \(did you mean 'b'\?\)"),
        (SCORES, {"measure": ("scor",)}, r"f\.jsonl:1: no field 'scor' \(did you mean 'score'\?\)"),
        (SCORES, {"item": "prompt"}, "no field 'prompt'"),
        (scores({"a": [1], "b": ["good"]}), {}, r"f\.jsonl:2: score is 'good'"),
        (scores({"a": [1, None], "b": [None, 1]}), {}, "no prompt has score of both a and b"),
        ([{"model": "a", "score": 1}], {}, "which prompt a row is about"),
        ([row | {"k": n} for n, row in enumerate(SCORES)], {"cluster": "k"}, "prompt 'p0' is in k '0' and '2'"),
        ([verdict("a", "b", "modelb", 1)], {}, r"f\.jsonl:1: unknown winner 'modelb' \(did you mean 'model_b'\?\)"),
        ([verdict("a", "c", "tie", 1), verdict("b", "c", "tie", 1)], {}, "no verdict between a and b"),
    ],
)
def test_bad_files_are_one_error_with_its_place(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=told) as caught:
        compared(tmp_path, rows, **options)
    assert "f.jsonl" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match="there is no such file") as caught:
            compare(CompareSettings(a="a", b="b", file=str(path)))
        assert str(path) in str(caught.value)


def test_the_command_prints_a_sentence_or_json(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    path = write(tmp_path / "f.jsonl", scores({"a": [1, 2, 3], "b": [2, 2, 5]}))
    code, out, err = cli("compare", "a", "b", path)
    assert (code, err) == (0, "")
    assert "No difference shown in mean score between a and b" in " ".join(out.split())
    code, out, _ = cli("compare", "a", "b", path, "--json")
    told = json.loads(out)
    assert (code, told["difference"], told["a"], told["b"]) == (0, "b - a", "a", "b")
    [measure] = told["measures"]
    assert (measure["p_value"], measure["difference"]["estimate"], measure["mcnemar"]) == (0.5, 1.0, None)
    code, _, err = cli("compare", "a", "z", path)
    assert (code, err.count("\n")) == (2, 2)
    assert err.startswith(f"error: {path}: no model 'z'")


def test_the_sentence_names_the_better_one_whichever_it_is(tmp_path: Path) -> None:
    [one] = compared(tmp_path, scores({"a": [5] * 8, "b": [1] * 8}))
    assert sentence("a", "b", one).startswith("a has the higher mean score than b: the difference b − a is −4.000")


# ---- real votes ----------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_votes_of_one_question_are_not_independent(shared_data: Path) -> None:
    path = shared_data / "evaluation" / "mt_bench" / "human_votes.jsonl"
    [grouped] = compare(CompareSettings(a="gpt-3.5-turbo", b="claude-v1", file=str(path), resamples=2000))
    share = stats.compare(
        [0.0] * grouped.pairs,
        [1.0] * grouped.b_better + [0.0] * grouped.ties + [-1.0] * grouped.a_better,
        settings=IntervalSettings(resamples=2000),
    ).interval
    assert grouped.difference.estimate == pytest.approx(share.estimate)
    assert grouped.difference.high - grouped.difference.low > 1.2 * (share.high - share.low)
    assert not grouped.different
    [clear] = compare(CompareSettings(a="gpt-4", b="llama-13b", file=str(path), resamples=2000))
    assert clear.different
    assert clear.mean_a > 0.8
