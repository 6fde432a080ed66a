"""A process that has imported what a training needs and forks one command per line of its standard input; see tests/forking.py."""

from __future__ import annotations

import torch

import posttrain.stages.sweep
import posttrain.train.loop  # noqa: F401 (what a stage would load when it runs)
from forking import serve_commands
from posttrain.model import hardware

torch.set_num_threads(1)
hardware.matmul_flops = lambda *_: 1e9  # type: ignore[assignment]
serve_commands()
