"""Every path on a pretended second device: the same numbers, nothing on the wrong device, nothing that a GPU would wait for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]


def test_training_scoring_and_generation_on_a_second_device() -> None:
    """In a process of its own: a device is registered with torch for good."""
    program = [sys.executable, str(TESTS / "train" / "second_device_checks.py")]
    paths = os.pathsep.join(
        [str(TESTS), str(TESTS.parent / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    ended = subprocess.run(program, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert len(found) > 25
    assert {name: problem for name, problem in found.items() if problem} == {}
