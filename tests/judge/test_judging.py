"""Judging: what is asked, what becomes of it, votes, and the trial of a judge of one's own."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import ConfigError
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.engine import Completion, Failure, TokenLogprob, Usage
from posttrain.generate.fake import FakeEngine
from posttrain.judge.config import JudgePrompt, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import (
    Ask,
    Judgment,
    asks_of,
    judge,
    judgment_record,
    outcome_of,
    outcomes,
    panel_outcomes,
    prepared,
    prompt_digest,
    sampling_of,
    try_out,
)
from posttrain.judge.prompts import load_prompt
from posttrain.judge.summary import model_ratings, panel_ratings
from posttrain.judge.verdicts import Missing
from posttrain.judge.win_rates import PairOutcome, win_rates
from posttrain.stats.intervals import wilson
from servers import stored_keys

PAIR = load_prompt("pair", "pair")
TWO_TURNS = Item("q", ("Q1", "Q2"), ("a1", "a2"), ("b1", "b2"))


def judgments_of(*verdicts):
    """Judgments of one question: (order, verdict), samples numbered."""
    counts: dict[str, int] = {}
    found = []
    for order, verdict in verdicts:
        sample = counts.get(order, 0)
        counts[order] = sample + 1
        found.append(Judgment(Ask(0, 1, order, sample, False), verdict))
    return found


def test_everything_is_asked_in_order(items):
    asks = asks_of([TWO_TURNS], Plan(samples=2, emphasis="both"), "pair")
    assert len(asks) == len(set(asks)) == 2 * 2 * 2 * 2
    assert asks[:4] == [
        Ask(0, 1, "original", 0, False),
        Ask(0, 1, "original", 1, False),
        Ask(0, 1, "swapped", 0, False),
        Ask(0, 1, "swapped", 1, False),
    ]
    assert [ask.turn for ask in asks_of([TWO_TURNS], Plan(turns="last", orders="swapped"), "pair")] == [2]
    assert asks_of(items[:1], Plan(), "single") == [Ask(0, 1, "none", 0, False)]


def test_requests_differ_where_asks_differ(items):
    asks, requests = zip(*prepared([*items, TWO_TURNS], PAIR, Plan(samples=2, emphasis="both")), strict=True)
    assert len(requests) == len(asks) == len({(str(r.prompt), r.sample) for r in requests})


def test_references_are_shown_where_they_are_needed():
    def shown(category, reference="needed"):
        item = Item("q", ("Q",), ("a",), ("b",), category=category, references=("R-42",))
        (_, request), *_ = prepared([item], PAIR, Plan(reference=reference))
        return "R-42" in request.prompt[-1].content

    assert [shown(c) for c in ("math", "reasoning", "coding", "zh_math", None)] == [True] * 5
    assert not shown("writing")
    assert shown("writing", "always")
    assert not shown("math", "never")


def test_sampling_fits_the_plan():
    assert sampling_of(PAIR, Plan()).temperature == 0
    assert sampling_of(PAIR, Plan(samples=3)).temperature == 1
    assert sampling_of(PAIR, Plan(samples=3, temperature=0.5, max_tokens=7)).max_tokens == 7
    binary = sampling_of(load_prompt("binary", "pair"), Plan())
    assert (binary.max_tokens, binary.logprobs) == (1, 5)
    for prompt, plan in ((PAIR, Plan(samples=3, temperature=0.0)), (load_prompt("binary", "pair"), Plan(samples=3))):
        with pytest.raises(ConfigError, match="3 samples"):
            sampling_of(prompt, plan)


@pytest.mark.parametrize(
    ("judgments", "outcome"),
    [
        ([("original", "first"), ("swapped", "second")], "first"),
        ([("original", "second"), ("swapped", "first")], "second"),
        ([("original", "first"), ("swapped", "first")], "tie"),
        ([("original", "first"), ("swapped", "tie")], "tie"),
        ([("swapped", "first")], "second"),
        ([("none", "first")], "first"),
        # two of three samples decide an order; one to one is a tie
        ([("original", v) for v in ("first", "second", "first")] + [("swapped", "second")], "first"),
        ([("original", "first"), ("original", "second"), ("swapped", "tie")], "tie"),
        # a sample without a verdict does not vote
        ([("original", "first"), ("original", Missing("parse")), ("swapped", "second")], "first"),
    ],
)
def test_outcomes_by_hand(judgments, outcome):
    assert outcome_of(judgments_of(*judgments)) == outcome


def test_an_order_without_a_verdict_leaves_no_outcome():
    found = outcome_of(judgments_of(("original", "first"), ("swapped", Missing("length"))))
    assert isinstance(found, Missing)
    assert found.reason == "length"


def test_a_panel_votes():
    lost = Missing("parse")
    votes = [
        {(0, 1): "first", (1, 1): "first", (2, 1): lost, (3, 1): lost},
        {(0, 1): "first", (1, 1): "second", (2, 1): "second", (3, 1): lost},
        {(0, 1): "second", (1, 1): "tie", (2, 1): lost, (3, 1): lost},
    ]
    found = panel_outcomes(votes)
    assert [found[q] for q in list(found)[:3]] == ["first", "tie", "second"]
    assert isinstance(found[3, 1], Missing)


def win_rates_of(outcomes, clusters):
    """Win rates of one pair of models."""
    (found,) = win_rates([PairOutcome("a", "b", said, name) for said, name in zip(outcomes, clusters, strict=True)])
    return found


def test_two_models_are_one_pair_whichever_stands_first():
    one, other = win_rates(
        [PairOutcome("a", "b", "first", 1), PairOutcome("b", "a", "first", 2), PairOutcome("a", "c", "tie", 1)]
    )
    assert (one.model_a, one.model_b, one.wins, one.losses) == ("a", "b", 1, 1)
    assert (other.model_b, other.ties) == ("c", 1)


def test_win_rates_by_hand():
    found = win_rates_of(["first", "first", "tie", "second", Missing("parse")], "abcde")
    assert (found.wins, found.losses, found.ties, found.missing) == (2, 1, 1, 1)
    assert found.win_rate.estimate == 0.5
    assert found.adjusted.estimate == 0.625
    assert found.p_value == 1.0
    assert win_rates_of(["first"] * 6, range(6)).p_value == 2 / 2**6
    nothing = win_rates_of([Missing("parse")], "a")
    assert nothing.win_rate is None
    assert nothing.p_value == 1.0


def test_win_rates_resample_questions_not_turns():
    """Four turns of one question are one draw: the interval has no width, whatever they say."""
    one = win_rates_of(["first", "second", "first", "tie"], ["q"] * 4)
    assert one.win_rate.low == one.win_rate.high == 0.5
    several = win_rates_of(["first", "second", "first", "tie"], "abcd")
    assert several.win_rate.low < 0.5 < several.win_rate.high


def test_single_ratings_by_hand():
    items = [
        Item("q1", ("Q",), ("five",), category="math", model_a="sft"),
        Item("q2", ("Q",), ("nine",), category="writing", model_a="sft"),
        Item("q3", ("Q",), ("mute",), category="writing", model_a="sft"),
        Item("q1", ("Q",), ("nine",), category="math", model_a="dpo"),
    ]
    engine = FakeEngine({"five": "[[5]]", "nine": "[[9]]", "mute": "no rating"})
    judgments = judge(engine, items, load_prompt("single", "single"), Plan())
    found = model_ratings(items, judgments)
    assert list(found) == ["sft", "dpo"]
    assert found["sft"].overall.mean.estimate == 7
    assert found["sft"].overall.calls.missing == {"parse": 1}
    assert found["sft"].by_category["writing"].mean.estimate == 9
    assert found["sft"].by_category["writing"].calls.asked == 2
    assert found["dpo"].overall.mean.estimate == 9
    other = [Judgment(judgment.ask, 6.0) for judgment in judgments]
    panel = model_ratings(items, panel_ratings([judgments, other]))
    assert panel["sft"].overall.mean.estimate == pytest.approx((5.5 + 7.5 + 6) / 3)


def test_a_judge_that_can_not_be_read_is_found_on_three_calls(items, judges):
    engine = FakeEngine(judges["prose"])
    with pytest.raises(ConfigError, match="none of 3 trial replies") as error:
        try_out(engine, items, PAIR, Plan(), "mine.yaml")
    assert len(engine.requests) == 3
    assert "each in its own way" in str(error.value)
    assert str(error.value).startswith("mine.yaml: ")


def test_one_readable_trial_reply_is_enough_and_a_dead_server_is_no_fault_of_the_prompt(items, judges):
    try_out(FakeEngine(["prose", "prose", "[[A]]"]), items, PAIR, Plan(), "mine.yaml")
    with pytest.raises(ConfigError, match="answered none of 3 trial calls"):
        try_out(FakeEngine(lambda request: Failure("timeout", "slow")), items, PAIR, Plan(), "mine.yaml")


def test_records_hold_reply_verdict_and_reason(items):
    engine = FakeEngine(
        [
            Completion("Well. [[A]]", usage=Usage(7, 3)),
            Completion("cut", "length"),
            Failure("rate_limited", "later", attempts=4),
        ]
    )
    judgments = judge(engine, items[:1], PAIR, Plan(orders="original", samples=3, retry_cut=1))
    good, cut, failed = (json.loads(json.dumps(judgment_record(judgment, items, "j"))) for judgment in judgments)
    assert good["verdict"] == "first"
    assert good["reply"] == "Well. [[A]]"
    assert good["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert (good["item"], good["line"], good["sample"], good["missing"]) == ("one", 1, 0, None)
    assert (cut["verdict"], cut["missing"], cut["finish"]) == (None, "length", "length")
    assert (failed["missing"], failed["failure"], failed["attempts"]) == ("transport", "rate_limited", 4)
    assert "reply" not in failed


def test_the_digest_tells_prompts_apart():
    other = JudgePrompt(task="pair", parser="pair_letter", prompt="{{reply_a}}{{reply_b}}")
    digests = {
        prompt_digest(prompt, plan)
        for prompt in (PAIR, other, load_prompt("pair", "pair", "zh"))
        for plan in (Plan(), Plan(criteria="brief"), Plan(reference="never"))
    }
    assert len(digests) == 9
    assert prompt_digest(PAIR, Plan()) == prompt_digest(load_prompt("pair", "pair"), Plan(samples=3))


def test_outcomes_keep_turns_apart():
    judgments = [Judgment(Ask(0, turn, "none", 0, False), v) for turn, v in ((1, "first"), (2, "second"))]
    assert outcomes(judgments) == {(0, 1): "first", (0, 2): "second"}
    with pytest.raises(TypeError, match="rating"):
        outcomes([Judgment(Ask(0, 1, "none", 0, False), 7.0)])


# ---- replies that are cut off --------------------------------------------------------------------------------------

CUT = Completion("Both are good, but the", "length", usage=Usage(9, 16))


def cut_below(limit):
    """A judge that needs this many tokens."""
    return lambda request: CUT if request.sampling.max_tokens < limit else "So:\n[[A]]"


def test_a_reply_that_is_cut_is_asked_for_once_more_with_more_tokens(items):
    def script(request):
        long = "1+1?" in request.prompt[-1].content
        return cut_below(64)(request) if long else "[[A]]"

    engine = FakeEngine(script)
    judgments = judge(engine, items, PAIR, Plan(max_tokens=16))
    assert [judgment.value for judgment in judgments] == ["first"] * 8
    assert [judgment.asked_again for judgment in judgments] == [True, True] + [False] * 6
    assert [request.sampling.max_tokens for request in engine.requests] == [16] * 8 + [64] * 2
    # nothing else of the question has changed
    for first, second in zip(engine.requests[:2], engine.requests[8:], strict=True):
        assert first.prompt == second.prompt
    record = judgment_record(judgments[0], items, "j")
    assert (record["asked_again"], record["finish"], record["reply"]) == (True, "stop", "So:\n[[A]]")
    assert "asked_again" not in judgment_record(judgments[2], items, "j")


def test_what_is_cut_again_stays_missing(items):
    engine = FakeEngine(cut_below(65))
    (judgment,) = judge(engine, items[:1], PAIR, Plan(max_tokens=16, orders="original"))
    assert isinstance(judgment.value, Missing)
    assert judgment.value.reason == "length"
    assert judgment.asked_again
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("plan", "limits"),
    [
        (Plan(max_tokens=16, retry_cut=1, orders="original"), [16]),
        (Plan(max_tokens=16, retry_cut=2, orders="original"), [16, 32]),
        (Plan(max_tokens=30_000, orders="original"), [30_000, 32_768]),
        (Plan(max_tokens=40_000, orders="original"), [40_000]),
    ],
)
def test_how_many_more_tokens(items, plan, limits):
    engine = FakeEngine(cut_below(10**6))
    judge(engine, items[:1], PAIR, plan)
    assert [request.sampling.max_tokens for request in engine.requests] == limits


def test_a_second_call_that_fails_leaves_the_first_reply(items):
    engine = FakeEngine([CUT, Failure("invalid_request", "longer than the context")])
    (judgment,) = judge(engine, items[:1], PAIR, Plan(max_tokens=16, orders="original"))
    assert isinstance(judgment.value, Missing)
    assert judgment.value.reason == "length"
    assert "asked again with 64 tokens: invalid_request: longer than the context" in judgment.value.detail
    assert judgment.outcome == CUT


def test_only_replies_that_hit_the_limit_are_asked_for_again(items):
    endless = FakeEngine([Completion("<think>thinking that the server cut without saying so", "stop")])
    (judgment,) = judge(endless, items[:1], PAIR, Plan(orders="original"))
    assert (judgment.value.reason, judgment.asked_again) == ("length", False)
    # a verdict of one token is whole
    token = TokenLogprob("m", -0.1, (("m", -0.1), ("M", -2.4)))
    binary = FakeEngine([Completion("m", "length", logprobs=(token,))])
    (judgment,) = judge(binary, items[:1], load_prompt("binary", "pair"), Plan(orders="original"))
    assert (judgment.value, judgment.asked_again) == ("first", False)


def test_an_answer_with_more_tokens_has_its_own_place_in_the_cache(items, tmp_path):
    engine = FakeEngine(cut_below(64))
    with RequestCache(tmp_path / "cache.sqlite") as cache:
        for asked in (4, 4):
            judgments = judge(CachedEngine(engine, cache), items[:2], PAIR, Plan(max_tokens=16, orders="original"))
            assert len(engine.requests) == asked
            assert [judgment.value for judgment in judgments] == ["first", "first"]
    assert len(stored_keys(tmp_path / "cache.sqlite")) == 4


def test_a_trial_asks_again_too(items):
    engine = FakeEngine(cut_below(64))
    try_out(engine, items, PAIR, Plan(max_tokens=16), "mine.yaml")
    assert len(engine.requests) == 6
    with pytest.raises(ConfigError, match=r"can be read by parser pair_letter \(length\)"):
        try_out(FakeEngine(cut_below(65)), items, PAIR, Plan(max_tokens=16), "mine.yaml")


def test_equal_outcomes_are_no_certainty() -> None:
    assert win_rates_of(["first"] * 5, list("abcde")).win_rate == wilson(5, 5)
    assert win_rates_of(["tie"] * 4, list("aabb")).adjusted == wilson(1, 2)  # two questions, each with two turns
