"""A process that has imported everything and forks one job per line of its standard input, seen from a test that kills the jobs."""

from __future__ import annotations

import gc
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


class ForkServer:
    """A running script that forks (see tests/train/training_server.py), and the jobs it forks."""

    def __init__(self, script: Path, model: Path) -> None:
        self.model = model
        tests = str(Path(__file__).parent)  # for what the script shares with tests
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._line() == "ready"

    def start(self, out: Path, **order: Any) -> int:
        """Start a job; its process id."""
        stdin: IO[str] | None = self.process.stdin
        assert stdin is not None
        stdin.write(json.dumps({"model": str(self.model), "out": str(out), **order}) + "\n")
        stdin.flush()
        return int(self._line())

    def has_ended(self, timeout: float) -> bool:
        """Whether the job ends within some seconds."""
        return bool(select.select([self.process.stdout], [], [], timeout)[0])

    def status(self) -> int:
        """How the job ended, once it has."""
        return int(self._line())

    def _line(self) -> str:
        stdout: IO[str] | None = self.process.stdout
        assert stdout is not None
        line = stdout.readline().strip()
        assert line, "the server of forks has died"
        return line

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)


class Commands:
    """Starts ``posttrain ...`` in a process of its own, one at a time, where importing torch would take seconds each time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: ForkServer | None = None
        self._last: Command | None = None
        self._count = 0

    def start(self, *words: str | Path, log: Path | None = None, most_bytes: int | None = None) -> Command:
        """``log``: what it says goes there. ``most_bytes``: no file may become larger."""
        if self._server is None:
            self._server = ForkServer(Path(__file__).with_name("command_server.py"), Path())
        if self._last is not None:
            self._last.wait()
        self._count += 1
        said = [log or self._folder / f"{self._count}.{name}" for name in ("out", "err")]
        for path in said:
            path.touch()
        order = {"words": [str(word) for word in words], "err": str(said[1]), "most_bytes": most_bytes}
        self._last = Command(self._server, self._server.start(said[0], **order), said)
        return self._last

    def close(self) -> None:
        """End the process that forks."""
        if self._server is not None:
            self._server.close()


class Command:
    """A command that was started, to be used as a ``subprocess.Popen``."""

    def __init__(self, server: ForkServer, pid: int, said: list[Path]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server, self._said = server, said

    def poll(self, timeout: float = 0) -> int | None:
        """How it ended, None while it runs."""
        if self.returncode is None and self._server.has_ended(timeout):
            self.returncode = os.waitstatus_to_exitcode(self._server.status())
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Wait for its end."""
        code = self.poll(timeout)
        assert code is not None, "it does not end"
        return code

    def communicate(self) -> tuple[str, str]:
        """What it has said on stdout and on stderr, at its end."""
        self.wait()
        out, err = (path.read_text(encoding="utf-8") for path in self._said)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send it a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def serve_forks(work: Callable[[dict[str, Any]], None]) -> None:
    """What such a script does: "ready", then for each line of input a fork that does the work, its process id and its exit status."""
    gc.collect()
    gc.freeze()  # what the imports have made: each job's collections would go through it
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                work(json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


def serve_commands() -> None:
    """`serve_forks` for command lines: an order's ``arguments`` are those of ``posttrain``. What a job prints goes nowhere."""
    from posttrain.cli import main

    def work(order: dict[str, Any]) -> None:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        sys.argv = ["posttrain", *order["arguments"]]
        try:
            main()
        except SystemExit as end:
            os._exit(int(end.code or 0))

    serve_forks(work)
