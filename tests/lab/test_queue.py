"""The queue: what waits, in which order, and who works through it, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import EXIT_FILE, LOCK_FILE, RunDir, write_json
from posttrain.errors import ConfigError, DataError, RunError
from posttrain.holder import holder_of, lock_of, sign
from posttrain.lab import queue
from posttrain.lab.ending import Exit, Told
from posttrain.lab.processes import Started, state
from posttrain.lab.queue import QUEUE, Entry, enqueue, entries, keep_going, move, remove, start_text, work


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    lines = (json.dumps({"prompt": f"{k}?", "completion": f"{k}."}) + "\n" for k in range(20))
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    path = tmp_path / "recipe.yaml"
    path.write_text("name: one\nstages:\n  rows: {kind: data, sources: [{path: rows.jsonl}], profile: false}\n")
    return path


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process works through the queue."""
    monkeypatch.setattr(queue, "keep_going", lambda runs: None)


Starts = list[tuple[str, tuple[str, ...]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """What `work` has started: runs that finish at once, or fail where their name says so."""
    found: Starts = []

    def start(recipe: str, overrides: tuple[str, ...], runs: Path, folder: Path) -> Started:
        name = overrides[0].removeprefix("name=")
        if name == "refused":
            raise DataError("no such file", where=recipe, fix="another")
        pid = 1000 + len(found)
        found.append((name, overrides))
        told = Told("no rows", "rows.jsonl:3") if name == "failing" else None
        run = RunDir(runs / name)
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / LOCK_FILE).touch()
        with lock_of(run.path / LOCK_FILE) as lock:
            assert lock is not None
            sign(lock)
        if name != "dying":
            write_json(run.path / EXIT_FILE, asdict(Exit(2 if told else 0, told, time.time(), pid)))
        return Started(run, pid)

    monkeypatch.setattr(queue, "start", start)
    return found


def names(runs: Path) -> list[str]:
    return [entry.name for entry in entries(runs)]


def put(runs: Path, entry: Entry, place: int) -> None:
    (runs / QUEUE).mkdir(parents=True, exist_ok=True)
    write_json(runs / QUEUE / f"{place:06d}-{entry.key}.json", asdict(entry))


# ---- the list ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nobody")
def test_listed_moved_and_removed(runs: Path, recipe: Path) -> None:
    assert entries(runs) == []
    keys = {name: enqueue(recipe, [f"name={name}", "seed=3"], runs).key for name in "abcd"}
    assert names(runs) == ["a", "b", "c", "d"]
    assert entries(runs)[0].overrides == ("name=a", "seed=3")
    move(runs, keys["d"], 0)
    assert names(runs) == ["d", "a", "b", "c"]
    move(runs, keys["a"], 2)
    assert names(runs) == ["d", "b", "a", "c"]
    move(runs, keys["d"], 99)
    assert names(runs) == ["b", "a", "c", "d"]
    remove(runs, keys["a"])
    assert names(runs) == ["b", "c", "d"]
    for change in (lambda: move(runs, keys["a"], 0), lambda: remove(runs, "../../x")):
        with pytest.raises(RunError, match="not in the queue any more"):
            change()
    with pytest.raises(ConfigError):
        enqueue(recipe, ["nonsense=1"], runs)
    assert len(list((runs / QUEUE).glob("*.json"))) == 3


@pytest.mark.usefixtures("nobody")
def test_what_runs_stays_first_and_is_not_removed(runs: Path, recipe: Path) -> None:
    first, _, third = (enqueue(recipe, [f"name={name}"], runs) for name in "abc")
    queue._change(runs, first.key, replace(first, status="running", pid=7))
    move(runs, third.key, 0)
    assert names(runs) == ["a", "c", "b"]
    for change in (lambda: move(runs, first.key, 1), lambda: remove(runs, first.key)):
        with pytest.raises(RunError, match="posttrain stop"):
            change()
    queue._change(runs, first.key, replace(first, status="failed", error=Told("no")))
    assert entries(runs)[0].error == Told("no")
    remove(runs, first.key)
    assert names(runs) == ["c", "b"]


@pytest.mark.usefixtures("nobody")
def test_damaged_and_doubled_entries(runs: Path, recipe: Path) -> None:
    """Written by hand, or left by a move that was killed."""
    entry = enqueue(recipe, [], runs)
    put(runs, entry, 7)
    for name, content in (("000008-x.json", "{"), ("000009-y.json", "[]"), ("000010-z.json", '{"key": "z"}')):
        (runs / QUEUE / name).write_text(content)
    assert entries(runs) == [entry]
    remove(runs, entry.key)
    assert entries(runs) == []


@pytest.mark.usefixtures("nobody")
def test_many_change_it_at_once(runs: Path, recipe: Path) -> None:
    def add(name: str) -> None:
        entry = enqueue(recipe, [f"name={name}"], runs)
        move(runs, entry.key, 0)

    threads = [threading.Thread(target=add, args=(f"r{k}",)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(runs)) == [f"r{k}" for k in range(8)]
    assert len(list((runs / QUEUE).glob("*.json"))) == 8


# ---- who works through it ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nobody")
def test_one_after_another_and_a_failure_stays(runs: Path, recipe: Path, started: Starts) -> None:
    for name in ("a", "failing", "refused", "dying", "b"):
        enqueue(recipe, [f"name={name}"], runs)
    work(runs)
    assert [name for name, _ in started] == ["a", "failing", "dying", "b"]
    left = {entry.name: entry for entry in entries(runs)}
    assert {name: entry.status for name, entry in left.items()} == dict.fromkeys(
        ("failing", "refused", "dying"), "failed"
    )
    assert left["failing"].error == Told("no rows", "rows.jsonl:3")
    assert left["refused"].error == Told("no such file", str(recipe), "another")
    assert left["dying"].error is not None
    assert left["dying"].error.problem == "its process died without a word"
    work(runs)  # what failed is not tried again by itself
    assert len(started) == 4


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("ended", ["meanwhile", "before", "not", "never started"])
def test_the_entry_at_hand_of_a_killed_process(ended: str, runs: Path, recipe: Path, started: Starts) -> None:
    """Its run went on and ended meanwhile: that is known by its process. Otherwise it is run, or gone on with."""
    waiting = enqueue(recipe, ["name=next"], runs)
    entry = replace(waiting, key="hand", name="hand", overrides=("name=hand",), status="running", pid=77)
    if ended == "never started":
        entry = replace(entry, pid=None)
    put(runs, entry, 99)  # wherever it stands
    run = RunDir(runs / "hand")
    run.path.mkdir()
    if ended in ("meanwhile", "before"):
        pid = 77 if ended == "meanwhile" else 76
        write_json(run.path / EXIT_FILE, asdict(Exit(0, None, 0.0, pid)))
    work(runs)
    assert [name for name, _ in started] == (["next"] if ended == "meanwhile" else ["hand", "next"])
    assert entries(runs) == []


@pytest.mark.usefixtures("nobody")
def test_a_run_somebody_works_on_is_waited_for(runs: Path, recipe: Path, started: Starts) -> None:
    enqueue(recipe, ["name=busy"], runs)
    with RunDir(runs / "busy").lock():
        worker = threading.Thread(target=work, args=(runs,))
        worker.start()
        time.sleep(0.6)
        assert started == []
        assert holder_of(runs / QUEUE / LOCK_FILE) is not None
        work(runs)  # a second one leaves it to the first
    worker.join()
    assert [name for name, _ in started] == ["busy"]


@pytest.mark.usefixtures("nobody")
def test_what_is_queued_while_the_last_one_ends_is_not_forgotten(
    runs: Path, recipe: Path, started: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = queue._next, []

    def late(place: Path) -> Any:
        found = look(place)
        looks.append(found)
        if found is None and len(started) == 1:  # after the last look, while the lock is held still
            assert holder_of(runs / QUEUE / LOCK_FILE) is not None
            enqueue(recipe, ["name=late"], runs)
        return found

    enqueue(recipe, ["name=a"], runs)
    monkeypatch.setattr(queue, "_next", late)
    work(runs)
    assert [name for name, _ in started] == ["a", "late"]


def test_nothing_is_started_where_nothing_waits(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "detached", lambda *arguments: pytest.fail("started"))
    keep_going(runs)
    assert not runs.exists()


def until(true: Callable[[], object], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.mark.slow
def test_three_runs_and_a_killed_process(runs: Path, recipe: Path, tmp_path: Path) -> None:
    """The first, the one that fails and the third, with real processes; whoever works through them is killed at once."""
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("nonsense\n" * 30)
    text = recipe.read_text()
    assert start_text(text.replace("rows.jsonl", str(tmp_path / "rows.jsonl")), runs, queue=True).path == runs / "one"
    enqueue(recipe, ["name=two", f"rows.sources.0.path={damaged}"], runs)
    enqueue(recipe, ["name=three"], runs)
    until(lambda: any(entry.status == "running" for entry in entries(runs)))
    holder = holder_of(runs / QUEUE / LOCK_FILE)
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)
    until(lambda: holder_of(runs / QUEUE / LOCK_FILE) is None)
    lookers = [threading.Thread(target=keep_going, args=(runs,)) for _ in range(4)]
    for looker in lookers:
        looker.start()
    for looker in lookers:
        looker.join()
    other = holder_of(runs / QUEUE / LOCK_FILE)
    until(lambda: all(entry.status == "failed" for entry in entries(runs)))
    until(lambda: holder_of(runs / QUEUE / LOCK_FILE) is None)
    assert other is None or other.pid != holder.pid
    assert {name: state(RunDir(runs / name)).name for name in ("one", "two", "three")} == {
        "one": "finished",
        "two": "failed",
        "three": "finished",
    }
    (failed,) = entries(runs)
    assert failed.error is not None
    assert "damaged.jsonl" in str(failed.error.error())
    ends = [json.loads((runs / name / EXIT_FILE).read_text())["ended"] for name in ("one", "two", "three")]
    assert ends == sorted(ends)


def test_a_wrong_text_is_not_stored(runs: Path) -> None:
    with pytest.raises(ConfigError, match="recipe:2"):
        start_text("name: x\nstages: {rows: {kind: dat}}\n", runs, queue=False)
    assert not runs.exists()
