"""What each pipeline asks, and how it reads what comes: rows, and every other answer with its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.config import Source
from posttrain.data.rows import frame_rows, read_any
from posttrain.errors import DataError
from posttrain.generate.engine import Completion, Failure, Request
from posttrain.generate.fake import FakeEngine
from posttrain.generate.source import ModelSource
from posttrain.synth.alpaca import Alpaca
from posttrain.synth.base import RewardModel
from posttrain.synth.evolve import Evolve
from posttrain.synth.magpie import Magpie, read_labels
from posttrain.synth.preferences import Preferences, ScoredByChecks, ScoredByJudge, ScoredByLength
from posttrain.synth.self_instruct import SelfInstruct
from posttrain.synth.ultrachat import UltraChat
from posttrain.tasks.checks import Check

from .conftest import Synthesise, reasons, row, texts

NEW = [
    "Explain why bread rises when yeast is added",
    "List five reasons to walk to work",
    "Translate the greeting into Spanish: good morning",
    "Say whether the sentence is a question or a statement",
]


def numbered(tasks: list[str]) -> str:
    return "\n".join(f"{place}. {task}" for place, task in enumerate(tasks, 9))


# ---- Self-Instruct ---------------------------------------------------------------------------------------------------


def test_self_instruct_tells_labels_apart_and_keeps_what_it_was_shown(synthesise: Synthesise) -> None:
    def script(request: Request) -> str:
        text = request.prompt[-1].content
        if "Continue the list" in text:
            return numbered(NEW)
        task = re.findall(r"Task: (.+)", text)[-1]
        if "Answer with Yes or No" in text:
            return "Yes" if "whether" in task else "No"
        if "asks for one of a few labels" in text:
            return "Output: question\nInput: Where is it?\nOutput: statement\nInput: It is here."
        return "Input: <noinput>\nOutput: An answer to it."

    found = synthesise(SelfInstruct(name="self_instruct"), FakeEngine(script), rows_wanted=5, round_size=1)
    assert [NEW[3] + "\n\nWhere is it?", "question"] in texts(found)
    assert [NEW[3] + "\n\nIt is here.", "statement"] in texts(found)
    assert [NEW[0], "An answer to it."] in texts(found)
    first = frame_rows(found.rows)[0]
    assert len(found.rows["parents"][0]) == 6
    similar = first.meta["synth"]["similar"]
    assert len(similar) == 10
    assert similar == sorted(similar, key=lambda one: -one[1])
    assert [asked["prompt"].partition("@")[0] for asked in first.meta["synth"]["requests"]] == [
        "self_instruct.propose",
        "self_instruct.classify",
        "self_instruct.input_first",
    ]


def test_a_task_that_can_not_stay_has_its_reason(synthesise: Synthesise) -> None:
    tasks = [
        "Sing",
        "Draw a map of the city for me",
        "Write a program that sorts",
        "- begin with a dash here",
        *NEW[:1],
    ]

    def script(request: Request) -> Any:
        text = request.prompt[-1].content
        if "Continue the list" in text:
            return Completion(numbered([*tasks, NEW[0], "This one was cut at the li"]), "length")
        return "No" if "Yes or No" in text else "I can't tell."

    found = synthesise(SelfInstruct(name="self_instruct"), FakeEngine(script), round_size=1, idle_rounds=1)
    assert reasons(found) == {
        "cut": 1,
        "too_short": 1,
        "blacklisted": 2,
        "bad_opening": 1,
        "too_similar": 1,
        "unparsable": 1,
    }
    assert found.stopped == "idle"
    assert not len(found.rows)
    assert "ROUGE-L 1.00 with self_instruct-1." in next(x.detail for x in found.losses if x.reason == "too_similar")


def test_contradictions_and_empty_outputs_are_no_rows(synthesise: Synthesise) -> None:
    def script(request: Request) -> str:
        text = request.prompt[-1].content
        if "Continue the list" in text:
            return numbered(NEW[:1])
        if "Yes or No" in text:
            return "No"
        return (
            "Input: a\nOutput: 1\nInput: a\nOutput: 2\nInput: b\nOutput: b\nInput: c\nOutput:\nInput: d\nOutput: see:"
        )

    found = synthesise(SelfInstruct(name="self_instruct"), FakeEngine(script), round_size=1, idle_rounds=1)
    assert {
        name: reasons(found)[name] for name in ("contradiction", "output_is_input", "empty_output", "ends_with_colon")
    } == {
        "contradiction": 2,
        "output_is_input": 1,
        "empty_output": 1,
        "ends_with_colon": 1,
    }


def test_chinese_tasks_are_read_counted_and_compared(synthesise: Synthesise) -> None:
    tasks = ["用三句话介绍一下中秋节的来历", "用三句话介绍一下中秋节的来历吧", "写诗", "请画出一张图片"]

    def script(request: Request) -> str:
        text = request.prompt[-1].content
        if "接着写" in text:
            return "\n".join(f"{place}、{task}" for place, task in enumerate(tasks, 7))
        return "否" if "是”或“否" in text else "输入：无\n输出：中秋节起源于古代的祭月。"

    found = synthesise(
        SelfInstruct(name="self_instruct"), FakeEngine(script), language="zh", round_size=1, idle_rounds=1
    )
    assert texts(found) == [[tasks[0], "中秋节起源于古代的祭月。"]]
    assert reasons(found)["too_short"] == reasons(found)["blacklisted"]
    assert any(loss.reason == "too_similar" and loss.text == tasks[1] for loss in found.losses)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"instruktion": "x"}\n', "no text under 'instruction'"),
        ('{"instruction": "Only one seed here"}\n', "at least 2 are needed"),
        ("not json\n", "not JSON"),
    ],
)
def test_seeds_that_can_not_be_used_are_one_error(content: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=problem) as caught:
        SelfInstruct(name="self_instruct", seeds_file=str(file)).seeds("en")
    assert str(file) in str(caught.value)


# ---- Alpaca ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["labels", "json"])
def test_alpaca_reads_whole_tasks_in_either_form(form: str, synthesise: Synthesise) -> None:
    tasks = [(NEW[0], "", "Gas makes it rise."), (NEW[2], "good morning", "Buenos d\u00edas.")]
    if form == "json":
        records = [{"instruction": a, "input": b, "output": c} for a, b, c in tasks]
        answer = f"Here are the tasks:\n```json\n{json.dumps(records)}\n```\nI hope {{they}} help!"
    else:
        parts = [
            f"{number}. Instruction: {a}\n{number}. Input: {b or '<noinput>'}\n{number}. Output: {c}"
            for number, (a, b, c) in enumerate(tasks, 4)
        ]
        answer = "\n###\n".join(parts).removeprefix("4. Instruction: ")
    found = synthesise(Alpaca(name="alpaca"), FakeEngine(lambda request: answer), round_size=1, idle_rounds=1)
    assert texts(found) == [[NEW[0], "Gas makes it rise."], [NEW[2] + "\n\ngood morning", "Buenos d\u00edas."]]
    assert reasons(found)["too_similar"] > 0, "an engine that always says the same is stopped"


# ---- UltraChat ---------------------------------------------------------------------------------------------------------


def test_ultrachat_plays_both_sides_over_every_sector(synthesise: Synthesise) -> None:
    said = iter(range(10_000))
    words = ["river", "engine", "violin", "harbour", "garden", "planet", "winter", "copper", "market", "letter"]

    def fresh() -> str:
        number = next(said)
        return " ".join(words[(number * 7 + k * k + number // 10) % 10] + str((number * k) % 97) for k in range(9))

    user, writer = FakeEngine(lambda r: fresh()), FakeEngine(lambda r: f"{fresh()} {fresh()}")
    pipeline = UltraChat(name="ultrachat", user=ModelSource(local="u"), max_rounds=3)
    found = synthesise(pipeline, {"writer": writer, "user": user}, rows_wanted=30, round_size=30)
    rows = frame_rows(found.rows)
    assert {one.meta["synth"]["topic"].partition(" / ")[0] for one in rows} == {"world", "writing", "material"}
    for one in rows:
        assert [turn.role for turn in one.messages] == ["user", "assistant"] * one.meta["rounds"]
        assert 2 <= one.meta["rounds"] <= 3
    later = next(request for request in user.requests if len(request.prompt) > 1)
    assert [turn.role for turn in later.prompt] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ("Thank you so much, have a great day!", "polite_closing"),
        ("As an AI I would rather hear from you about it.", "flipped_role"),
        ("Ok.", "user_length"),
        ("Tell me about the oldest bridge in town please", "repeats_itself"),
    ],
)
def test_a_user_out_of_character_ends_the_conversation(turn: str, reason: str, synthesise: Synthesise) -> None:
    opener = "Tell me about the oldest bridge in town please"
    user = FakeEngine(lambda r: opener if len(r.prompt) == 1 else turn)
    writer = FakeEngine(lambda r: "It was built long ago of stone and has three arches.")
    pipeline = UltraChat(name="ultrachat", user=ModelSource(local="u"), sectors=("world",), max_rounds=2)
    found = synthesise(pipeline, {"writer": writer, "user": user}, round_size=1, idle_rounds=1)
    assert reasons(found)[reason] == 1
    assert not len(found.rows)
    kept = synthesise(
        UltraChat(name="ultrachat", user=ModelSource(local="u"), sectors=("world",), min_rounds=1, max_rounds=2),
        {"writer": writer, "user": user},
        seed=2,
        rows_wanted=1,
        round_size=8,
    )
    assert texts(kept)[0][:2] == [opener, "It was built long ago of stone and has three arches."]


# ---- MAGPIE ------------------------------------------------------------------------------------------------------------


def test_magpie_asks_for_the_user_first_and_drops_what_is_cut(synthesise: Synthesise) -> None:
    def script(request: Request) -> Any:
        if request.speaks == "user":
            seed = request.sampling.seed or 0
            return Completion(f'"Question: How many legs has insect number {seed}?"', "length" if seed % 2 else "stop")
        return f"It has {len(request.prompt[-1].content)} legs in all."

    engine = FakeEngine(script)
    found = synthesise(Magpie(name="magpie", turns=2, system_share=1.0), engine, too_similar=0.99, round_size=8)
    rows = frame_rows(found.rows)
    assert rows
    assert reasons(found)["cut"] > 0
    assert all(one.messages[0].content.startswith("How many legs") for one in rows), "label and quotes are gone"
    assert all(one.messages[0].role == "user" for one in rows), "the steering system prompt is not kept"
    assert {request.sampling.temperature for request in engine.requests if request.speaks == "user"} == {
        0.7,
        0.8,
        0.9,
        1.0,
    }


def test_labels_are_read_with_prose_around_them_or_not_at_all(synthesise: Synthesise) -> None:
    assert read_labels('Sure: {"quality": 4, "Difficulty": 2, "category": "math"} as asked') == (
        {"quality": 4.0, "difficulty": 2.0},
        "math",
    )
    assert read_labels("**Quality**: 5\n难度：3\n类别：数学") == ({"quality": 5.0, "difficulty": 3.0}, "数学")
    assert read_labels("quality: 10") == ({}, None), "a 1 is not read out of a 10"
    engine = FakeEngine(
        lambda r: f"How far is star {r.sampling.seed}?" if r.speaks == "user" else "Far away from here."
    )
    labeller = Magpie(name="magpie", labeller=ModelSource(local="x"))
    never = synthesise(labeller, {"writer": engine, "labeller": FakeEngine(lambda r: "no idea")}, too_similar=0.99)
    assert len(never.rows) == 4, "labels that can't be read drop nothing"
    bad = synthesise(
        labeller, {"writer": engine, "labeller": FakeEngine(lambda r: "Quality: 2")}, too_similar=0.99, idle_rounds=1
    )
    assert not len(bad.rows)
    assert set(reasons(bad)) == {"low_quality"}


def test_the_reward_margin_over_a_rival(synthesise: Synthesise) -> None:
    engine = FakeEngine(
        lambda r: f"How far is star {r.sampling.seed}?" if r.speaks == "user" else "Far away from here."
    )
    rival = FakeEngine(lambda r: "Near." if int(r.prompt[-1].content[-2]) % 2 else "I do not know it at all.")
    pipeline = Magpie(
        name="magpie", reward=RewardModel(model="rm"), rival=ModelSource(local="r"), min_reward_margin=0.0
    )

    def rater(questions: Any) -> Any:
        return [[float(len(reply)) for reply in one.replies] for one in questions]

    found = synthesise(pipeline, {"writer": engine, "rival": rival}, too_similar=0.99, rater=rater)
    assert [{one["name"]: one["value"] for one in row} for row in found.rows["scores"].to_list()] == [
        {"reward": 19.0, "reward_margin": 14.0}
    ] * 4
    assert "low_reward_margin" in reasons(found)


# ---- Evol-Instruct -------------------------------------------------------------------------------------------------------


def test_evolution_keeps_the_line_and_eliminates(synthesise: Synthesise) -> None:
    verdicts = iter(["Different", "Equal"])

    def script(request: Request) -> str:
        text = request.prompt[-1].content
        if "Do these two requests" in text:
            return next(verdicts)
        if "Write the new request only" in text or "Write one new request" in text:
            return f"{text.splitlines()[-1]} and add one more detail about it"
        return "A reply of some words."

    pipeline = Evolve(name="evolve", data=Source(path="rows.jsonl"), generations=3, operations=("constrain",))
    found = synthesise(pipeline, FakeEngine(script), [row("Describe a lake in spring")], rows_wanted=9)
    assert texts(found) == [["Describe a lake in spring and add one more detail about it", "A reply of some words."]]
    assert reasons(found) == {"no_information_gained": 1}
    assert found.stopped == "exhausted"
    assert found.rows["parents"][0].to_list() == [row("Describe a lake in spring").id]


@pytest.mark.parametrize(
    ("evolved", "reply", "reason"),
    [
        ("Here is the rewritten prompt: describe a lake at night", "fine words", "prompt_leaked"),
        ("Describe a lake in spring.", "fine words", "no_information_gained"),
        ("Describe a lake in winter with ice and birds", "Sorry, I can't.", "short_apology"),
        ("Describe a lake in winter with ice and birds", "!!! ...", "no_words"),
    ],
)
def test_what_gained_nothing_is_eliminated(evolved: str, reply: str, reason: str, synthesise: Synthesise) -> None:
    pipeline = Evolve(name="evolve", data=Source(path="rows.jsonl"), check_equal=False)
    engine = FakeEngine({"Write (the|one) new request": evolved, ".*": reply})
    found = synthesise(pipeline, engine, [row("Describe a lake in spring")])
    assert reasons(found) == {reason: 1}


# ---- preferences ---------------------------------------------------------------------------------------------------------


def test_pairs_are_best_against_worst_with_ties_and_small_margins_dropped(synthesise: Synthesise) -> None:
    replies = {
        "first": ["a b c", "a b c d e f", "a b c d"],
        "second": ["one two", "two one", "one two"],
        "third": ["a b c d", "a b c d e", "a b c d e"],
    }
    taken: dict[str, int] = {}

    def script(request: Request) -> str:
        name = request.prompt[-1].content
        taken[name] = taken.get(name, -1) + 1
        return replies[name][taken[name]]

    pipeline = Preferences(
        name="preferences", data=Source(path="rows.jsonl"), samples=3, score=ScoredByLength(by="length"), min_margin=2.0
    )
    found = synthesise(pipeline, FakeEngine(script), [row(name) for name in replies], rows_wanted=3)
    assert reasons(found) == {"same_reply": 2, "tie": 1, "small_margin": 1}
    assert found.rows["rejected"][0][0]["content"] == "a b c d e f"
    assert texts(found) == [["first", "a b c"]]
    meta = frame_rows(found.rows)[0].meta
    assert meta["all_scores"] == [-3.0, -6.0, -4.0], "every score is kept"


def test_the_rule_of_mean_minus_two_deviations(synthesise: Synthesise) -> None:
    lengths = [1, 10, 11, 12, 13, 14, 15, 16, 17, 60]
    count = iter(lengths)
    pipeline = Preferences(
        name="preferences",
        data=Source(path="rows.jsonl"),
        samples=10,
        score=ScoredByLength(by="length"),
        rejected="mean_minus_two_deviations",
    )
    found = synthesise(pipeline, FakeEngine(lambda r: " ".join(["w"] * next(count))), [row("x")], rows_wanted=1)
    # mean -16.9, deviation 15.1: -47.2 is the aim; -60 is nearer to it than -17
    assert len(found.rows["rejected"][0][0]["content"].split()) == 60


def test_a_judge_rates_all_replies_together_and_what_it_does_not_say_is_missing(synthesise: Synthesise) -> None:
    def judge(request: Request) -> str:
        text = request.prompt[-1].content
        shown = re.findall(r"<answer (\d+)>\n(\w+)", text)
        if "truthfulness" in text:
            return "I would rather not say."
        rating = {"good": "5", "fair": "3", "bad": "1"}
        if "honesty" in text:
            return "\n".join(f"{number}: N/A" for number, _ in shown)
        return "\n".join(f"{number}: {rating[word]}" for number, word in shown)

    words = iter(["fair", "good", "bad"])
    pipeline = Preferences(
        name="preferences",
        data=Source(path="rows.jsonl"),
        samples=3,
        score=ScoredByJudge(by="judge", judge=ModelSource(local="j")),
    )
    engines = {"writer": FakeEngine(lambda r: next(words)), "judge": FakeEngine(judge)}
    found = synthesise(pipeline, engines, [row("x")], rows_wanted=1)
    assert texts(found) == [["x", "good"]]
    assert found.rows["rejected"][0][0]["content"] == "bad"
    silent = {"writer": FakeEngine(lambda r: f"reply {r.sample}"), "judge": FakeEngine(lambda r: "hm")}
    none = synthesise(pipeline, silent, [row("x")], rows_wanted=1)
    assert reasons(none) == {"not_scored": 3, "one_reply": 1}


@pytest.mark.parametrize("kind", ["feedback", "candidates"])
def test_judged_replies_and_candidates(kind: Any, synthesise: Synthesise, tmp_path: Path) -> None:
    from posttrain.data.rows import write_rows

    replies = iter(["one two three four", "one two", "one two three"])
    checks = ScoredByChecks(
        by="checks", checks=(Check(kind="max_words", expected=2), Check(kind="min_words", expected=1))
    )
    pipeline = Preferences(
        name="preferences", data=Source(path="rows.jsonl"), samples=3, score=checks, rows=kind, suffix="Be brief."
    )
    found = synthesise(pipeline, FakeEngine(lambda r: next(replies)), [row("x")], rows_wanted=9)
    write_rows(tmp_path / "rows.parquet", found.rows)
    rows = read_any(tmp_path / "rows.parquet")
    assert all(one.messages[0].content == "x\nBe brief." for one in rows)
    if kind == "feedback":
        assert [one.desirable for one in rows] == [True, False]  # type: ignore[union-attr]
        assert rows[0].messages[-1].content == "one two"
    else:
        scores = [entry["value"] for scores in found.rows["scores"].to_list() for entry in scores]
        assert scores == [0.5, 1.0, 0.5]


def test_failed_requests_have_their_reason(synthesise: Synthesise) -> None:
    engine = FakeEngine(lambda r: Failure("timeout", "no answer in time"))
    found = synthesise(Alpaca(name="alpaca"), engine, idle_rounds=2, round_size=1)
    assert reasons(found) == {"failed_timeout": 2}
    assert found.spent.requests == 2
