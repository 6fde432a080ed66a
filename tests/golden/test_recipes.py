"""Every recipe of the project in a tiny form: what it writes, says and shows; and killed = whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Outcome
from golden.goldens import KILLED, RECIPES, artefacts, differences, rows_by_model, steady_summary, tiny, told, visible

pytestmark = [pytest.mark.slow, pytest.mark.demo_model, pytest.mark.filterwarnings("always")]
Cli = Callable[..., Outcome]
Golden = Callable[[str, Any], None]


ENDS = """
import os, signal
from posttrain import artifacts, cli
from posttrain.model import hardware

hardware.matmul_flops = lambda *_: 1e9
write = artifacts.MetricsLog.write

def writes(self, **record):
    write(self, **record)
    if self._path.parent.name == "dpo" and record.get("split") == "train":
        os.kill(os.getpid(), signal.SIGKILL)

artifacts.MetricsLog.write = writes
cli.main()
"""
"""The command line in a process that ends by SIGKILL as soon as the second training has written a step."""


@pytest.fixture(scope="module")
def runs(place: Path, cli: Cli) -> dict[str, tuple[Path, Outcome]]:
    """Every recipe's run folder, and what the command said."""
    found = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        done = cli("run", f"recipes/{path.name}", *tiny(path), f"name={path.stem}")
        found[path.stem] = (place / "runs" / path.stem, done)
    return found


def test_artefacts(runs: dict[str, tuple[Path, Outcome]], place: Path, golden: Golden) -> None:
    golden("artefacts", {name: artefacts(folder, place) for name, (folder, _) in runs.items()})


def test_outputs(runs: dict[str, tuple[Path, Outcome]], place: Path, golden: Golden) -> None:
    golden("outputs_of_run", {n: told(done, place) for n, (run, done) in runs.items() if not rows_by_model(run)})


def test_outputs_over_drawn_rows(
    runs: dict[str, tuple[Path, Outcome]], place: Path, golden: Golden, same_machine: None
) -> None:
    golden("outputs_over_drawn_rows", {n: told(done, place) for n, (run, done) in runs.items() if rows_by_model(run)})


def test_the_whole_way_is_one_recipe(runs: dict[str, tuple[Path, Outcome]]) -> None:
    """Quantised, trained, merged, a folder and a GGUF file: both are what was trained, llama.cpp says so of the file."""
    run = runs["train_and_export"][0]
    home, file = (json.loads((run / name / "manifest.json").read_text())["result"] for name in ("home", "file"))
    assert (run / "sft" / "quantisation.json").is_file()
    assert home["agreement"]["relative"] < 5e-3
    assert file["llama_cpp"]["same"] + len(file["llama_cpp"]["ties"]) == file["llama_cpp"]["replies"] == 4
    assert "llama.cpp: greedy replies" in (run / "report" / "report.md").read_text()


@pytest.mark.parametrize("name", ["sft_then_dpo", "kto"])
def test_summary(name: str, runs: dict[str, tuple[Path, Outcome]], place: Path, golden: Golden) -> None:
    golden(f"summary_{name}", steady_summary(runs[name][0], place))


@pytest.mark.parametrize("name", ["sft_full", "dpo_vs_simpo"])
def test_page(name: str, runs: dict[str, tuple[Path, Outcome]], place: Path, golden: Golden) -> None:
    golden(f"page_{name}", visible(runs[name][0] / "report" / "index.html", place))


def test_killed_is_whole(runs: dict[str, tuple[Path, Outcome]], place: Path, cli: Cli) -> None:
    """Ended by SIGKILL in the middle of the second training and run again, a run has written what an unbroken one writes."""
    recipe = RECIPES / f"{KILLED}.yaml"
    run = place / "runs" / KILLED
    whole = artefacts(run, place)
    for path in [path for path in run.iterdir() if path.name not in ("instructions", "prepare", "sft")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    arguments = ["run", f"recipes/{KILLED}.yaml", *tiny(recipe), f"name={KILLED}"]
    ended = subprocess.run(
        [sys.executable, "-c", ENDS, *arguments],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    done = cli(*arguments)
    assert done.code == 0, done.err
    found = list(differences(whole, artefacts(run, place), here=True))
    assert not found, "\n".join(found)
