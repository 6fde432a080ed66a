"""Which stages a model was made from, and what they took together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import Manifest, StageDir
from posttrain.report.reading import Stage
from posttrain.report.values import Number
from posttrain.stages.ways import way_lines, way_to

WAYS: dict[str, tuple[str, tuple[str, ...], float, int]] = {
    "sft": ("train", (), 10.0, 5),
    "pairs": ("synth", ("sft",), 20.0, 3),
    "dpo": ("train", ("sft", "pairs"), 30.0, 7),
    "reward": ("train", ("sft", "pairs"), 40.0, 6),
    "ppo": ("online", ("sft", "reward"), 50.0, 9),
}
ROLES = {"dpo": ("policy", "reference"), "ppo": ("policy", "reference", "critic", "reward model")}


@pytest.fixture
def stages(tmp_path: Path) -> list[Stage]:
    found = []
    for name, (kind, inputs, seconds, peak) in WAYS.items():
        folder = StageDir(tmp_path / name)
        folder.path.mkdir()
        norms = [0.0, 1.0, 2.0, 8.0]  # the first step of ppo moves the critic alone
        lines = [
            json.dumps({"split": "train", "step": n, "grad_norm": x, "seconds": n}) for n, x in enumerate(norms, 1)
        ]
        (folder.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        result: dict[str, Any] = {"roles": ROLES.get(name, ("model",)), "models_in_memory": 2 if name == "ppo" else 1}
        manifest = Manifest(
            kind,
            "complete",
            digest=f"digest of {name}",
            inputs={f"input {n}": f"digest of {one}" for n, one in enumerate(inputs)}
            | {"model": "digest of elsewhere"},
            seconds=seconds,
            peak_memory_bytes=peak,
            device="cpu",
            result=result,
        )
        found.append(Stage(name, kind, "complete", manifest, None, folder))
    return found


def test_a_way_is_all_that_a_stage_was_made_from(stages: list[Stage]) -> None:
    ways = {one.name: [before.name for before in way_to(one, stages)] for one in stages}
    assert ways == {
        "sft": ["sft"],
        "pairs": ["sft", "pairs"],
        "dpo": ["sft", "pairs", "dpo"],
        "reward": ["sft", "pairs", "reward"],
        "ppo": ["sft", "pairs", "reward", "ppo"],
    }


def test_its_costs_are_those_of_all_its_stages(stages: list[Stage]) -> None:
    lines = {line.label.text: line.cells for line in way_lines(stages, ["base", "dpo", "ppo"])}
    assert {name: (cells["dpo"].value, cells["ppo"].value) for name, cells in lines.items()} == {
        "Stages": (3, 4),
        "Models in memory": (1, 2),
        "Time": (60.0, 120.0),
        "Peak memory": (7, 9),
        "Steadiness": (4.0, 4.0),
    }
    assert lines["Models in memory"]["ppo"] == Number(2, "count", note="policy, reference, critic, reward model")


def test_one_model_is_compared_with_no_other(stages: list[Stage]) -> None:
    assert not list(way_lines(stages, ["base", "dpo"]))


def test_its_own_stage_is_the_last_in_whatever_order_a_recipe_names_them(stages: list[Stage]) -> None:
    turned = stages[::-1]
    assert [way_to(one, turned)[-1].name for one in turned] == [one.name for one in turned]
