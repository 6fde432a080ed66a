"""Runs as processes of their own: what became of them, starting, stopping, and what survives whom."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from forking import Commands
from posttrain.artifacts import EXIT_FILE, LOCK_FILE, STOP_FILE, RunDir, write_json
from posttrain.errors import ConfigError, RunError
from posttrain.holder import lock_of, started_ticks, this_process
from posttrain.lab import processes
from posttrain.lab.ending import Exit, read_exit
from posttrain.lab.processes import resume, start, state, stop

Work = Callable[..., subprocess.Popen[bytes]]
Cli = Callable[..., Any]


def until(true: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait for something another process does; a busy machine may take long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def work(run: RunDir) -> Iterator[Work]:
    """``work(code)``: a process that holds the run and does this, and records its end as a run does; it has the lock already."""
    children = []

    def begin(code: str = "time.sleep(60)", session: bool = True) -> subprocess.Popen[bytes]:
        script = "\n".join(
            (
                "import os, signal, subprocess, sys, time",
                "from pathlib import Path",
                "from posttrain.artifacts import RunDir",
                "from posttrain.errors import DataError",
                "from posttrain.lab.ending import recorded_end",
                "run = RunDir(Path(sys.argv[1]))",
                "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run behind a shell",
                "with run.lock(), recorded_end(run):",
                "    (run.path / 'ready').touch()",
                *(f"    {line}" for line in code.splitlines()),
            )
        )
        with open(os.devnull, "wb") as nowhere:
            child = subprocess.Popen(
                [sys.executable, "-c", script, str(run.path)], stderr=nowhere, start_new_session=session
            )
        children.append(child)
        until(lambda: (run.path / "ready").exists() or child.poll() is not None)
        (run.path / "ready").unlink(missing_ok=True)
        return child

    yield begin
    for child in children:
        child.kill()
        child.wait()


# ---- what became of it ---------------------------------------------------------------------------------------------


def test_from_nothing_to_the_end(run: RunDir, work: Work) -> None:
    assert state(run).name == "unstarted"
    child = work("while not (run.path / 'go').exists(): time.sleep(0.01)")
    found = state(run)
    assert found.name == "running"
    assert found.is_running
    assert found.holder is not None
    assert found.holder.pid == child.pid
    assert found.holder.argv[-1] == str(run.path)
    assert found.silence is not None
    assert found.silence < 60
    (run.path / "go").touch()
    child.wait()
    found = state(run)
    assert found.name == "finished"
    assert found.exit is not None
    assert (found.exit.code, found.exit.error, found.exit.pid) == (0, None, child.pid)


def test_it_may_be_stalled_and_a_clock_set_back_is_no_silence(run: RunDir, work: Work) -> None:
    work()
    (run.path / "sft").mkdir()
    (run.path / "sft" / "metrics.jsonl").touch()

    def written(when: float) -> None:
        for path in (*run.path.rglob("*"), run.path / LOCK_FILE):
            os.utime(path, (when, when))

    written(time.time() - 1000)
    assert state(run).name == "stalled"
    assert state(run, silence=2000).name == "running"
    (run.path / "sft" / "metrics.jsonl").touch()
    assert state(run).name == "running"
    written(time.time() + 86_400)
    assert state(run).silence == 0


def test_an_error_is_left_with_its_fix(run: RunDir, work: Work) -> None:
    work("raise DataError('no rows', where='rows.jsonl:3', fix='add some')").wait()
    found = state(run)
    assert found.name == "failed"
    assert found.exit is not None
    assert found.exit.error is not None
    assert found.exit.code == 2
    assert str(found.exit.error.error()) == "rows.jsonl:3: no rows\n  fix: add some"


def test_an_error_nobody_foresaw_is_left_too(run: RunDir, work: Work) -> None:
    work("raise ZeroDivisionError('by \\udcff')").wait()
    found = read_exit(run)
    assert found is not None
    assert found.error is not None
    assert found.code == 1
    assert found.error.problem.startswith("ZeroDivisionError: by")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_stop_that_is_told(number: signal.Signals, run: RunDir, work: Work) -> None:
    child = work("while True: time.sleep(0.01)")
    child.send_signal(number)
    child.wait()
    found = state(run)
    assert found.name == "stopped"
    assert found.exit is not None
    assert found.exit.code == 130


def test_killed_it_has_died_though_it_stays_in_the_table(run: RunDir, work: Work) -> None:
    child = work()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    found = state(run)
    assert found.name == "died"
    assert not found.is_running
    work("pass").wait()
    assert state(run).name == "finished"


def test_while_it_runs_nothing_is_left_of_the_end_before(run: RunDir, work: Work) -> None:
    work("raise DataError('no')").wait()
    (run.path / STOP_FILE).write_text("{}")
    work()
    assert state(run).name == "running"
    assert not (run.path / EXIT_FILE).exists()


def test_a_damaged_end_is_none(run: RunDir, work: Work) -> None:
    work("pass").wait()
    for content in ("", "[]", "{}", '{"code": 0}', '{"code": 0, "error": 3, "ended": 0, "pid": 1}'):
        (run.path / EXIT_FILE).write_text(content)
        assert read_exit(run) is None
        assert state(run).name == "died"


def test_a_run_of_another_machine_is_unknown(run: RunDir) -> None:
    run.path.mkdir()
    there = replace(this_process(), host="there", boot_id="of there")
    (run.path / LOCK_FILE).write_text(json.dumps(asdict(there)))
    assert state(run).name == "remote"
    with pytest.raises(RunError, match="on there since"):
        stop(run, "now")
    write_json(run.path / EXIT_FILE, asdict(Exit(0, None, 0.0, there.pid)))
    assert state(run).name == "finished"
    # a container that is gone ran on this machine: its lock tells
    (run.path / EXIT_FILE).unlink()
    (run.path / LOCK_FILE).write_text(json.dumps(asdict(replace(there, boot_id=this_process().boot_id))))
    assert state(run).name == "died"


def test_a_run_before_there_was_a_record(run: RunDir) -> None:
    run.path.mkdir()
    (run.path / LOCK_FILE).write_text("pid 17 since 2026-01-01 00:00:00")
    assert state(run).name == "unstarted"
    with lock_of(run.path / LOCK_FILE):
        assert state(run).name == "running"
        with pytest.raises(RunError, match="did not say which"):
            stop(run, "now")


def test_the_state_is_never_that_of_two_moments(run: RunDir) -> None:
    """One process takes the run, ends and takes it again while another looks: nobody died, and no end is told while it runs."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(state(run).name)

    run.path.mkdir()
    write_json(run.path / EXIT_FILE, asdict(Exit(0, None, 0.0, 1)))
    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(100):
        with run.lock():
            time.sleep(0.001)
            write_json(run.path / EXIT_FILE, asdict(Exit(0, None, 0.0, os.getpid())))
    over.set()
    reader.join()
    assert seen <= {"running", "finished"}


