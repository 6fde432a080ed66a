"""Local models of the chat: started once, the longest silent one makes room, none outlives the board."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from boards import finished
from posttrain.board import speakers
from posttrain.board.speakers import Speaker, Speakers
from posttrain.errors import ModelError, PosttrainError

Started = list[tuple[str, subprocess.Popen[bytes]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What was started: processes that end when their stdin closes, in place of models."""
    found: Started = []

    def start(target: str) -> Any:
        if target == "broken":
            raise ModelError("no such model", where=target)
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        found.append((target, process))
        return speakers._Child(process, Speaker("http://127.0.0.1:1/v1", target))

    monkeypatch.setattr(speakers, "_started", start)
    return found


def alive(started: Started) -> list[str]:
    return [name for name, process in started if process.poll() is None]


async def use(pool: Speakers, *targets: str) -> None:
    for target in targets:
        async with pool.speaking(target) as speaker:
            assert speaker.model == target


def run(work: Coroutine[Any, Any, None]) -> None:
    finished(work)


def test_the_longest_silent_one_makes_room_and_all_end(started: Started) -> None:
    async def work() -> None:
        pool = Speakers(2)
        await use(pool, "a", "b", "a", "c")
        assert alive(started) == ["a", "c"]
        await use(pool, "a", "c", "b")
        assert [name for name, _ in started] == ["a", "b", "c", "b"]
        assert alive(started) == ["c", "b"]
        await pool.close()
        assert alive(started) == []

    run(work())


def test_one_that_speaks_stays(started: Started) -> None:
    async def work() -> None:
        pool = Speakers(2)
        async with pool.speaking("a"), pool.speaking("b"):
            with pytest.raises(PosttrainError, match="2 models are speaking already"):
                await use(pool, "c")
            await use(pool, "a")
        await use(pool, "c")  # b was silent first
        assert alive(started) == ["a", "c"]
        await pool.close()

    run(work())


def test_many_who_ask_at_once_start_it_once(started: Started) -> None:
    async def work() -> None:
        pool = Speakers(2)
        await asyncio.gather(*(use(pool, "a") for _ in range(20)))
        assert [name for name, _ in started] == ["a"]
        await pool.close()

    run(work())


def test_one_that_failed_or_died_is_started_again(started: Started) -> None:
    async def work() -> None:
        pool = Speakers(1)
        for _ in range(2):
            with pytest.raises(ModelError, match="no such model"):
                await use(pool, "broken")
        await use(pool, "a")
        started[0][1].kill()
        started[0][1].wait()
        await use(pool, "a")
        assert alive(started) == ["a"]
        await pool.close()

    run(work())


def test_who_goes_away_while_it_loads_does_not_end_the_loading(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, start = threading.Event(), speakers._started

    def slow(target: str) -> Any:
        assert ready.wait(30)
        return start(target)

    monkeypatch.setattr(speakers, "_started", slow)

    async def work() -> None:
        pool = Speakers(1)
        gone = asyncio.create_task(use(pool, "a"))
        await asyncio.sleep(0.1)
        gone.cancel()
        ready.set()
        await use(pool, "a")
        assert len(started) == 1
        await pool.close()

    run(work())
