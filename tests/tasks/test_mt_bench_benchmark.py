"""MT-Bench as a benchmark: tasks, ratings and win rates by hand, panels, published judgments replayed."""

from __future__ import annotations

import json
import re

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.generate.engine import Failure, Sampling
from posttrain.judge.config import Plan
from posttrain.tasks.base import Task
from posttrain.tasks.measuring import findings_of
from posttrain.tasks.mt_bench import MtBenchBenchmark

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["W1", "W2"]},
    {"question_id": 111, "category": "math", "turns": ["M1", "M2"], "reference": ["R-one", "R-two"]},
    {"question_id": 1121, "category": "zh_coding", "turns": ["C1", "C2"]},
]
LOST = Failure("timeout", "slow")


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    return path


def benchmark(path="-", **keys):
    return MtBenchBenchmark(name="mt_bench", path=str(path), **keys)


def last_number(request):
    """Rates a reply with the last number written as r7 in what is shown."""
    marks = re.findall(r"r(\d+)|(mute)", request.prompt[-1].content)
    number, mute = marks[-1]
    return "No idea." if mute else f"Fine.\n[[{number}]]"


def two_models(judged, tasks):
    answers = judged.answers(
        tasks, base=[("r4", "r2"), ("r6", "mute"), LOST], sft=[("r8", "r6"), ("r7", "r5"), ("r9", "r1")]
    )
    # the failed conversation had its first reply
    lost = judged.answer(tasks[2], "r9", failure=LOST)
    answers["base"][2] = lost
    return answers


def test_tasks_are_the_questions_with_the_published_settings(questions):
    one, two, three = benchmark(questions).tasks()
    assert (one.id, one.turns, one.category, one.language) == ("81", ("W1", "W2"), "writing", "en")
    assert [t.sampling.temperature for t in (one, two, three)] == [0.7, 0.0, 0.0]
    assert {t.sampling.max_tokens for t in (one, two, three)} == {1024}
    assert three.language == "zh"
    assert (two.expected, three.expected) == (("R-one", "R-two"), ())


def test_references_of_a_file_take_the_place_of_those_in_the_questions(questions, tmp_path):
    given = tmp_path / "gpt-4.jsonl"
    rows = [{"question_id": n, "choices": [{"turns": [f"{n}-a", f"{n}-b"]}]} for n in (111, 1121)]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert benchmark(questions, references=str(given)).tasks()[2].expected == ("1121-a", "1121-b")
    given.write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="question 1121"):
        benchmark(questions, references=str(given)).tasks()


