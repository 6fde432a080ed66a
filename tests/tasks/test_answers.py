"""Conversations with an engine: turns in order, failures kept, draws apart."""

from __future__ import annotations

import json

from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.engine import Failure, Request, Sampling
from posttrain.generate.fake import FakeEngine, Scripted
from posttrain.tasks.answers import answer_all, answer_of, answer_record
from posttrain.tasks.base import Task


def echo(request: Request) -> Scripted:
    last = request.prompt[-1]
    assert not isinstance(last, str)
    return Failure("timeout", "scripted", 2) if "break" in last.content else f"<think>hm</think>re: {last.content}"


TWO = Task("two", ("first", "second"), Sampling(), system="Be brief.")
BROKEN = Task("broken", ("break", "never asked"), Sampling())
DRAWN = Task("drawn", ("dice",), Sampling(temperature=1.0), samples=2)


def test_a_later_turn_sees_the_earlier_reply_without_its_thinking() -> None:
    engine = FakeEngine(echo)
    (answer,) = answer_all(engine, [TWO], seed=0)
    assert answer.replies == ("re: first", "re: second")
    assert answer.complete
    second = engine.requests[1].prompt
    assert [(m.role, m.content) for m in second if not isinstance(m, str)] == [
        ("system", "Be brief."),
        ("user", "first"),
        ("assistant", "re: first"),
        ("user", "second"),
    ]


def test_a_failed_turn_ends_its_conversation_only() -> None:
    told: list[tuple[int, int]] = []
    engine = FakeEngine(echo)
    broken, two = answer_all(engine, [BROKEN, TWO], 0, lambda done, total: told.append((done, total)))
    assert (broken.replies, broken.complete) == ((), False)
    assert broken.failure == Failure("timeout", "scripted", 2)
    assert two.complete
    assert len(engine.requests) == 3
    assert told[-1] == (3, 4)


def test_draws_are_apart_and_seeded_by_the_recipe() -> None:
    engine = FakeEngine(echo)
    assert [answer.sample for answer in answer_all(engine, [DRAWN], seed=7)] == [0, 1]
    assert [(r.sample, r.sampling.seed) for r in engine.requests] == [(0, 7), (1, 7)]
    answer_all(engine, [TWO], seed=7)
    assert engine.requests[-1].sampling.seed is None  # greedy: equal whatever the seed


def test_answers_come_back_from_their_records_as_they_were() -> None:
    tasks = [TWO, BROKEN, DRAWN]
    answers = answer_all(FakeEngine(echo), tasks, seed=0)
    stored = json.loads(json.dumps([answer_record(answer) for answer in answers]))
    assert [answer_of(record, {task.id: task for task in tasks}) for record in stored] == answers


def test_what_is_cached_is_known(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with RequestCache(tmp_path / "requests.sqlite") as cache:
        engine = CachedEngine(FakeEngine(echo), cache)
        assert [a.cached for a in answer_all(engine, [TWO], 0)] == [False]
        assert [a.cached for a in answer_all(engine, [TWO], 0)] == [True]
