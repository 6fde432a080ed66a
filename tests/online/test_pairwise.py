"""A judge that compares the replies to a prompt two at a time: who is compared, what a reply is worth, and what a judge may do wrong."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from posttrain.errors import ConfigError, TrainingError
from posttrain.generate import engines
from posttrain.generate.engine import Failure, Request
from posttrain.generate.fake import FakeEngine, Script
from posttrain.judge import verdicts
from posttrain.judge.config import JudgeConfig, JudgeSource, Plan
from posttrain.objectives.online_dpo import OnlineDpo
from posttrain.objectives.policy_gradient import Rloo
from posttrain.online.scores import Missing, Opening, PairwiseScore, Scorer, Written, open_scores, pairs_of, worth_among
from posttrain.types import Message

FAILED = Failure("refused", "HTTP 503")
BOTH_ORDERS = Plan()
NOBODY: Any = None
"""In place of the policy: judges are asked, not computed on it."""
UNREAD = verdicts.Missing("transport", "HTTP 503")


class Silent:
    """Is told how far the judges are and keeps quiet."""

    def tick(self, label: str, done: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def record(self, record: Any) -> None:
        """Nothing."""


class Judging(NamedTuple):
    """A scorer, and what its judge was asked."""

    scorer: Scorer
    requests: list[Request]

    def worths(self, replies: list[Written]) -> list[float | Missing]:
        return [one.reward for one in self.scorer(replies)]


Opened = Callable[..., Judging]


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Opened]:
    """``judging(script, ...)``: a scorer by judges that answer from a script each."""
    with ExitStack() as stack:

        def opened(*scripts: Script, check: bool = True, plan: Plan = BOTH_ORDERS, **changes: Any) -> Judging:
            fakes = {f"j{n}": FakeEngine(script, model=f"j{n}") for n, script in enumerate(scripts)}
            monkeypatch.setattr(engines, "open_source", lambda source, *_: fakes[source.model])
            sources = tuple(JudgeSource(endpoint="http://127.0.0.1:9/v1", model=name) for name in fakes)
            judge = JudgeConfig(judges=sources, check=check, plan=plan)
            opening = Opening(stack, tmp_path / "requests.sqlite", tmp_path / "calls.jsonl", Silent(), NOBODY, [])
            scorer = open_scores([PairwiseScore(name="pairwise", judge=judge, **changes)], opening)
            return Judging(scorer, fakes["j0"].requests)

        yield opened


def shown(request: Request) -> tuple[str, str]:
    """The reply that is shown first, and the other."""
    text = request.prompt[-1].content
    first, second = (text.split(f"<answer_{x}>\n")[1].split(f"\n</answer_{x}>")[0] for x in "ab")
    return first, second


def longer(request: Request) -> str:
    first, second = shown(request)
    return "[[A]]" if len(first) > len(second) else "[[B]]" if len(second) > len(first) else "[[C]]"


def written(*replies: str, group: str = "one") -> list[Written]:
    return [Written((Message("user", f"Well, {group}?"),), reply, group=group) for reply in replies]


# ---- who is compared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 14))
@pytest.mark.parametrize("opponents", [2, 4, 6])
def test_every_reply_is_compared_equally_often_and_all_hang_together(count: int, opponents: int) -> None:
    pairs = pairs_of(count, opponents)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs), "no pair twice, nobody with itself"
    often = Counter(place for pair in pairs for place in pair)
    assert all(often[place] == min(opponents, count - 1) for place in range(count))
    reached = {0}
    for _ in range(count):
        reached |= {place for pair in pairs if set(pair) & reached for place in pair}
    assert reached == set(range(count))


def test_replies_to_other_prompts_are_not_compared(judging: Opened) -> None:
    judge = judging(longer)
    assert judge.worths([*written("a", "bb"), *written("ccc", "dddd", group="two")]) == [0.0, 1.0, 0.0, 1.0]
    asked = {frozenset(shown(request)) for request in judge.requests}
    assert asked == {frozenset(("a", "bb")), frozenset(("ccc", "dddd"))}


# ---- what a reply is worth -------------------------------------------------------------------------------------------


def test_the_share_of_wins_by_hand() -> None:
    pairs = [(0, 1), (0, 2), (1, 2)]
    found = [worth_among(place, pairs, ["first", "tie", UNREAD]) for place in range(4)]
    assert [one.worth for one in found[:3]] == [0.75, 0.0, 0.5], "a comparison without a verdict counts for neither"
    assert [one.shares for one in found[:3]] == [
        {"ties": 0.5, "unread": 0.0},
        {"ties": 0.0, "unread": 0.5},
        {"ties": 1.0, "unread": 0.5},
    ]
    assert isinstance(found[3].worth, Missing), "nobody to compare with"
    assert worth_among(0, pairs[:1], [UNREAD]).worth == Missing("the judge: transport HTTP 503")


def test_each_pair_is_asked_in_both_orders_and_the_better_ones_win_more(judging: Opened) -> None:
    judge = judging(longer, check=False)
    assert judge.worths(written("a", "bbb", "cc")) == [0.0, 1.0, 0.5]
    assert len(judge.requests) == 6
    assert {shown(request) for request in judge.requests} >= {("a", "bbb"), ("bbb", "a")}


def test_a_judge_that_takes_the_first_says_nothing(judging: Opened) -> None:
    """Its two orders contradict each other: a tie each time, and a group without signal."""
    judge = judging(lambda request: "[[A]]")
    found = judge.scorer(written("a", "bbb", "cc"))
    assert [one.reward for one in found] == [0.5] * 3
    assert all(one.besides == {"pairwise/ties": 1.0, "pairwise/unread": 0.0} for one in found)
    biased = judging(lambda request: "[[A]]", plan=Plan(orders="original"))
    assert biased.worths(written("a", "bbb")) == [1.0, 0.0], "in one order alone it is the place that wins"


def test_equal_replies_are_a_tie_and_equal_pairs_are_asked_once(judging: Opened) -> None:
    judge = judging(longer, check=False)
    assert judge.worths(written("a", "a", "bb")) == [0.25, 0.25, 1.0]
    assert len(judge.requests) == 2
    assert judging(longer).worths(written("same", "same")) == [0.5, 0.5]


def test_a_panel_decides_by_majority(judging: Opened) -> None:
    shorter = lambda request: {"[[A]]": "[[B]]", "[[B]]": "[[A]]"}[longer(request)]  # noqa: E731
    assert judging(longer, shorter, longer).worths(written("a", "bb")) == [0.0, 1.0]


def test_a_score_of_no_weight_is_logged_and_makes_nothing_missing(judging: Opened) -> None:
    silent = judging(lambda request: "It depends.", check=False, weight=0.0)
    assert silent.worths(written("a", "bb")) == [0.0, 0.0]


# ---- judges that do not answer ---------------------------------------------------------------------------------------


def now_and_then(request: Request) -> str | Failure:
    """Half of the questions are never answered, whichever they are."""
    return FAILED if zlib.crc32(request.prompt[-1].content.encode()) % 2 else longer(request)


def test_what_is_not_answered_is_missing_and_never_a_middling_score(judging: Opened) -> None:
    texts = [chr(97 + n) * (n + 1) for n in range(8)]
    judge = judging(now_and_then, check=False)
    found = judge.scorer(written(*texts))
    unread = [one.besides["pairwise/unread"] for one in found]
    assert 0.3 < sum(unread) / len(unread) < 0.95, "a pair has a verdict where both orders have one"
    for place, one in enumerate(found):
        others = [b if a == place else a for a, b in pairs_of(8, 4) if place in (a, b)]
        read = [
            other
            for other in others
            if all(not _fails(texts[x], texts[y]) for x, y in ((place, other), (other, place)))
        ]
        if read:
            assert one.reward == sum(place > other for other in read) / len(read)
        else:
            assert isinstance(one.reward, Missing)


def _fails(first: str, second: str) -> bool:
    return now_and_then(_request(first, second)) is FAILED


def _request(first: str, second: str) -> Request:
    from posttrain.judge.config import Plan as Asked
    from posttrain.judge.items import Item
    from posttrain.judge.judge import prepared
    from posttrain.judge.prompts import load_prompt

    item = Item("0", ("Well, one?",), (first,), (second,))
    return prepared([item], load_prompt("pair", "pair"), Asked(orders="original"))[0][1]


def test_a_judge_is_tried_once_and_a_bad_moment_later_is_no_reason_to_stop(judging: Opened) -> None:
    answers = True
    judge = judging(lambda request: longer(request) if answers else FAILED)
    assert judge.worths(written("a", "bb", "ccc")) == [0.0, 0.5, 1.0]
    answers = False
    assert all(isinstance(worth, Missing) for worth in judge.worths(written("dddd", "eeeee", "f")))
    with pytest.raises(ConfigError, match="answered none of 3 trial calls"):
        judging(lambda request: FAILED).worths(written("x", "yy", "zzz"))


# ---- in the loop -----------------------------------------------------------------------------------------------------

Run = Callable[..., dict[str, Any]]


def lines(out: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


@pytest.mark.parametrize(("method", "replies"), [(OnlineDpo(label_temperature=0.2), 2), (Rloo(beta=0.0), 6)])
def test_it_learns_what_wins_and_measures_against_its_own_start(
    method: Any, replies: int, judging: Opened, online: Run, tmp_path: Path
) -> None:
    scorer = judging(longer).scorer
    result = online(tmp_path, scorer, method=method, replies=replies, steps=4, evaluate_every=2)
    held_out = [line for line in lines(tmp_path) if line["split"] == "held_out"]
    assert held_out[0]["reward"] == 0.5, "itself against itself"
    assert [len(one["replies"]) for one in lines(tmp_path, "samples.jsonl")] == [2, 0, 0]
    trained = [line for line in lines(tmp_path) if line["split"] == "train"]
    assert all(line["reward"] == pytest.approx(0.5) for line in trained), "for one that wins there is one that loses"
    assert all(line["pairwise/unread"] == 0.0 <= line["pairwise/ties"] <= 1.0 for line in trained)
    assert result["held_out_rows"] == 2


def test_a_run_that_goes_on_compares_with_the_same_start(
    judging: Opened, online: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.online import loop

    options: dict[str, Any] = {"steps": 2, "checkpoint_every": 1}
    online(tmp_path / "whole", judging(longer).scorer, **options)
    real, calls = loop.score, 0

    def deadly(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(loop, "score", deadly)
    with pytest.raises(KeyboardInterrupt):
        online(tmp_path / "cut", judging(longer).scorer, **options)
    online(tmp_path / "cut", judging(longer).scorer, **options)
    assert lines(tmp_path / "whole", "samples.jsonl") == lines(tmp_path / "cut", "samples.jsonl")


def test_a_judge_that_answers_half_of_the_time_drops_and_counts(judging: Opened, online: Run, tmp_path: Path) -> None:
    result = online(
        tmp_path,
        judging(now_and_then, check=False).scorer,
        held_out=0,
        method=OnlineDpo(),
        replies=4,
        prompts=4,
        steps=2,
    )
    trained = [line for line in lines(tmp_path) if line["split"] == "train"]
    assert 0 < result["missing"] < result["replies"]
    assert all(0 < line["pairwise/unread"] < 1 for line in trained)
    assert all(math.isfinite(line["reward"]) for line in trained)


def test_a_judge_that_never_answers_ends_the_run_with_its_first_reason(
    judging: Opened, online: Run, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"pairwise: the judge: transport .*HTTP 503"):
        online(tmp_path, judging(lambda request: FAILED, check=False).scorer, held_out=0)
