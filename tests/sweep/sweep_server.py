"""A process that has imported everything and forks one ``posttrain run`` per line of its standard input; see tests/forking.py.

Input: JSON {"model", "out", "recipe"}: the recipe is run in the folder of runs ``out``.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

import posttrain.stages.sweep
import posttrain.train.loop  # noqa: F401 (what a stage would load when it runs)
from forking import serve_forks
from posttrain.cli import main
from posttrain.model import hardware


def work(order: dict[str, Any]) -> None:
    """One command, from its start to its end or to its death. The pipe to the test is not for what it prints."""
    torch.set_num_threads(1)
    hardware.matmul_flops = lambda *_: 1e9  # type: ignore[assignment]
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.argv = ["posttrain", "run", order["recipe"], "--runs", order["out"]]
    try:
        main()
    except SystemExit as end:
        os._exit(int(end.code or 0))


serve_forks(work)
