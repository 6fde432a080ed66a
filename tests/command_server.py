"""A process that has imported what a training needs, and forks one ``posttrain ...`` per line of its standard input; see `forking.Commands`.

Input: JSON {"words", "out", "err", "most_bytes"}; output: the pid, then the exit status. It has computed nothing and read no rows itself: the
threads of polars and of torch begin in the forks.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from typing import Any

import polars
import transformers.models.llama.modeling_llama

import posttrain.data.pipeline
import posttrain.lab.engine
import posttrain.tasks.evaluation
import posttrain.train.loop
from forking import serve_forks
from posttrain.cli import main

LOADED = (polars, transformers, posttrain)


def work(order: dict[str, Any]) -> None:
    """Be the command, up to its end."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run behind a shell
    files = [os.open(os.devnull, os.O_RDONLY), *(os.open(order[k], os.O_WRONLY | os.O_APPEND) for k in ("out", "err"))]
    for at, file in enumerate(files):
        os.dup2(file, at)
    if order["most_bytes"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["most_bytes"],) * 2)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["posttrain", *order["words"]]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    threading._shutdown()  # type: ignore[attr-defined]  # as at the end of an interpreter
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve_forks(work)
