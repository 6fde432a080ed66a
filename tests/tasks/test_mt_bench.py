"""MT-Bench: files, scores and vote agreement on small cases worked by hand (the published numbers: test_published_votes)."""

from __future__ import annotations

import json

import mt_bench_votes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mt_bench_votes import Comparison, Rating, Vote

from posttrain.errors import DataError
from posttrain.judge.items import needs_reference
from posttrain.judge.verdicts import Accounting, Missing
from posttrain.tasks import mt_bench_data as mt_bench
from posttrain.tasks.mt_bench_data import Question

FEW = {"resamples": 50}


def lines(path, *records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


# ---- categories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "temperature", "reference"),
    [
        *[("writing", 0.7, False), ("roleplay", 0.7, False), ("stem", 0.1, False), ("humanities", 0.1, False)],
        *[("extraction", 0.0, False), ("math", 0.0, True), ("coding", 0.0, True), ("reasoning", 0.0, True)],
        *[("zh_math", 0.0, True), ("zh_writing", 0.7, False), ("cooking", 0.7, False)],
    ],
)
def test_categories(category, temperature, reference):
    assert mt_bench.answer_temperature(category) == temperature
    assert needs_reference(category) == reference


# ---- questions -----------------------------------------------------------------------------------------------------

MATH = {"question_id": 1, "category": "math", "turns": ["1 + 1?", "And doubled?"]}
ESSAY = {"question_id": 2, "category": "writing", "turns": ["Write.", "Shorten it."]}


def reference(question_id, *turns):
    return {"question_id": question_id, "model_id": "m", "choices": [{"index": 0, "turns": list(turns)}]}


def test_references_come_from_their_own_file_or_from_the_questions(tmp_path):
    questions = lines(tmp_path / "q.jsonl", MATH | {"reference": ["two", "four"]}, ESSAY)
    assert mt_bench.load_questions(questions) == (
        Question(1, "math", ("1 + 1?", "And doubled?"), ("two", "four")),
        Question(2, "writing", ("Write.", "Shorten it.")),
    )
    answers = lines(tmp_path / "r.jsonl", reference(1, "2", "4"))
    assert mt_bench.load_questions(questions, answers)[0].references == ("2", "4")


@pytest.mark.parametrize(
    ("records", "references", "message"),
    [
        ([], None, r"q\.jsonl: the file is empty"),
        ([MATH, MATH], None, r"q\.jsonl:2: question 1 comes a second time"),
        ([MATH | {"question_id": "1"}], None, r":1: question_id must be a whole number, not '1'"),
        ([MATH | {"question_id": True}], None, r"question_id must be a whole number"),
        ([ESSAY, {"question_id": 1, "turns": ["x"]}], None, r":2: category must be a text, not None"),
        ([MATH | {"turns": []}], None, "turns must be a list of texts"),
        ([MATH | {"turns": "1 + 1?"}], None, "turns must be a list of texts"),
        ([MATH | {"reference": ["two"]}], None, "has 2 turns, but 1 reference"),
        ([MATH], [reference(2, "a", "b")], r"r\.jsonl: question 1 \(math\) needs a reference answer"),
        ([MATH], [reference(1, "2")], "has 2 turns, but 1 reference"),
        ([MATH], [{"question_id": 1, "choices": []}], r"r\.jsonl:1: choices\[0\]\.turns must be a list of texts"),
        (["x"], None, r":1: .*not_an_object"),
    ],
)
def test_bad_questions_are_named(tmp_path, records, references, message):
    questions = lines(tmp_path / "q.jsonl", *records)
    answers = None if references is None else lines(tmp_path / "r.jsonl", *references)
    with pytest.raises(DataError, match=message):
        mt_bench.load_questions(questions, answers)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 1,\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"q\.jsonl:1: .*broken_json"):
        mt_bench.load_questions(tmp_path / "q.jsonl")
    with pytest.raises(DataError, match=r"none\.jsonl"):
        mt_bench.load_questions(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"b\.jsonl"):
        mt_bench_votes.load_votes(tmp_path / "b.jsonl")


# ---- scores --------------------------------------------------------------------------------------------------------

QUESTIONS = (Question(1, "math", ("a", "b")), Question(2, "writing", ("a", "b")), Question(3, "writing", ("a", "b")))


def test_scores_by_hand():
    ratings = [
        Rating(1, 1, 4.0),
        Rating(1, 2, 2.0),
        Rating(2, 1, 9.0),
        Rating(2, 2, Missing("parse")),
        Rating(3, 1, Missing("transport")),
        Rating(3, 1, 6.0),  # asked again
    ]
    table = mt_bench_votes.score_table(QUESTIONS, ratings, **FEW)
    assert table.overall.mean.estimate == pytest.approx((4 + 2 + 9 + 6) / 4)
    assert table.overall.accounting == Accounting(6, 5, 4, {"parse": 1, "transport": 1})
    assert {turn: score.mean.estimate for turn, score in table.by_turn.items()} == pytest.approx({1: 19 / 3, 2: 2.0})
    assert list(table.by_category) == ["math", "writing"]
    assert table.by_category["math"].mean.estimate == 3.0
    assert table.by_category["writing"].accounting.parsed == 2
    assert table.unjudged == ((3, 2),)


