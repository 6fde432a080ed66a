"""The tokens of a row, asked of a process that has a tokenizer (`posttrain.board.token_worker`)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from dataclasses import dataclass, field

from markupsafe import Markup

from posttrain.artifacts import plain
from posttrain.errors import ModelError
from posttrain.types import Row, RowKind

LONGEST_WAIT = 120.0
"""Seconds: a large tokenizer on a busy machine is loaded in ten."""


@dataclass
class TokenProcess:
    """A process with a tokenizer, there once it is asked; one question at a time."""

    _process: subprocess.Popen[str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def html(self, kind: RowKind, row: Row, model: str) -> Markup:
        """What a row becomes on its way to a loss under a model's template, as HTML of a report.

        Raises ModelError with what the process says, or where it ends or takes too long.
        """
        question = json.dumps({"kind": kind, "row": plain(row), "model": model})
        with self._lock:
            answer = self._asked(question) or self._asked(question)  # it may have gone for want of questions
        if answer is None:
            raise ModelError("the process that has the tokenizer ended or took too long", where=model, fix="try again")
        if "error" in answer:
            raise ModelError(answer["error"])
        return Markup(answer["html"])  # drawn by the report's renderer, which escapes every text

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _asked(self, question: str) -> dict[str, str] | None:
        process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(question + "\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], LONGEST_WAIT)[0] and (line := process.stdout.readline()):
                found: dict[str, str] = json.loads(line)
                return found
        self._end()
        return None

    def _started(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "posttrain.board.token_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.communicate()
            self._process = None
