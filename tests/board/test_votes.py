"""Blind comparisons as files: the draw, the one vote, and what arena reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from posttrain.board.votes import Side, Vote, cast, draw_duel, keep_reply, model_of, named_maker, votes_file
from posttrain.errors import PosttrainError, RunError
from posttrain.judge.votes import read_comparisons

A = {"name": "first/sft", "target": "x", "base": "HuggingFaceTB/SmolLM2-135M-Instruct", "digest": "d1"}
B = {"name": "second/dpo", "target": "y", "base": "/models/tiny"}
ASKED = {"messages": [{"role": "user", "content": "Hi <b>"}], "sampling": {"seed": 3}}


def duel_of(runs: Path, left: str = "Hello", right: str = "Ho", seed: int | None = None) -> str:
    duel = draw_duel(runs, [A, B], seed)
    keep_reply(runs, duel, "left", ASKED, left)
    keep_reply(runs, duel, "right", ASKED, right)
    return duel


def kept(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in votes_file(runs).read_text("utf-8").splitlines()]


def test_sides_are_drawn_by_lot(runs: Path) -> None:
    lefts = Counter(model_of(runs, draw_duel(runs, [A, B], seed), "left")["name"] for seed in range(200))
    assert lefts["first/sft"] + lefts["second/dpo"] == 200
    assert 60 < lefts["first/sft"] < 140
    again = {model_of(runs, draw_duel(runs, models, 7), "left")["name"] for models in ([A, B], [B, A])}
    assert len(again) == 1  # the seed decides, not the order in which they were chosen
    with pytest.raises(RunError, match="two models"):
        draw_duel(runs, [A, A])


@pytest.mark.parametrize(
    ("vote", "winner"), [("left", "model_a"), ("right", "model_b"), ("tie", "tie"), ("both_bad", "both_bad")]
)
def test_a_vote_is_a_line_that_arena_reads(vote: Vote, winner: str, runs: Path) -> None:
    duel = duel_of(runs)
    left = model_of(runs, duel, "left")["name"]
    line = cast(runs, duel, vote)
    assert kept(runs) == [line]
    assert (line["model_a"], line["winner"], line["vote"], line["void"]) == (left, winner, vote, None)
    assert {line["model_a"], line["model_b"]} == {"first/sft", "second/dpo"}
    assert (line["prompt"], line["reply_a"], line["reply_b"], line["left"]) == ("Hi <b>", "Hello", "Ho", "model_a")
    assert line["sampling_a"] == {"seed": 3}
    assert line["seconds"] >= 0
    found = read_comparisons(votes_file(runs))
    assert found.outcomes_N.tolist() == [{"model_a": 1.0, "model_b": 0.0}.get(winner, 0.5)]


def test_there_is_one_vote_for_a_comparison(runs: Path) -> None:
    duel = duel_of(runs)

    with ThreadPoolExecutor(8) as threads:
        tried = [threads.submit(cast, runs, duel, vote) for vote in ("left", "right") * 8]
    refused = [str(found.exception()) for found in tried if found.exception() is not None]
    assert len(refused) == 15
    assert all("there has been a vote" in words for words in refused)
    assert len(kept(runs)) == 1
    keep_reply(runs, duel, "left", ASKED, "too late")
    assert not list((runs / ".votes" / "open").iterdir())


def test_the_last_replies_count(runs: Path) -> None:
    duel = duel_of(runs)
    more = {
        "messages": [*ASKED["messages"], {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "More"}]
    }
    for side in ("left", "right"):
        keep_reply(runs, duel, side, more, f"second of {side}")  # type: ignore[arg-type]
    line = cast(runs, duel, "tie")
    assert (line["prompt"], line["reply_a"], len(line["messages_b"])) == ("More", "second of left", 3)


def test_votes_that_can_not_be(runs: Path) -> None:
    duel = draw_duel(runs, [A, B])
    keep_reply(runs, duel, "left", ASKED, "Hello")
    with pytest.raises(RunError, match="both have to say something"):
        cast(runs, duel, "left")
    with pytest.raises(RunError, match="no vote 'better'"):
        cast(runs, duel, "better")  # type: ignore[arg-type]
    for name in ("", "..", "../votes", "0" * 24):
        with pytest.raises(RunError, match="never was"):
            cast(runs, name, "left")
    (runs / ".votes" / "open" / f"{duel}.jsonl").write_text("{damaged\n")
    with pytest.raises(RunError, match="can't be read"):
        cast(runs, duel, "left")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_vote_whose_reply_names_its_maker_is_void(side: Side, runs: Path) -> None:
    says = {"left": "Hello", "right": "Ho"} | {side: "I am a model trained by Hugging Face."}
    line = cast(runs, duel_of(runs, says["left"], says["right"]), "left")
    assert (line["winner"], line["vote"]) == (None, "left")
    assert line["void"] == f"the {side} reply names 'Hugging Face'"
    cast(runs, duel_of(runs), "tie")
    found = read_comparisons(votes_file(runs))
    assert (len(found), found.missing) == (1, 1)


def test_an_earlier_reply_that_names_it_makes_the_vote_void_too(runs: Path) -> None:
    duel = duel_of(runs, "My name is Qwen.")
    for side in ("left", "right"):
        keep_reply(runs, duel, side, ASKED, "later")  # type: ignore[arg-type]
    assert cast(runs, duel, "left")["void"]


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("I am ChatGPT, a helpful assistant.", "ChatGPT"),
        ("As an AI language model created by OpenAI, I can't.", "OpenAI"),
        ("I'm Claude 3.", "Claude"),
        ("我是由阿里云开发的通义千问。", "通义"),
        ("smollm2 is what I am", "SmolLM"),
        ("Google was founded in 1998.", None),
        ("Llamas are kept by Claude's family.", None),
        ("I am happy. " + "x" * 100 + " Gemini is a constellation.", None),
        ("", None),
    ],
)
def test_who_gives_itself_away(reply: str, named: str | None) -> None:
    assert named_maker(reply, ["SmolLM"]) == named


def test_lone_halves_of_characters_do_not_break_the_file(runs: Path) -> None:
    cast(runs, duel_of(runs, "half \ud83d"), "left")
    assert kept(runs)[0]["winner"]


def test_a_kill_in_the_middle_of_a_vote_costs_no_other(runs: Path) -> None:
    cast(runs, duel_of(runs), "left")
    with votes_file(runs).open("a") as file:
        file.write('{"id": "half')
    duel = duel_of(runs)
    opened = votes_file(runs).parent / "open" / f"{duel}.jsonl"
    said = opened.read_bytes()
    cast(runs, duel, "right")
    lines = votes_file(runs).read_text().splitlines()
    assert [line for line in lines if '"winner": "model_b"' in line] == lines[2:]
    opened.write_bytes(said)  # killed before the comparison was closed
    with pytest.raises(PosttrainError, match="there has been a vote"):
        cast(runs, duel, "tie")
    assert votes_file(runs).read_text().splitlines() == lines
    assert not opened.exists()


@pytest.mark.demo_model
def test_arena_reads_the_file_as_it_is(runs: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    for seed in range(12):
        cast(runs, duel_of(runs, seed=seed), ("left", "right", "tie", "both_bad")[seed % 4])  # type: ignore[arg-type]
    done = cli("arena", votes_file(runs), "-o", tmp_path / "rated", "--json")
    assert done.code == 0, done.err
    assert "first/sft" in done.out


def test_a_folder_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(PosttrainError, match="can't be kept here"):
        draw_duel(tmp_path / "runs", [A, B])
