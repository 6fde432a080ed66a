"""A Ray cluster starts the processes that `--processes` starts: who goes where, the same losses, and how all end."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from posttrain.errors import ConfigError
from posttrain.parallel.peers import LAUNCHED
from posttrain.parallel.ray_launch import Place, environments, in_ranks, processors_each

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")


# ---- who goes where --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machines", "processes", "share"),
    [
        ([(8, None)], 2, 4),
        ([(4, None), (2, None)], 2, 2),
        ([(4, None), (2, None)], 1, 4),
        ([(4, None), (2, None)], 3, 2),
        ([(16, 8), (4, 2)], 10, 2),
        ([(16, 1), (16, 1)], 2, 16),
    ],
)
def test_processes_have_equal_shares_and_none_is_on_two_machines(
    machines: list[tuple[int, int | None]], processes: int, share: int
) -> None:
    assert processors_each(machines, processes) == share


@pytest.mark.parametrize(("devices", "what"), [(None, "6 processors"), (1, "2 CUDA devices")])
@pytest.mark.parametrize("processes", [0, 7])
def test_a_cluster_that_is_too_small_is_refused(devices: int | None, what: str, processes: int) -> None:
    with pytest.raises(ConfigError, match=f"{processes} processes on {what} of the Ray cluster"):
        processors_each([(4, devices), (2, devices)], processes)


def test_ranks_of_a_machine_are_side_by_side_and_see_all_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    far, near = ("b", "10.0.0.2", "far"), ("a", "10.0.0.1", "near")
    placed = [Place(*far, ("1",), 8), Place(*near, ("3",), 6), Place(*far, ("0",), 8), Place(*near, ("2",), 6)]
    order = in_ranks(placed, "near")
    found = environments([placed[one] for one in order], 1234, "10.0.0.1:6379")
    assert order == [3, 1, 2, 0]
    assert [(one["RANK"], one["LOCAL_RANK"]) for one in found] == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["2,3", "2,3", "0,1", "0,1"]
    assert [one["OMP_NUM_THREADS"] for one in found] == ["3", "3", "4", "4"]
    assert {(one["MASTER_ADDR"], one["MASTER_PORT"], one["WORLD_SIZE"]) for one in found} == {("10.0.0.1", "1234", "4")}


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Path:
    """Sixty steps of a tiny model, on rows that Ray has filtered."""
    rows = [{"instruction": f"What comes after {k}?", "output": f"It is {k + 1}."} for k in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"name: tiny\nmodel: {tiny_model}\nstages:\n"
        "  prepare: {kind: data, engine: ray, sources: [{path: rows.jsonl}], steps: [{kind: filter}], held_out: 4}\n"
        "  sft: {kind: train, data: prepare, adapter: {name: lora, rank: 4, alpha: 8}, batch_size: 4, max_steps: 60,\n"
        "        epochs: 100, learning_rate: 1e-3, dtype: fp32, device: cpu, checkpoint_every: 1, evaluate_every: 20}\n"
    )
    return path


@pytest.mark.demo_model
def test_without_ray_one_line_says_how_to_get_it(
    cli: Callable[..., Any], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = cli("run", recipe, "--engine", "ray", "--runs", recipe.parent / "runs").refused()
    assert message.splitlines() == [
        "error: --engine ray: the engine ray needs the package ray",
        "  fix: pip install 'posttrain[ray]'",
    ]


@pytest.mark.demo_model
def test_an_unknown_engine_is_refused(cli: Callable[..., Any], recipe: Path) -> None:
    assert "unknown engine 'rey' (did you mean 'ray'?)" in cli("run", recipe, "--engine", "rey").refused()


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """What the environment says of a cluster of one machine with two processors that no other program's Ray sees."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: sockets have names of at most 107 bytes
    Path(folder, "token").write_text(uuid4().hex)
    environment = {"RAY_TMPDIR": folder, "RAY_AUTH_TOKEN_PATH": f"{folder}/token", "RAY_USAGE_STATS_ENABLED": "0"}
    words = ["start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: list(Path(folder).rglob("ray_current_cluster")))
    yield environment
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(60)
    for child in children:
        if child.is_running():
            child.kill()
    shutil.rmtree(folder, ignore_errors=True)


class Started:
    """`posttrain run --engine ray` or `--processes` with two processes, as it is on its way."""

    def __init__(self, recipe: Path, cluster: dict[str, str], runs: str, *more: str) -> None:
        self.run = recipe.parent / runs / "tiny"
        words = ["run", str(recipe), "--runs", runs, "--processes", "2", *more]
        self._begun = self.steps()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "posttrain", *words],
            cwd=recipe.parent,
            env=os.environ | cluster | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def steps(self) -> int:
        path = self.run / "sft" / "metrics.jsonl"
        return path.read_bytes().count(b'"split": "train"') if path.exists() else 0

    def rank(self, rank: int) -> psutil.Process:
        """A process, once some steps are done."""
        wait_for(lambda: self.steps() >= self._begun + 3 or self.process.poll() is not None)
        for process in psutil.process_iter():
            try:
                mine = LAUNCHED in process.environ() and process.environ()["RANK"] == str(rank)
                if mine and process.cwd() == str(self.run.parent.parent):
                    return process
            except (psutil.Error, KeyError):
                continue
        raise AssertionError(f"no rank {rank}: {self.end()}")

    def end(self) -> tuple[int, str]:
        """How it ended, and what it said of it."""
        _, said = self.process.communicate(timeout=200)
        return self.process.returncode, said

    def losses(self) -> list[float]:
        lines = map(json.loads, (self.run / "sft" / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines]


@needs_ray
@pytest.mark.slow
@pytest.mark.demo_model
def test_two_workers_of_ray_are_two_processes_also_when_killed_and_stopped(
    recipe: Path, cluster: dict[str, str]
) -> None:
    """One run is killed at rank 1, at the worker of rank 0, and stopped by Ctrl-C; its losses are those of `--processes 2`."""
    whole = Started(recipe, cluster, "whole")
    assert whole.end()[0] == 0
    cut = Started(recipe, cluster, "cut", "--engine", "ray")
    cut.rank(1).kill()
    begin = time.monotonic()
    code, said = cut.end()
    assert time.monotonic() - begin < 20
    assert code == 2
    assert said.count("error:") == 1
    assert "error: rank 1 of 2 on " in said
    assert " was ended by SIGKILL\n  fix: run the same command again" in said

    cut = Started(recipe, cluster, "cut", "--engine", "ray")
    cut.rank(0).parent().kill()
    code, said = cut.end()
    assert (code, said.count("error:")) == (2, 1)
    assert "error: rank 0 of 2 on " in said

    cut = Started(recipe, cluster, "cut", "--engine", "ray")
    cut.rank(0)
    cut.process.send_signal(signal.SIGINT)
    code, said = cut.end()
    assert (code, said.count("error:")) == (130, 1), said
    assert f"error: interrupted after step {cut.steps()}" in said
    assert 9 <= cut.steps() < 60
    assert cut.losses() == whole.losses()[: len(cut.losses())]


@needs_ray
@pytest.mark.slow
@pytest.mark.demo_model
def test_more_processes_than_the_cluster_has_are_refused(recipe: Path, cluster: dict[str, str]) -> None:
    found = Started(recipe, cluster, "runs", "--engine", "ray", "--processes", "3")
    code, said = found.end()
    assert (code, said.splitlines()) == (
        2,
        [
            "error: --processes: 3 processes on 2 processors of the Ray cluster",
            "  fix: --processes 1 to 2, or add machines (ray start)",
        ],
    )


def wait_for(look: Callable[[], Any]) -> Any:
    """What is seen, once it is something."""
    until = time.monotonic() + 120
    while not (found := look()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found
