"""recipes/minimal.py: SFT and DPO from the public parts."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "minimal.py"


@pytest.mark.slow
@pytest.mark.demo_model
def test_the_flat_script_trains(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--model", str(tiny_model), "--rows", "12", "--batch", "3"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = re.findall(r"^(sft|dpo) +(\d+)  loss ([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    steps = [(name, int(step)) for name, step, _ in found]  # some pairs are too long
    assert steps == [*(("sft", n) for n in range(1, 5)), ("dpo", 1), ("dpo", 2)]
    assert float(found[0][2]) == pytest.approx(8.3, abs=0.5)  # a random model: ln of the 4,096 tokens
    assert float(found[4][2]) == pytest.approx(
        math.log(2), abs=1.1e-4
    )  # four printed digits: ln 2 lies beside an edge of rounding
