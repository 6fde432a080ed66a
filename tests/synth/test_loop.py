"""What the loop promises whatever the pipeline: an account of every answer, a budget that is kept, the same rows again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.data.config import Source
from posttrain.errors import ConfigError
from posttrain.generate.engine import Failure, Request
from posttrain.generate.fake import FakeEngine, Scripted
from posttrain.synth.alpaca import Alpaca
from posttrain.synth.preferences import Preferences, ScoredByLength
from posttrain.synth.prompts import load_prompts
from posttrain.synth.self_instruct import SelfInstruct

from .conftest import Synthesise, ids, reasons, row, texts

WORDS = [
    "river",
    "engine",
    "violin",
    "harbour",
    "garden",
    "planet",
    "winter",
    "copper",
    "market",
    "letter",
    "bridge",
    "candle",
]


def tasks(request: Request) -> str:
    """Eight tasks that share little, then answers."""
    text = request.prompt[-1].content
    if "Continue the list" not in text:
        return "An answer in a few words."
    seed = request.sampling.seed or 0
    drawn = [[WORDS[(seed // 7**k + 5 * k + line * (k + 3)) % 12] for k in range(9)] for line in range(8)]
    return "\n".join(
        f"{place}. Explain {' '.join(f'{w}{line}' for w in words)}"
        for place, (line, words) in enumerate(enumerate(drawn), 9)
    )


ANSWERED = SelfInstruct(name="self_instruct", outputs="answered")


def test_equal_seeds_make_equal_rows_and_every_thread_is_accounted_for(synthesise: Synthesise) -> None:
    first, again = (synthesise(ANSWERED, FakeEngine(tasks), rows_wanted=20, round_size=4) for _ in range(2))
    assert ids(first) == ids(again)
    other = synthesise(ANSWERED, FakeEngine(tasks), rows_wanted=20, round_size=4, seed=1)
    assert ids(other) != ids(first)
    first.ledger.check()
    assert len(first.losses) == sum(first.ledger.dropped.values())
    assert first.ledger.rows_kept == len(first.rows) == 20


def test_a_round_is_no_larger_than_the_rows_and_the_budget_need(synthesise: Synthesise) -> None:
    engine = FakeEngine(tasks)
    found = synthesise(ANSWERED, engine, rows_wanted=8, round_size=64)
    assert found.history[0].threads == 1, "one list has the eight tasks that are wanted"
    engine = FakeEngine(tasks)
    found = synthesise(ANSWERED, engine, rows_wanted=200, round_size=64, requests=30)
    assert len(engine.requests) <= 30
    assert len(found.rows) >= 16, "what is begun can be paid to its end"
    assert found.stopped == "budget"


def test_what_was_said_before_the_budget_ended_is_not_lost(synthesise: Synthesise) -> None:
    found = synthesise(ANSWERED, FakeEngine(tasks), rows_wanted=8, round_size=1, requests=5)
    lost = [loss for loss in found.losses if loss.reason == "budget"]
    assert len(found.rows) + len(found.losses) == 8
    assert lost
    assert all(loss.text.startswith("Explain") for loss in lost)


def test_an_engine_that_reaches_its_cap_ends_the_job(synthesise: Synthesise) -> None:
    engine = FakeEngine(lambda r: Failure("budget", "the next call could go over the cap"))
    found = synthesise(Alpaca(name="alpaca"), engine, round_size=1)
    assert (found.stopped, found.spent.requests, reasons(found)) == ("budget", 0, {"budget": 1})


def test_half_a_character_costs_its_answer_alone(synthesise: Synthesise) -> None:
    def script(request: Request) -> Scripted:
        return "half \ud83d of it" if request.sample == 1 else " ".join(["word"] * (request.sample + 1))

    pipeline = Preferences(name="preferences", data=Source(path="r"), samples=3, score=ScoredByLength(by="length"))
    found = synthesise(pipeline, FakeEngine(script), [row("x")], rows_wanted=1)
    assert reasons(found) == {"invalid_unicode": 1}
    assert texts(found) == [["x", "word"]]


def test_a_reply_that_failed_does_not_take_its_siblings_along(synthesise: Synthesise) -> None:
    def script(request: Request) -> Scripted:
        return Failure("timeout", "late") if request.sample == 0 else " ".join(["w"] * request.sample)

    pipeline = Preferences(name="preferences", data=Source(path="r"), samples=3, score=ScoredByLength(by="length"))
    found = synthesise(pipeline, FakeEngine(script), [row("x")], rows_wanted=1)
    assert reasons(found) == {"failed_timeout": 1}
    assert texts(found) == [["x", "w"]]


def test_judged_replies_to_a_prompt_stay_together(synthesise: Synthesise) -> None:
    pipeline = Preferences(
        name="preferences", data=Source(path="r"), samples=2, score=ScoredByLength(by="length"), rows="feedback"
    )
    engine = FakeEngine(lambda r: " ".join(["w"] * (r.sample + 1)))
    found = synthesise(pipeline, engine, [row(f"x{k}") for k in range(4)], rows_wanted=3)
    assert found.rows["desirable"].to_list() == [True, False]
    assert reasons(found) == {"not_wanted": 2}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("self_instruct: hello\n", "prompts by name"),
        ("selfinstruct:\n", "unknown pipeline"),
        ("self_instruct: {propose: 5}\n", "a text is wanted"),
        ("self_instruct: {propose: ''}\n", "a text is wanted"),
        ("self_instruct: {propose: 'go on'}\n", "has no place {{tasks}}"),
        ("self_instruct: {propose: '{{tasks}} {{taks}}'}\n", "unknown place {{taks}}"),
        ("self_instruct: {blacklist: [null, 3]}\n", "a list of texts"),
        ("self_instruct: {propos: x}\n", "did you mean"),
        ("[]\n", "prompts by name"),
    ],
)
def test_a_prompt_file_with_a_mistake_is_one_error(content: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        load_prompts("en", str(file))
    assert str(file) in str(caught.value)
    (tmp_path / "good.yaml").write_text("self_instruct: {propose: 'Mine: {{tasks}}'}\n")
    prompts = load_prompts("en", str(tmp_path / "good.yaml"))
    assert prompts.fill("self_instruct.propose", tasks="1. x", count="1", first="2", last="2") == "Mine: 1. x"
