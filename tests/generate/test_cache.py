"""The request cache: what goes in comes out, successes only, several processes, damage, and the engine in front of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import RunError
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.engine import (
    Completion,
    Failure,
    Fingerprint,
    Outcomes,
    Request,
    TokenLogprob,
    Usage,
    canonical_request,
    complete,
    request_key,
)
from posttrain.generate.fake import FakeEngine
from posttrain.types import Message
from servers import stored_keys

FULL = Completion(
    text="Caf\u00e9 \ud83d",  # a lone surrogate: JSON from a server may hold one
    finish="tool_calls",
    reasoning="hm",
    logprobs=(TokenLogprob("Caf", -0.25, (("Caf", -0.25), ("Tea", float("-inf")))), TokenLogprob("\u00e9", -1e-9)),
    usage=Usage(3, 2),
)


def ask(text: str, sample: int = 0) -> Request:
    return Request((Message("user", text),), sample=sample)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[RequestCache]:
    with RequestCache(tmp_path / "cache.sqlite") as cache:
        yield cache


# ---- storing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [FULL, Completion(""), Completion("x", logprobs=())])
def test_an_answer_comes_back_whole_and_marked(cache: RequestCache, answer: Completion) -> None:
    assert cache.get("k") is None
    cache.put("k", b"{}", answer)
    assert cache.get("k") == dataclasses.replace(answer, cached=True)


@settings(max_examples=15)
@given(text=st.text(), reasoning=st.none() | st.text())
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str, reasoning: str | None) -> None:
    with RequestCache(tmp_path_factory.mktemp("cache") / "c.sqlite") as cache:
        cache.put("k", b"{}", Completion(text, reasoning=reasoning))
        assert cache.get("k") == Completion(text, reasoning=reasoning, cached=True)


def test_the_first_answer_stays(cache: RequestCache) -> None:
    cache.put("k", b"{}", Completion("first"))
    cache.put("k", b"{}", Completion("second"))
    assert cache.get("k") == Completion("first", cached=True)


def test_the_request_stands_beside_the_answer(cache: RequestCache) -> None:
    request, fingerprint = ask("raw"), Fingerprint("fake", "m")
    cache.put(request_key(fingerprint, request), canonical_request(fingerprint, request), Completion("x"))
    stored = sqlite3.connect(cache.path)
    [(text,)] = stored.execute("SELECT request FROM answers").fetchall()
    stored.close()
    assert json.loads(text)["prompt"][0][1] == "raw"


def test_answers_outlive_the_connection(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.sqlite"
    with RequestCache(path) as cache:
        cache.put("k", b"{}", FULL)
    with RequestCache(path) as cache:
        assert cache.get("k") == dataclasses.replace(FULL, cached=True)


def _store(path: Path, start: int) -> None:
    with RequestCache(path) as cache:
        for number in range(start, start + 60):
            cache.put(f"{number:04}", b"{}", Completion(str(number)))
            assert cache.get(f"{number:04}") is not None


def test_several_processes_open_and_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_store, args=(path, start)) for start in (0, 30, 60, 90)]  # ranges overlap
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with RequestCache(path) as cache:
        assert all(cache.get(f"{n:04}") == Completion(str(n), cached=True) for n in range(150))
    assert len(stored_keys(path)) == 150


# ---- damage --------------------------------------------------------------------------------------------------------


def filled(path: Path) -> Path:
    with RequestCache(path) as cache:
        for number in range(300):
            cache.put(f"{number:064x}", b"{}", Completion(f"answer {number} " * 20))
    return path


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_text("this is a text file, and quite a long one " * 100)
    with pytest.raises(RunError, match=r"cache\.sqlite: the request cache is damaged.*\n  fix: move the file"):
        RequestCache(path)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "cache.sqlite")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    def read_all() -> None:
        with RequestCache(path) as cache:
            for number in range(300):
                cache.get(f"{number:064x}")

    with pytest.raises(RunError, match=r"cache\.sqlite: the request cache is damaged"):
        read_all()


def test_a_changed_answer_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = filled(tmp_path / "cache.sqlite")
    path.write_bytes(path.read_bytes().replace(b"answer 7 answer 7", b"answer 8 answer 7"))
    with RequestCache(path) as cache:
        assert cache.get(f"{8:064x}") is not None
        with pytest.raises(RunError, match="not what was stored"):
            cache.get(f"{7:064x}")


@pytest.mark.parametrize("seed", range(8))
def test_damage_anywhere_gives_a_run_error_or_right_answers(tmp_path: Path, seed: int) -> None:
    path = filled(tmp_path / "cache.sqlite")
    content = bytearray(path.read_bytes())
    start = seed * len(content) // 8
    content[start : start + 2_000] = bytes(2_000)
    path.write_bytes(content)

    def answers() -> Iterator[tuple[int, Completion | None]]:
        with RequestCache(path) as cache:
            for number in range(300):
                yield number, cache.get(f"{number:064x}")

    with contextlib.suppress(RunError):
        for number, found in answers():
            assert found in (None, Completion(f"answer {number} " * 20, cached=True))


def test_another_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    with pytest.raises(RunError, match="not a request cache"):
        RequestCache(path)


def test_a_later_version_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "cache.sqlite")
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 9")
    later.commit()
    later.close()
    with pytest.raises(RunError, match="version 9"):
        RequestCache(path)


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cache"):
        RequestCache(tmp_path)  # a folder
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't open the request cache"):
        RequestCache(tmp_path / "file" / "cache.sqlite")


# ---- the engine ----------------------------------------------------------------------------------------------------

REQUESTS = [ask(f"q{n}") for n in range(5)]


def test_what_was_answered_is_not_asked_again(cache: RequestCache) -> None:
    engine = FakeEngine(lambda request: f"to {request.prompt[0].content}")
    first = complete(CachedEngine(engine, cache), REQUESTS)
    again = complete(CachedEngine(engine, cache), [*REQUESTS, ask("new")])
    assert [r.prompt[0].content for r in engine.requests] == ["q0", "q1", "q2", "q3", "q4", "new"]
    assert again[:5] == [dataclasses.replace(o, cached=True) for o in first if isinstance(o, Completion)]
    assert again[5] == Completion("to new", usage=Usage(1, 2))


def test_failures_are_not_kept(cache: RequestCache) -> None:
    failing = FakeEngine([Failure("timeout", "scripted", 3), "answer"])
    assert complete(CachedEngine(failing, cache), REQUESTS[:1]) == [Failure("timeout", "scripted", 3)]
    [found] = complete(CachedEngine(failing, cache), REQUESTS[:1])
    assert found == Completion("answer", usage=Usage(1, 1))
    assert len(stored_keys(cache.path)) == 1


def test_equal_requests_of_a_batch_are_asked_once(cache: RequestCache) -> None:
    engine = FakeEngine(["one", "two"])
    found = complete(CachedEngine(engine, cache), [ask("a"), ask("b"), ask("a"), ask("a")])
    assert [o.text for o in found if isinstance(o, Completion)] == ["one", "two", "one", "one"]
    assert [o.cached for o in found if isinstance(o, Completion)] == [False, False, True, True]


def test_samples_of_one_request_are_asked_apart(cache: RequestCache) -> None:
    engine = FakeEngine(["one", "two"])
    complete(CachedEngine(engine, cache), [ask("a", sample=0), ask("a", sample=1)])
    again = complete(CachedEngine(engine, cache), [ask("a", sample=1), ask("a", sample=0)])
    assert [o.text for o in again if isinstance(o, Completion)] == ["two", "one"]


def test_models_do_not_share_answers(cache: RequestCache) -> None:
    complete(CachedEngine(FakeEngine(["one"], model="a"), cache), REQUESTS[:1])
    [found] = complete(CachedEngine(FakeEngine(["two"], model="b"), cache), REQUESTS[:1])
    assert isinstance(found, Completion)
    assert found.text == "two"
    assert CachedEngine(FakeEngine(["x"], model="b"), cache).fingerprint == Fingerprint("fake", "b")


def test_an_answer_is_stored_before_it_is_handed_over(cache: RequestCache) -> None:
    with contextlib.closing(CachedEngine(FakeEngine(lambda r: "x"), cache).generate(REQUESTS)) as outcomes:
        assert [next(outcomes) and len(stored_keys(cache.path)) for _ in range(2)] == [1, 2]


class Breaking:
    """Answers two requests, then raises."""

    fingerprint = Fingerprint("fake", "breaking")

    def __init__(self) -> None:
        self.closed = False

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        try:
            yield 0, Completion("a")
            yield 1, Completion("b")
            raise RunError("the disk is full")
        finally:
            self.closed = True


def test_an_error_of_the_engine_comes_through_and_what_was_answered_stays(cache: RequestCache) -> None:
    engine = Breaking()
    with pytest.raises(RunError, match="the disk is full"):
        complete(CachedEngine(engine, cache), REQUESTS)
    assert len(stored_keys(cache.path)) == 2
    assert engine.closed


def test_closing_early_closes_the_engine(cache: RequestCache) -> None:
    engine = Breaking()
    outcomes = CachedEngine(engine, cache).generate(REQUESTS)
    assert next(outcomes) == (0, Completion("a"))
    outcomes.close()
    assert engine.closed
