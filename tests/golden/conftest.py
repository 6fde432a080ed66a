"""Goldens: what the whole tool said and wrote when it was last declared right. ``GOLDEN=record pytest tests/golden`` declares anew."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_llama
from golden.goldens import RECIPES, differences, machine
from posttrain.model import hardware

RECORDED = Path(__file__).with_name("recorded")
INPUTS = Path(__file__).with_name("inputs")
"""Small files of every kind that recipes and commands read."""
RECORDING = os.environ.get("GOLDEN") == "record"


@pytest.fixture(scope="module", autouse=True)
def quiet_machine() -> Iterator[None]:
    """One thread, fp32 everywhere, a terminal of 100 columns without colour."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "matmul_flops", lambda dtype, device: 1e9)  # no type is faster: auto is fp32
        for name, value in {
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "TOKENIZERS_PARALLELISM": "false",
        }.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: two micro models, recipes and rows, all named by relative paths."""
    folder = tmp_path_factory.mktemp("golden")
    for seed, name in enumerate(("model", "other")):  # their greedy replies are not one token again and again
        tiny_llama(folder / name, demo_model, seed, initializer_range=0.2)
    shutil.copytree(RECIPES, folder / "recipes", ignore=shutil.ignore_patterns("*.py"))
    shutil.copytree(INPUTS, folder, dirs_exist_ok=True)
    with contextlib.chdir(folder):
        yield folder


def read(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, value: Any) -> None:
    (RECORDED / f"{name}.json").write_text(json.dumps(value, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def golden() -> Callable[[str, Any], None]:
    """``golden(name, value)``: the value is that of recorded/name.json; while recording it becomes it."""

    def check(name: str, value: Any) -> None:
        value = json.loads(json.dumps(value))
        if RECORDING:
            write(name, value)
            write("machine", machine())
            return
        found = list(differences(read(name), value, read("machine") == machine()))
        if found:
            shown = "\n".join("\n".join(found).splitlines()[:200])
            pytest.fail(f"{len(found)} differences from recorded/{name}.json:\n{shown}", pytrace=False)

    return check


@pytest.fixture
def same_machine() -> None:
    """Skips a test where last bits are other ones, and with them replies that are drawn."""
    if not RECORDING and read("machine") != machine():
        pytest.skip("recorded on another machine")
