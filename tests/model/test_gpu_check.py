"""benchmarks/gpu_check.py on a CPU with small sizes: every group gives its rows, a wrong result and a failing group show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from gpu_check import Check, Row, group_rows, in_its_own_process

from posttrain.encode.collate import collate_shared
from posttrain.model import packed_kernels

CPU = torch.device("cpu")
EXPECTED = {
    "device": ["device", "peak of a product"],
    "attention": ["sdpa, float32", "taken, bfloat16, window"],
    "correctness": [*(f"{kind().name}, fp32" for kind in gpu_check.OBJECTIVES), "sft, 4 bits, bf16"],
    "training": ["SFT, LoRA", "DPO, LoRA: memory", "SFT, QLoRA"],
    "generation": ["greedy replies equal to the CPU's, fp32", "generation, 4 at once"],
    "several": [f"{words}, 2 devices: norms apart" for words in gpu_check.SHARED],
}
"""All groups but what the peer needs, and what takes a minute to compile."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_group_on_a_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "LENGTHS", tuple(length // 10 for length in gpu_check.LENGTHS))
    rows = group_rows(name, Check(CPU, tmp_path))
    assert [row for row in rows if row.ok is False] == []
    assert set(EXPECTED[name]) <= {row.what for row in rows}
    assert all(row.value is not None and row.value >= 0 for row in rows if not row.what.startswith("taken"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_kernel_that_is_wrong_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(*arguments: object) -> torch.Tensor:
        return packed_kernels.by_segment(*arguments).roll(1, 0)  # type: ignore[arg-type]

    wrong = packed_kernels.Kernel(shifted, lambda inputs, request: True)
    monkeypatch.setattr(packed_kernels, "KERNELS", {"shifted": wrong} | packed_kernels.KERNELS)
    rows = {row.what: row for row in group_rows("attention", Check(CPU, tmp_path))}
    assert rows["shifted, float32"].ok is False
    assert rows["sdpa, float32"].ok is True
    assert rows["taken, float32"].note == "sdpa"


@pytest.mark.parametrize("objective", [kind() for kind in gpu_check.OBJECTIVES], ids=lambda objective: objective.name)
def test_steps_are_long_enough_for_the_kernels_of_long_passes(objective: Any) -> None:
    units = gpu_check.units_of(objective, gpu_check.LENGTHS, 997)
    task = gpu_check.task_of(objective, units)
    for group in (units[:2], units[2:]):
        batch = collate_shared([s for unit in group for s in task.sequences(unit)])
        assert len(batch.ids_T) >= packed_kernels.SMALL


def test_a_gradient_that_is_wrong_is_apart() -> None:
    exact = [torch.tensor(100.0), torch.ones(4), torch.zeros(3)]
    assert gpu_check.apart(exact, exact) == 0.0
    assert gpu_check.apart([exact[0], torch.ones(4) * 1.5, exact[2]], exact) == pytest.approx(0.5)
    assert gpu_check.apart([exact[0] * 2, *exact[1:]], exact) == pytest.approx(1.0)


def test_a_group_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(check: Check) -> Iterator[Row]:
        yield Row("first", 1.0)
        raise RuntimeError("no such kernel\nat all")

    monkeypatch.setitem(gpu_check.GROUPS, "device", failing)
    first, last = group_rows("device", Check(CPU, tmp_path))
    assert (first.what, last.ok, last.note) == ("first", False, "RuntimeError: no such kernel")


def test_a_process_that_ends_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = tmp_path / "dies.py"
    dies.write_text("raise RuntimeError('no such device')")
    monkeypatch.setattr(gpu_check, "__file__", str(dies))
    (row,) = in_its_own_process("device", "no-such-device", str(tmp_path))
    assert row.ok is False
    assert row.note == "the process ended: RuntimeError: no such device"


def test_the_exit_code_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for ok, code in ((True, 0), (False, 1)):
        monkeypatch.setattr("sys.argv", ["gpu_check.py", "--device", "cpu", "--only", "device", "--out", str(tmp_path)])
        monkeypatch.setitem(gpu_check.GROUPS, "device", lambda check, ok=ok: [Row("a thing", 1.5, "ms", ok=ok)])
        with pytest.raises(SystemExit) as ended:
            gpu_check.main()
        assert ended.value.code == code
        assert "a thing" in capsys.readouterr().out
        assert json.loads((tmp_path / "gpu_check.json").read_text())["device"][0]["ok"] is ok


@pytest.mark.slow
def test_a_group_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert in_its_own_process("device", "cpu", str(tmp_path))[0].what == "device"