# ---- stop ----------------------------------------------------------------------------------------------------------

COUNTS = "\n".join(
    (
        "heard = []",
        "signal.signal(signal.SIGTERM, lambda *_: heard.append(1) or (run.path / 'heard').write_text(str(len(heard))))",
        "(run.path / 'listens').touch()",
        "while not (run.path / 'go').exists(): time.sleep(0.01)",
    )
)


def test_now_is_said_once_and_ends_it(run: RunDir, work: Work) -> None:
    child = work(COUNTS)
    until((run.path / "listens").exists)
    stop(run, "after step")
    assert state(run).name == "stopping"
    stop(run, "after step")
    assert not (run.path / "heard").exists()
    for _ in range(3):
        stop(run, "now")
    stop(run, "after step")
    until((run.path / "heard").exists)
    time.sleep(0.1)
    assert (run.path / "heard").read_text() == "1"
    assert state(run).name == "stopping"
    (run.path / "go").touch()
    child.wait()
    assert state(run).name == "finished"
    assert not (run.path / STOP_FILE).exists()
    with pytest.raises(RunError, match="no process works on this run\n  fix: it is finished"):
        stop(run, "now")


def test_what_does_not_end_in_time_is_killed_with_its_group(run: RunDir, work: Work) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child = work(deaf + "(run.path / 'worker').write_text(str(subprocess.Popen(['sleep', '60']).pid))\ntime.sleep(60)")
    until((run.path / "worker").exists)
    until(lambda: (run.path / "worker").read_text())
    worker = int((run.path / "worker").read_text())
    stop(run, "now", grace=0.3)
    assert child.wait(60) == -signal.SIGKILL
    until(lambda: started_ticks(worker) is None)  # an orphan: whoever adopts it takes it away when it comes to it
    assert state(run).name == "stopped"  # as it was asked to