def test_a_part_keeps_the_share_of_every_category(tmp_path):
    path = tmp_path / "question.jsonl"
    rows = [{"question_id": n, "category": "abcd"[n // 10], "turns": ["Q"]} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    some = benchmark(path, max_prompts=8).tasks()
    assert [task.id for task in some] == ["0", "1", "10", "11", "20", "21", "30", "31"]


def test_ratings_by_hand(judged, questions):
    bench = benchmark(questions)
    answers = two_models(judged, bench.tasks())
    judges = judged.judges(last_number)
    found = bench.judge(answers, judges, judged.chance)
    record = judged.record(bench, found, answers)
    # base: 4, 2 and 6 (the second turn of M has no rating, the failed conversation is not judged); sft: 8 6, 7 5, 9 1
    assert judged.result(record, "base", "rating")["estimate"] == 4
    assert judged.result(record, "base", "rating_turn_1")["estimate"] == 5
    assert judged.result(record, "base", "rating_turn_2")["estimate"] == 2
    assert judged.result(record, "sft", "rating")["estimate"] == 6
    assert judged.result(record, "sft", "rating", "math")["estimate"] == 6
    assert {one["category"] for one in record["results"]} == {None, "writing", "math", "zh_coding"}
    assert record["accounting"]["base"] == {"asked": 3, "answered": 2, "measured": 2, "dropped": {"timeout": 1}}
    assert record["accounting"]["sft"]["measured"] == 3
    assert len(judges.requests) == 2 * 5
    assert (
        "1 of 10 ratings are missing (parse 1; for example: No idea.): they are in none of the numbers."
        in record["notes"]
    )
    assert any(
        "no reference answer for 1 of 2 questions of maths, reasoning and coding (zh_coding)" in n
        for n in record["notes"]
    )
    assert found.remarks["sft", "81", 0].label == "8, 6 of 10"
    assert found.remarks["base", "111", 0].label == "6, none of 10"
    assert "Turn 2: no verdict: parse (No idea.)" in found.remarks["base", "111", 0].detail
    assert found.reply_values["sft", "111", 0] == {"rating": 6, "rating_turn_1": 7, "rating_turn_2": 5}
    assert record["win_rates"] == []
    shown = [request.prompt[-1].content for request in judges.requests]
    assert sum("R-two" in text for text in shown) == 2
    assert sum("R-one" in text for text in shown) == 2


def test_a_panel_gives_the_mean_and_samples_too(judged, questions):
    bench = benchmark(questions)
    answers = judged.answers(bench.tasks(), sft=[("r8", "r6"), ("r7", "mute"), ("r9", "r1")])

    def always_three(request):
        return "[[3]]"

    record = judged.record(
        bench, bench.judge(answers, judged.judges(last_number, always_three), judged.chance), answers
    )
    # (8 + 3) / 2, 4.5, 5, 3 (one judge alone), 6, 2
    assert judged.result(record, "sft", "rating")["estimate"] == pytest.approx((5.5 + 4.5 + 5 + 3 + 6 + 2) / 6)

    def by_sample(request):
        return f"[[{1 + 2 * request.sample}]]"

    judges = judged.judges(by_sample, plan=Plan(samples=2))
    record = judged.record(bench, bench.judge(answers, judges, judged.chance), answers)
    rating = judged.result(record, "sft", "rating")
    assert (rating["estimate"], rating["values"]) == (2, 6)  # the mean of 1 and 3, one value a turn


def test_a_plan_for_the_last_turn_is_kept_and_told(judged, questions):
    bench = benchmark(questions)
    answers = judged.answers(bench.tasks(), sft=[("r8", "r6"), ("r7", "r5"), ("r9", "r1")])
    judges = judged.judges(last_number, plan=Plan(turns="last", reference="never"))
    record = judged.record(bench, bench.judge(answers, judges, judged.chance), answers)
    assert judged.result(record, "sft", "rating")["estimate"] == 4
    assert not [one for one in record["results"] if one["measure"] == "rating_turn_1"]
    assert any("Only the last turn" in note for note in record["notes"])
    assert any("sees no reference answers" in note for note in record["notes"])


def test_pairs_by_hand(judged, questions):
    bench = benchmark(questions, judged="pairs")
    answers = judged.answers(
        bench.tasks(),
        base=[("q2", "q2"), ("q1", "q1"), ("q5", "q5")],
        sft=[("q3", "q1"), ("q2", "flip q2"), ("q5", "q5")],
    )
    judges = judged.judges(judged.better_wins)
    found = bench.judge(answers, judges, judged.chance)
    record = judged.record(bench, found, answers)
    # W: win, loss; M: win, tie by order; C: the same in both turns, two ties without asking
    (rates,) = record["win_rates"]
    assert [rates[key] for key in ("model_a", "model_b", "wins", "losses", "ties")] == ["sft", "base", 2, 1, 3]
    assert judged.result(record, "sft", "win_rate")["estimate"] == pytest.approx(3.5 / 6)
    assert judged.result(record, "base", "win_rate")["estimate"] == 0.5
    assert record["differences"][0]["difference"] == pytest.approx(3.5 / 6 - 0.5)
    assert len(judges.requests) == 2 * 2 * 2
    assert (found.remarks["sft", "81", 0].label, found.remarks["sft", "81", 0].good) == ("1 won, 1 lost", None)
    assert "Against base, turn 2: " in found.remarks["sft", "81", 0].detail
    assert [m.key for m in bench.measures] == ["win_rate"]


def test_both_ways_together(judged, questions):
    bench = benchmark(questions, judged="both")
    answers = judged.answers(
        bench.tasks(),
        base=[("r4 q1", "r2 q1"), ("r6 q1", "r1 q1"), LOST],
        sft=[("r8 q2", "r6 q2"), ("r7 q2", "r5 q2"), ("r9 q2", "r1 q2")],
    )

    def both(request):
        single = "[[A]]" not in request.prompt[-1].content
        return last_number(request) if single else judged.better_wins(request)

    found = bench.judge(answers, judged.judges(both), judged.chance)
    record = judged.record(bench, found, answers)
    assert judged.result(record, "sft", "win_rate")["estimate"] == 1
    assert judged.result(record, "sft", "rating")["estimate"] == 6
    assert (found.remarks["sft", "81", 0].label, found.remarks["sft", "81", 0].good) == ("8, 6 of 10; 2 won", True)
    assert (found.remarks["sft", "1121", 0].label, found.remarks["sft", "1121", 0].good) == (
        "9, 1 of 10",
        None,
    )  # rated, but nothing to compare with
    assert found.reply_values["sft", "81", 0]["win_rate"] == 1
    assert record["accounting"]["sft"]["measured"] == 3
    assert {one["measure"] for one in record["differences"]} == {"rating", "rating_turn_1", "rating_turn_2", "win_rate"}


def test_nothing_to_rate_and_no_judge(judged, questions):
    bench = benchmark(questions)
    answers = judged.answers(bench.tasks(), base=[LOST] * 3)
    record = judged.record(bench, bench.judge(answers, judged.judges(), judged.chance), answers)
    assert record["results"] == []
    assert record["accounting"]["base"]["dropped"] == {"timeout": 3}
    with pytest.raises(ConfigError, match="MT-Bench needs a judge"):
        findings_of(bench, answers, None, judged.chance)


def test_chinese_judges_see_chinese_prompts(judged):
    task = Task("1", ("问题",), Sampling(), category="zh_writing", language="zh", expected=())
    judges = judged.judges(last_number, language="zh")
    benchmark().judge(judged.answers([task], sft=["r8"]), judges, judged.chance)
    assert "请评价这个回答" in judges.requests[0].prompt[-1].content


# ---- real files ----------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_the_real_question_files_load(shared_data):
    folder = shared_data / "fastchat"
    names = ("question.jsonl", "reference_answer__gpt-4.jsonl")
    path, references = (folder / f"fastchat__llm_judge__data__mt_bench__{name}" for name in names)
    tasks = benchmark(path, references=str(references)).tasks()
    assert len(tasks) == 80
    assert sum(bool(task.expected) for task in tasks) == 30
    assert len(benchmark(path, max_prompts=16).tasks()) == 16
    chinese = benchmark(shared_data / "mt-bench-zh-huozi" / "data__mt-bench-zh__question.jsonl").tasks()
    assert len(chinese) == 80
    assert {task.language for task in chinese} == {"zh"}


@pytest.mark.shared
def test_published_judgments_replayed_give_the_published_mean(judged, shared_data):
    """GPT-4's words on one model's 160 turns, through tasks, prompts, parser, values and record: the recorded scores come out."""
    path = shared_data / "evaluation" / "mt_bench_judgments" / "stefanstud_phi3dpo_gpt-4_single.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    said = {(row["question_id"], row["turn"]): row for row in rows}
    assert len(said) == len(rows) == 160
    bench = benchmark(shared_data / "evaluation" / "mt_bench" / "question.jsonl")
    answers = judged.answers(tasks := bench.tasks(), phi=[(f"#{t.id}-1#", f"#{t.id}-2#") for t in tasks])

    def replay(request):
        question, turn = re.findall(r"#(\d+)-(\d)#", request.prompt[-1].content)[-1]
        return said[int(question), int(turn)]["judgment"]

    record = judged.record(bench, bench.judge(answers, judged.judges(replay), judged.chance), answers)
    scores = [row["score"] for row in rows]
    assert judged.result(record, "phi", "rating")["estimate"] == pytest.approx(sum(scores) / 160)
    for turn in (1, 2):
        own = [row["score"] for row in rows if row["turn"] == turn]
        assert judged.result(record, "phi", f"rating_turn_{turn}")["estimate"] == pytest.approx(sum(own) / 80)
    assert judged.result(record, "phi", "rating")["values"] == 160