def test_a_category_without_ratings_has_no_mean():
    table = mt_bench_votes.score_table(QUESTIONS, [Rating(1, 1, Missing("length"))], **FEW)
    assert table.overall.mean is None
    assert table.by_category["writing"] == (None, Accounting(0, 0, 0, {}))


def test_the_two_turns_of_a_question_are_one_unit():
    # Two questions: 2 2 and 8 8. Resampled whole: 2, 5, 5 or 8; turn by turn it would be narrower.
    ratings = [Rating(2, 1, 2.0), Rating(2, 2, 2.0), Rating(3, 1, 8.0), Rating(3, 2, 8.0)]
    mean = mt_bench_votes.score_table(QUESTIONS, ratings, resamples=1_000).overall.mean
    assert mean[:3] == (5.0, 2.0, 8.0)


@pytest.mark.parametrize("rating", [Rating(9, 1, 5.0), Rating(1, 3, 5.0), Rating(1, 0, Missing("parse"))])
def test_ratings_of_other_questions_are_refused(rating):
    with pytest.raises(ValueError, match="not in the set"):
        mt_bench_votes.score_table(QUESTIONS, [rating])


# ---- votes ---------------------------------------------------------------------------------------------------------


def record(winner, model_a="x", model_b="y", judge="expert_1", question_id=1, turn=1):
    keys = {"question_id": question_id, "turn": turn, "model_a": model_a, "model_b": model_b}
    return keys | {"judge": judge, "winner": winner}


def test_votes_on_either_order_are_about_the_same_comparison(tmp_path):
    path = lines(
        tmp_path / "v.jsonl",
        record("model_a"),
        record("model_a", "y", "x"),
        record("tie", "y", "x"),
        record("tie (inconsistent)"),
    )
    found = mt_bench_votes.load_votes(path)
    assert {vote.comparison for vote in found} == {Comparison(1, 1, "x", "y")}
    assert [(vote.verdict, vote.flipped) for vote in found] == [
        ("first", False),
        ("second", False),
        ("tie", False),
        ("tie", True),
    ]
    assert mt_bench_votes.flips(found) == {True: 1, False: 3}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record("model_c"), r"v\.jsonl:2: winner 'model_c'\n  fix: use model_a, model_b, tie"),
        (record("tie", "x", "x"), "compared with itself"),
        (record("tie", turn="1"), "turn must be a whole number"),
        (record("tie", judge=None), "judge must be a text"),
    ],
)
def test_bad_votes_are_named(tmp_path, bad, message):
    with pytest.raises(DataError, match=message):
        mt_bench_votes.load_votes(lines(tmp_path / "v.jsonl", record("tie"), bad))


def vote(verdict, question_id=1, judge="expert_1", turn=1):
    return Vote(Comparison(question_id, turn, "x", "y"), judge, verdict, False)


PEOPLE = [
    *[vote("first"), vote("first", judge="expert_2"), vote("tie", judge="expert_3")],
    *[vote("second", 2), vote("first", 2, judge="expert_2")],
    *[vote("tie", 3), vote("first", 4), vote("second", 1, turn=2)],
]
JUDGE = [vote("first", judge="gpt"), vote("second", 2, judge="gpt"), vote("tie", 3, judge="gpt")]


def test_agreement_by_hand():
    # Question 1: first against first, first, tie; 2: second against second, first; 3: tie against tie; 4 was not judged.
    assert mt_bench_votes.judge_agreement(JUDGE, PEOPLE, 1, ties=True, **FEW)[:2] == (4, 6)
    # Without ties: 1: first, first; 2: second, first.
    without = mt_bench_votes.judge_agreement(JUDGE, PEOPLE, 1, ties=False, **FEW)
    assert without[:2] == (3, 4)
    assert without.share.estimate == 0.75
    # Among people, question 1: (first, first), (first, tie), (first, tie); 2: (second, first).
    assert mt_bench_votes.mutual_agreement(PEOPLE, 1, ties=True, **FEW)[:2] == (1, 4)
    assert mt_bench_votes.mutual_agreement(PEOPLE, 1, ties=False, **FEW)[:2] == (1, 2)
    assert mt_bench_votes.judge_agreement(JUDGE, PEOPLE, 2, ties=True) == (0, 0, None)


def test_experts_are_the_judges_of_that_name():
    votes = [vote("first"), vote("first", judge="author_0"), vote("tie", judge="expert_20")]
    assert mt_bench_votes.experts(votes) == [votes[0], votes[2]]


def test_a_judge_votes_once():
    with pytest.raises(ValueError, match="two votes on Comparison"):
        mt_bench_votes.judge_agreement([*JUDGE, JUDGE[0]], PEOPLE, 1, ties=True)


@given(
    st.lists(
        st.builds(vote, st.sampled_from(["first", "second", "tie"]), st.integers(1, 4), st.sampled_from(["p", "q"])),
        max_size=12,
    )
)
def test_all_votes_on_a_comparison_are_paired_with_each_other(people):
    found = mt_bench_votes.mutual_agreement(people, 1, ties=True, **FEW)
    sizes = [len(votes) for votes in mt_bench_votes.votes_by_comparison(people).values()]
    assert found.pairs == sum(n * (n - 1) // 2 for n in sizes)
    assert 0 <= found.equal <= found.pairs
    assert mt_bench_votes.mutual_agreement(people, 1, ties=False, **FEW).equal <= found.equal