def test_a_run_that_leads_no_group_is_ended_alone(run: RunDir, work: Work) -> None:
    """Started from a script: its group is the script's, here that of this test."""
    child = work("while True: time.sleep(0.01)", session=False)
    stop(run, "now")
    child.wait(60)
    assert state(run).name == "stopped"


def test_a_stranger_with_the_number_of_a_run_is_let_alone(run: RunDir, work: Work) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        begun = started_ticks(stranger.pid)
        assert begun is not None
        reused = replace(this_process(), pid=stranger.pid, group=stranger.pid, started_ticks=begun - 1)
        run.path.mkdir()
        with lock_of(run.path / LOCK_FILE):
            (run.path / LOCK_FILE).write_text(json.dumps(asdict(reused)))
            assert state(run).name == "lingering"
            stop(run, "now")
            for number in (signal.SIGTERM, signal.SIGKILL):
                processes._signal(reused, number)
        assert state(run).name == "died"
        assert stranger.poll() is None
        processes._signal(replace(reused, started_ticks=begun), signal.SIGTERM)
        assert stranger.wait(60) == -signal.SIGTERM
        processes._signal(replace(reused, started_ticks=begun), signal.SIGTERM)  # nobody
    finally:
        stranger.kill()
        stranger.wait()


def test_what_a_dead_run_left_behind_is_ended(run: RunDir, work: Work) -> None:
    """A process that got the lock in a way Python does not see."""
    leave = "\n".join(
        (
            "lock = next(int(f.name) for f in Path('/proc/self/fd').iterdir() if f.resolve().name == '.lock')",
            "(run.path / 'worker').write_text(str(subprocess.Popen(['sleep', '60'], pass_fds=[lock]).pid))",
            "other = subprocess.Popen(['sleep', '61'])",
            "(run.path / 'other').write_text(str(other.pid))",
            "os.kill(os.getpid(), signal.SIGKILL)",
        )
    )
    work(leave).wait()
    worker, other = (int((run.path / name).read_text()) for name in ("worker", "other"))
    try:
        assert state(run).name == "lingering"
        with pytest.raises(RunError, match="another process is working on this run"), run.lock():
            pass
        stop(run, "now")
        until(lambda: state(run).name == "died")
        assert started_ticks(worker) is None
        assert started_ticks(other) is not None
    finally:
        os.kill(other, signal.SIGKILL)


# ---- start ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{k} + 1?", "completion": f"{k + 1}."}) + "\n" for k in range(20)))
    return path


@pytest.fixture
def data_recipe(rows: Path, tmp_path: Path) -> Path:
    path = tmp_path / "data.yaml"
    path.write_text("name: data\nstages:\n  rows: {kind: data, sources: [{path: rows.jsonl}], profile: false}\n")
    return path


