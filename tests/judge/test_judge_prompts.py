"""Prompts: what a judge sees, in both languages, and files of one's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import ConfigError
from posttrain.generate.engine import Completion, Failure, TokenLogprob
from posttrain.judge.config import JudgePrompt
from posttrain.judge.items import Item
from posttrain.judge.parsers import PARSERS
from posttrain.judge.prompts import KINDS, LANGUAGES, check_fits, fill, load_prompt, messages_text
from posttrain.judge.verdicts import Missing

OWN = [(kind, task, language) for task, kinds in KINDS.items() for kind in kinds for language in LANGUAGES]
ITEM = Item("q", ("Q-one", "Q-two"), ("A-one", "A-two"), ("B-one", "B-two"), references=("R-one", "R-two"))


def text_of(prompt, turn, *, item=ITEM, swapped=False, reference=False, emphasis=False):
    return messages_text(
        prompt, item, turn, swapped=swapped, reference=reference, emphasis=emphasis, criteria="CRITERIA"
    )


@pytest.mark.parametrize(("kind", "task", "language"), OWN)
def test_every_own_prompt_shows_what_it_must(kind, task, language):
    prompt = load_prompt(kind, task, language)
    for turn, word in ((1, "one"), (2, "two")):
        system, user = text_of(prompt, turn)
        assert system
        assert "{{" not in system + user
        assert f"Q-{word}" in user
        assert f"A-{word}" in user
        assert (f"B-{word}" in user) == (task == "pair")
        assert "R-" not in user
        assert ("CRITERIA" in user) == (kind == "rubric")
        assert (f"R-{word}" in text_of(prompt, turn, reference=True)[1]) == (task != "label")
        assert str(prompt.emphasis).strip() in text_of(prompt, turn, emphasis=True)[1]
        assert str(prompt.emphasis).strip() not in user
    # the first turn is context of the second, and nothing of the second is told in the first
    assert "A-one" in text_of(prompt, 2)[1]
    assert "-two" not in text_of(prompt, 1, reference=True)[1]


@pytest.mark.parametrize(("kind", "task", "language"), [own for own in OWN if own[1] == "pair"])
def test_swapped_shows_b_first(kind, task, language):
    prompt = load_prompt(kind, task, language)
    for turn, word in ((1, "one"), (2, "two")):
        for swapped in (False, True):
            user = text_of(prompt, turn, swapped=swapped)[1]
            assert (user.index(f"A-{word}") > user.index(f"B-{word}")) == swapped
    other = Item("q", ITEM.turns, ITEM.replies_b, ITEM.replies_a, references=ITEM.references)
    assert text_of(prompt, 2, swapped=True) == text_of(prompt, 2, item=other)


@pytest.mark.parametrize(("kind", "task", "language"), OWN)
def test_an_echo_of_the_prompt_is_no_verdict(kind, task, language):
    prompt = load_prompt(kind, task, language)
    for turn in (1, 2):
        echo = Completion("\n".join(text_of(prompt, turn)), "stop")
        assert isinstance(PARSERS[prompt.parser].read(echo, prompt).value, Missing)


@pytest.mark.parametrize(("kind", "task", "language"), OWN)
def test_nothing_of_a_later_turn_is_shown(kind, task, language):
    item = Item("q", ("Q1", "Q2", "LATER"), ("a1", "a2", "LATER"), ("b1", "b2", "LATER"))
    assert "LATER" not in text_of(load_prompt(kind, task, language), 2, item=item)[1]


@given(st.text(alphabet="{}ab _\n"), st.text(alphabet="{}ab _\n"))
def test_values_are_not_looked_into(a, b):
    assert fill("<{{a}}|{{ b }}>", {"a": a, "b": b}) == f"<{a}|{b}>"


def test_a_reply_can_not_smuggle_in_a_place():
    prompt = load_prompt("pair", "pair")
    item = Item("q", ("Q",), ("{{reply_b}} {{criteria}}",), ("other",))
    assert "{{reply_b}} {{criteria}}" in text_of(prompt, 1, item=item)[1]


def file_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_judge_of_a_file(tmp_path):
    path = file_of(
        tmp_path, "task: pair\nparser: pair_scores\nprompt: |\n  {{question}}\n  1: {{reply_a}}\n  2: {{reply_b}}\n"
    )
    prompt = load_prompt(path, "pair")
    assert text_of(prompt, 1) == ("", "Q-one\n1: A-one\n2: B-one")
    assert PARSERS[prompt.parser].read(Completion("[[3, 8]]"), prompt).value == "second"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task: single\nparser: rating\nprompt: '{{reply}}'", "this judge is for single, pair is asked for"),
        ("task: pair\nparser: pair_leter\nprompt: '{{reply_a}}{{reply_b}}'", "did you mean 'pair_letter'"),
        ("task: pair\nparser: rating\nprompt: '{{reply_a}}{{reply_b}}'", "rating reads a single reply"),
        ("task: pair\nparser: pair_letter\nprompt: '{{reply_a}}{{replyb}}'", "unknown place {{replyb}}"),
        ("task: pair\nparser: pair_letter\nprompt: '{{reply_a}}'", "the replies are not shown"),
        ("task: pair\nparser: pair_letter\npromt: x", "did you mean 'prompt'?"),
        (
            "task: pair\nparser: pair_letter\nprompt: '{{reply_a}}{{reply_b}}'\nreference: '{{x}}'",
            "unknown place {{x}}",
        ),
        ("task: pair\nparser: pair_letter\nprompt: '{{reply_a}}{{reply_b}}'\nhighest: 1", "must be above lowest"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, text, told):
    path = file_of(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_prompt(path, "pair")
    assert path in str(error.value)
    assert told in str(error.value)


def test_an_unknown_kind_is_told():
    with pytest.raises(ConfigError, match="did you mean 'binary'"):
        load_prompt("binry", "pair")


def test_what_a_prompt_has_no_place_for_is_refused():
    one_turn = JudgePrompt(task="pair", parser="pair_letter", prompt="{{reply_a}}{{reply_b}}")
    with pytest.raises(ConfigError, match="shows one turn only"):
        check_fits(one_turn, later_turns=True, emphasis=False, criteria="")
    with pytest.raises(ConfigError, match="no emphasised variant"):
        check_fits(one_turn, later_turns=False, emphasis=True, criteria="")
    with pytest.raises(ConfigError, match="no place for criteria"):
        check_fits(one_turn, later_turns=False, emphasis=False, criteria="be brief")
    with pytest.raises(ConfigError, match="needs criteria"):
        check_fits(load_prompt("rubric", "single"), later_turns=False, emphasis=False, criteria=" ")
    check_fits(load_prompt("pair", "pair"), later_turns=True, emphasis=True, criteria="")


# ---- parsers -------------------------------------------------------------------------------------------------------


def token(top):
    likely = tuple((name, math.log(p)) for name, p in top)
    return Completion(likely[0][0], "length", logprobs=(TokenLogprob(*likely[0], likely),))


@pytest.mark.parametrize(
    ("top", "value", "to_second"),
    [
        ([("m", 0.6), ("M", 0.2)], "first", 0.25),
        ([("M", 0.9), ("m", 0.1)], "second", 0.9),
        ([("m", 0.4), ("M", 0.4)], "tie", 0.5),
        ([(" M", 0.5), ("x", 0.3)], "second", 1.0),
    ],
)
def test_a_weighted_verdict_by_hand(top, value, to_second):
    read = PARSERS["pair_logprob"].read(token(top), load_prompt("binary", "pair"))
    assert read.value == value
    assert read.to_second == pytest.approx(to_second)


def test_a_weighted_verdict_that_is_none():
    prompt = load_prompt("binary", "pair")

    def reason(outcome):
        value = PARSERS["pair_logprob"].read(outcome, prompt).value
        assert isinstance(value, Missing)
        return value.reason, value.detail

    assert reason(token([("Model", 0.9)])) == ("parse", "neither m nor M among ['Model']")
    assert reason(Completion("m", "length"))[1] == "the judge gave no log-probabilities"
    assert reason(Failure("timeout", "slow")) == ("transport", "timeout: slow")
    assert reason(Completion("", "content_filter"))[0] == "refused"


def test_a_rating_is_read_on_the_scale_of_the_prompt():
    rubric = load_prompt("rubric", "single")
    assert PARSERS[rubric.parser].read(Completion("So: [[5]]"), rubric).value == 5
    off = PARSERS[rubric.parser].read(Completion("So: [[8]]"), rubric).value
    assert isinstance(off, Missing)
    assert off.reason == "out_of_range"
    single = load_prompt("single", "single")
    assert PARSERS[single.parser].read(Completion("So: [[8]]"), single).value == 8


@pytest.mark.parametrize("name", list(PARSERS))
def test_no_parser_makes_a_verdict_of_a_failed_call_or_of_prose(name):
    prompt = JudgePrompt(task=PARSERS[name].task, parser=name, prompt="-")
    for outcome in (
        Failure("server_error", "[[A]] [[7]] [[8, 6]] [[A>>B]]"),
        Completion("It depends."),
        Completion(""),
    ):
        assert isinstance(PARSERS[name].read(outcome, prompt).value, Missing)
