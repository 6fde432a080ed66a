"""Searches through ask and tell: asked again, they ask the same."""

from __future__ import annotations

from typing import Any

from posttrain.sweep.config import AshaSearch, RandomSearch, Range
from posttrain.sweep.search import trials

OVER: dict[str, Any] = {
    "sft.learning_rate": Range(low=1e-5, high=1e-3, log=True),
    "sft.batch_size": Range(low=4, high=32, whole=True),
    "sft.adapter": ({"name": "lora", "rank": 4}, {"name": "full"}),
}


def test_a_search_asks_the_same_again_and_stays_in_its_ranges() -> None:
    search = RandomSearch(name="random", trials=12)
    runs = []
    for _ in range(2):
        found = []
        for trial in trials(search, OVER, 7, minimize=True):
            found.append(trial.changes)
            trial.tell(float(trial.changes["sft.learning_rate"]))
        runs.append(found)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 12
    for one in runs[0]:
        assert 1e-5 <= one["sft.learning_rate"] <= 1e-3
        assert one["sft.batch_size"] in range(4, 33)
        assert one["sft.adapter"] in OVER["sft.adapter"]


def test_halving_gives_most_steps_to_the_best() -> None:
    """The loss is the rate itself, as it were: those that go to the end have lower ones than those that were ended."""
    finished, ended, told = [], [], []
    for trial in trials(AshaSearch(name="asha", trials=24, reduction=3), {"x": Range(low=0, high=1)}, 0, minimize=True):
        value = float(trial.changes["x"])
        steps = 0
        for step in range(1, 10):
            steps = step
            if not trial.seen(step, value):
                break
        (finished if steps == 9 else ended).append(value)
        told.append(steps)
        trial.tell(value if steps == 9 else None)
    assert len(finished) < len(ended)
    assert sum(finished) / len(finished) < sum(ended) / len(ended)
    assert sum(told) < 0.5 * 24 * 9