@pytest.fixture
def long_recipe(rows: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """Thousands of steps of a tiny model."""
    path = tmp_path / "long.yaml"
    path.write_text(
        f"name: long\nmodel: {tiny_model}\nstages:\n"
        f"  rows: {{kind: data, sources: [{{path: {rows}}}], profile: false, held_out: 4}}\n"
        "  sft: {kind: train, data: rows, adapter: {name: lora, rank: 4, alpha: 8}, batch_size: 4, epochs: 20000, dtype: fp32,\n"
        "        device: cpu, learning_rate: 1e-3, evaluate_every: 100000, checkpoint_every: 100000}\n"
    )
    return path


def steps(run: RunDir, stage: str = "sft") -> list[dict[str, Any]]:
    return [record for record in run.stage(stage).metrics() if record["split"] == "train"]


def test_a_recipe_runs_by_itself_and_again(cli: Cli, data_recipe: Path, tmp_path: Path) -> None:
    done = cli("start", data_recipe, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    run = RunDir(tmp_path / "runs" / "data")
    assert f"Stop it: posttrain stop {run.path}\n" in done.out
    until(lambda: not state(run).is_running)
    assert state(run).name == "finished", (run.path / "run.log").read_text()
    holder = state(run).holder
    assert holder is not None
    assert f"(pid {holder.pid})" in done.out
    assert holder.group == holder.pid
    assert "rows (data) running" in (run.path / "run.log").read_text()
    again = resume(run)
    until(lambda: not state(run).is_running)
    assert "rows (data) unchanged" in (run.path / "run.log").read_text()
    found = read_exit(run)
    assert found is not None
    assert (found.code, found.pid) == (0, again.pid)


def test_a_wrong_recipe_is_told_before_anything_starts(data_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'profile'"):
        start(data_recipe, ["rows.profil=true"], tmp_path / "runs")
    with pytest.raises(RunError, match="no such working folder"):
        start(data_recipe, [], tmp_path / "runs", tmp_path / "gone")
    assert not (tmp_path / "runs").exists()


def test_what_ends_before_it_holds_its_run_is_told(
    data_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="ended before it began"):
        start(data_recipe, [], tmp_path / "runs")


def test_words_of_a_recipe_are_no_options(data_recipe: Path, tmp_path: Path) -> None:
    for words in (["--runs=/nowhere"], ["--help"]):
        with pytest.raises(ConfigError):
            start(data_recipe, words, tmp_path / "runs")


def test_an_error_of_a_stage_is_found_in_the_folder(data_recipe: Path, rows: Path, tmp_path: Path) -> None:
    rows.write_text("nonsense\n" * 30)
    run = RunDir(tmp_path / "runs" / "data")
    with contextlib.suppress(RunError):  # where it is quicker than the look
        start(data_recipe, [], tmp_path / "runs")
    until(lambda: not state(run).is_running)
    found = state(run)
    assert found.name == "failed"
    assert found.exit is not None
    assert found.exit.error is not None
    assert "rows.jsonl" in str(found.exit.error.error())


@pytest.mark.slow
@pytest.mark.demo_model
def test_it_outlives_its_starter_and_there_is_one(long_recipe: Path, tmp_path: Path) -> None:
    """Two start it at once: one does, the other is told. The one is killed: the run goes on, and can be stopped."""
    runs, run = tmp_path / "runs", RunDir(tmp_path / "runs" / "long")
    code = "import sys, time; from pathlib import Path; from posttrain.lab.processes import start\n"
    code += "start(sys.argv[1], [], Path(sys.argv[2])); print('started', flush=True); time.sleep(600)"
    words = [sys.executable, "-c", code, str(long_recipe), str(runs)]
    starters = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    until(lambda: any(one.poll() is not None for one in starters))
    (refused,) = [one for one in starters if one.poll() is not None]
    (other,) = [one for one in starters if one is not refused]
    assert b"another process is working on this run" in refused.communicate()[1]
    until(lambda: state(run).is_running)
    other.kill()
    other.communicate()
    with pytest.raises(RunError, match="another process is working on this run"):
        start(long_recipe, [], runs)
    until(lambda: run.path.joinpath("sft", "metrics.jsonl").exists() and steps(run))
    assert state(run).name == "running"
    stop(run, "after step")
    until(lambda: not state(run).is_running)
    found = state(run)
    assert found.name == "stopped"
    assert found.exit is not None
    assert found.exit.error is not None
    reached = steps(run)[-1]["step"]
    assert found.exit.error.problem == f"interrupted after step {reached}"
    assert not (run.path / STOP_FILE).exists()


@pytest.mark.slow
@pytest.mark.demo_model
def test_stopped_killed_and_resumed_is_as_if_nothing_happened(
    long_recipe: Path, cli: Cli, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are forks: that a run is one of its own, which imports what it needs, is the rule of the test before this."""
    monkeypatch.setattr(processes, "detached", lambda _, words, log, folder: commands.start(*words, log=Path(log.name)))
    short = ["sft.epochs=20", "sft.checkpoint_every=7"]
    assert cli("run", long_recipe, *short, "--runs", tmp_path / "straight").code == 0
    straight = RunDir(tmp_path / "straight" / "long")

    def come_to(step: int) -> None:
        until(lambda: run.path.joinpath("sft", "metrics.jsonl").exists() and len(steps(run)) >= step)

    run = start(long_recipe, short, tmp_path / "runs").run
    come_to(4)
    stop(run, "after step")
    until(lambda: not state(run).is_running)
    reached = len(steps(run))
    assert state(run).name == "stopped"
    killed = resume(run)
    come_to(reached + 9)
    os.kill(killed.pid, signal.SIGKILL)
    until(lambda: not state(run).is_running)
    assert state(run).name == "died"
    resume(run)
    until(lambda: not state(run).is_running)
    assert state(run).name == "finished"
    same = ("step", "loss", "grad_norm", "learning_rate")
    assert [[r[key] for key in same] for r in steps(run)] == [[r[key] for key in same] for r in steps(straight)]
    files = [one.stage("sft").file("adapter", "adapter_model.safetensors") for one in (run, straight)]
    assert files[0].read_bytes() == files[1].read_bytes()


# ---- commands ------------------------------------------------------------------------------------------------------


def test_stop_as_a_command(cli: Cli, tmp_path: Path, work: Work, run: RunDir) -> None:
    run.path.mkdir()
    assert "no recipe.yaml here" in cli("stop", run.path).refused()
    (run.path / "recipe.yaml").touch()
    assert "no process works on this run" in cli("stop", run.path).refused()
    child = work("while not run.stop_asked(): time.sleep(0.01)")
    assert "after this step" in cli("stop", run.path).out
    child.wait(60)
    child = work("while True: time.sleep(0.01)")
    assert cli("stop", run.path, "--now").out == "It ends now.\n"
    child.wait(60)
    assert state(run).name == "stopped"


def test_asked_to_stop_a_run_ends_before_its_next_stage(
    cli: Cli, data_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.stages.data import DataStage

    text = data_recipe.read_text() + "  more: {kind: data, sources: [{path: rows}], profile: false}\n"
    data_recipe.write_text(text)
    run, prepare = RunDir(tmp_path / "runs" / "data"), DataStage.run

    def asked(self: DataStage, context: Any) -> Any:
        write_json(run.path / STOP_FILE, {"when": "after step"})
        return prepare(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(DataStage, "run", asked)
        done = cli("run", data_recipe, "--runs", tmp_path / "runs")
    assert done.code == 130
    assert "stopped before stage more" in done.err
    assert state(run).name == "stopped"
    done = cli("run", data_recipe, "--runs", tmp_path / "runs")
    assert done.code == 0
    assert "rows (data) unchanged" in done.out
    assert state(run).name == "finished"
