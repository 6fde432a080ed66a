"""The seeded faults and healthy runs of docs/doctor.md, from what the doctor read of them: ``benchmarks/doctor_faults.py --record``."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_faults import CASES, Verdict, unpacked, verdicts


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    folder = tmp_path_factory.mktemp("faults")
    unpacked(Path(__file__).with_name("faults.json.gz"), folder)
    return dict(verdicts(folder, CASES))


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_first_or_second_with_its_cause_and_a_healthy_run_gives_no_alarm(
    name: str, told: dict[str, Verdict]
) -> None:
    assert told[name].right(CASES[name]), told[name]
