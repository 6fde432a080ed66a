"""Who holds a lock: reused process ids, dead processes nobody asked for, forks, other machines, damaged files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain import holder
from posttrain.holder import UNKNOWN, holder_of, last_holder, lock_of, sign, started_ticks, this_process

Script = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def script() -> Iterator[Script]:
    """``script(code, *arguments)``: a Python process that has printed its first line; killed at the end of the test."""
    children = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        assert child.stdout is not None
        child.first = child.stdout.readline().strip()  # type: ignore[attr-defined]
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


LOCKS = "import os, sys, time; from pathlib import Path; from posttrain.holder import lock_of, sign\n"
HOLDS = LOCKS + "with lock_of(Path(sys.argv[1])) as lock: sign(lock); print('held', flush=True); time.sleep(60)"


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    me = this_process()
    assert me.pid == os.getpid()
    assert me.argv[0] == sys.orig_argv[0]
    assert me.is_alive()
    assert not me.is_elsewhere
    assert not replace(me, started_ticks=me.started_ticks + 1).is_alive()
    assert not replace(me, boot_id="another start of this machine").is_alive()


def test_a_dead_process_that_nobody_asked_for_is_dead() -> None:
    """It stays in the table, and a signal still finds it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    alive = replace(this_process(), pid=child.pid, started_ticks=started_ticks(child.pid) or 0)
    assert alive.is_alive()
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    os.kill(child.pid, 0)
    assert not alive.is_alive()
    child.wait()
    assert started_ticks(child.pid) is None


def test_the_name_of_a_process_may_hold_anything(script: Script) -> None:
    code = "import time; open('/proc/self/comm', 'w').write('x) Z 1 (2'); print(flush=True); time.sleep(60)"
    child = script(code)
    assert b"x) Z 1 (2" in Path(f"/proc/{child.pid}/stat").read_bytes()
    begun = started_ticks(child.pid)
    assert begun is not None
    assert 0 <= begun - this_process().started_ticks < 1_000_000


def test_a_process_of_another_machine_and_a_container_of_this_one() -> None:
    there = replace(this_process(), host="there", boot_id="of there")
    assert there.is_elsewhere
    assert not there.is_alive()
    assert "on there since" in str(there)
    assert not replace(this_process(), host="container").is_elsewhere


def test_where_the_kernel_counts_no_ticks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(holder, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(holder, "_BOOT_ID", tmp_path / "none")
    holder.boot_id.cache_clear()
    try:
        me = this_process()
        assert me.boot_id == ""
        assert me.is_alive()
        assert replace(me, started_ticks=me.started_ticks + 50).is_alive()
        assert not replace(me, started_ticks=me.started_ticks + 5000).is_alive()
        assert replace(me, host="there").is_elsewhere
        child = subprocess.Popen([sys.executable, "-c", ""])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert started_ticks(child.pid) is None
        child.wait()
        assert started_ticks(child.pid) is None
    finally:
        holder.boot_id.cache_clear()


# ---- locks ---------------------------------------------------------------------------------------------------------


def test_a_free_lock_has_no_holder_and_remembers_the_last(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder_of(path) is None
    assert last_holder(path) is None
    with lock_of(path) as lock:
        assert lock is not None
        sign(lock)
        assert holder_of(path) == last_holder(path)
        with lock_of(path, patience=0.0) as second:
            assert second is None
    assert holder_of(path) is None
    last = last_holder(path)
    assert last is not None
    assert last.pid == os.getpid()


def test_a_shorter_name_over_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_of(path) as lock:
        assert lock is not None
        sign(lock)
        os.pwrite(lock, b" and what stood there before", os.fstat(lock).st_size)
        found = holder_of(path)
        assert found is not None
        assert found.pid == os.getpid()


@pytest.mark.parametrize(
    "content", ["pid 17 since 2026-01-01 00:00:00", "", "[]", '{"pid": 17}', '{"argv": 3}', "\udcff"]
)
def test_a_lock_that_does_not_say_who_holds_it(content: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_of(path) as lock:
        assert lock is not None
        os.pwrite(lock, content.encode("utf-8", "surrogateescape"), 0)
        assert holder_of(path) == UNKNOWN
        assert str(UNKNOWN) == "unknown process"
        assert not UNKNOWN.is_alive()
    assert last_holder(path) is None


def test_who_looks_does_not_hinder_who_takes(tmp_path: Path) -> None:
    path, over = tmp_path / "lock", threading.Event()
    path.touch()

    def look() -> None:
        while not over.is_set():
            holder_of(path)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(30):
            with lock_of(path) as lock:
                assert lock is not None
    finally:
        over.set()
        for reader in readers:
            reader.join()


def test_a_killed_process_leaves_no_lock_though_it_stays_in_the_table(script: Script, tmp_path: Path) -> None:
    child = script(HOLDS, tmp_path / "lock")
    found = holder_of(tmp_path / "lock")
    assert found is not None
    assert (found.pid, found.group) == (child.pid, child.pid)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert holder_of(tmp_path / "lock") is None
    assert last_holder(tmp_path / "lock") == found


@pytest.mark.parametrize(
    "child",
    [
        "pid = os.fork()\n    if not pid: time.sleep(60)",
        "import subprocess; pid = subprocess.Popen(['sleep', '60']).pid",
        "from multiprocessing import get_context; p = get_context('fork').Process(target=time.sleep, args=(60,)); p.start(); pid = p.pid",
    ],
    ids=["fork", "subprocess", "multiprocessing"],
)
def test_no_child_inherits_the_lock(child: str, script: Script, tmp_path: Path) -> None:
    code = LOCKS + f"with lock_of(Path(sys.argv[1])) as lock:\n    sign(lock)\n    {child}\n"
    code += "    print(pid, flush=True); time.sleep(60)"
    parent = script(code, tmp_path / "lock")
    orphan = int(parent.first)  # type: ignore[attr-defined]
    try:
        assert holder_of(tmp_path / "lock") is not None
        parent.kill()
        parent.wait()
        assert started_ticks(orphan) is not None
        assert holder_of(tmp_path / "lock") is None
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_forked_child_may_leave_the_block(script: Script, tmp_path: Path) -> None:
    code = LOCKS + "with lock_of(Path(sys.argv[1])) as lock: sign(lock); pid = os.fork()\n"
    code += "print('left', flush=True)\nif not pid: os._exit(0)\nprint(os.waitpid(pid, 0)[1], flush=True)"
    child = script(code, tmp_path / "lock")
    out, _ = child.communicate(timeout=60)
    assert out.split()[-1] == "0"
    assert child.returncode == 0
