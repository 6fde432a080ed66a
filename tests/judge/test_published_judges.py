"""Published judges replayed through the whole path (prompt, both orders, parser, calibration): LLMBar's own table comes out.

LLMBar (Zeng et al. 2024, arXiv:2310.07641) gives for every judge and strategy the verdict in both orders; expected are its accuracy,
averaged over the orders, and its rate of equal verdicts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

from posttrain.generate.engine import Request
from posttrain.generate.fake import FakeEngine
from posttrain.judge.calibrate import calibrate
from posttrain.judge.config import Plan
from posttrain.judge.items import Item, read_items
from posttrain.judge.judge import judge
from posttrain.judge.prompts import load_prompt
from posttrain.stats.intervals import IntervalSettings

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def llmbar(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Item, ...]:
    records = json.loads((shared_data / "evaluation" / "llmbar" / "dataset_Natural.json").read_text(encoding="utf-8"))
    path = tmp_path_factory.mktemp("llmbar") / "items.jsonl"
    lines = [
        {"id": k, "prompt": r["input"], "reply_a": r["output_1"], "reply_b": r["output_2"], "label": r["label"]}
        for k, r in enumerate(records)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_items(path, "pair", labelled=True).items


def replay(items: tuple[Item, ...], winners: Mapping[int, tuple[int, int]]) -> FakeEngine:
    """A judge that says what was published: ``winners[k]`` is 1 or 2 in the data's order, for each order shown."""
    numbers = {item.turns[0]: number for number, item in enumerate(items)}

    def script(request: Request) -> str:
        assert not isinstance(request.prompt, str)
        text = request.prompt[-1].content
        question = text.split("<question>\n")[1].split("\n</question>")[0]
        first = text.split("<answer_a>\n")[1].split("\n</answer_a>")[0]
        number = numbers[question]
        swapped = first != items[number].replies_a[0]
        winner = winners[number][swapped]
        return f"They differ.\n[[{'AB'[(winner == 2) != swapped]}]]"

    return FakeEngine(script)


@pytest.mark.parametrize(
    ("name", "strategy"), [("ChatGPT-0301", "CoT"), ("ChatGPT-0301", "Metrics"), ("ChatGPT-0301", "Metrics_Reference")]
)
def test_llmbar_comes_out(llmbar, shared_data, name, strategy):
    folder = shared_data / "evaluation" / "llmbar"
    chosen = (pl.col("judge") == name) & (pl.col("strategy") == strategy)
    verdicts = pl.read_csv(folder / "verdicts_natural.csv.gz").filter(chosen)
    expected = pl.read_csv(folder / "expected_statistics_natural.csv").filter(chosen).row(0, named=True)
    winners = {r["idx"]: (int(r["winner_original"]), int(r["winner_swapped"])) for r in verdicts.iter_rows(named=True)}
    judgments = judge(replay(llmbar, winners), llmbar, load_prompt("pair", "pair"), Plan())
    found = calibrate(llmbar, judgments, settings=IntervalSettings(resamples=50))
    assert found.pairs == 100
    assert f"{found.measured.one_order.estimate:.1%}" == expected["correct_average"]
    assert f"{found.measured.orders.consistent.estimate:.1%}" == expected["equal"].split(" = ")[1]
    assert f"{found.measured.both_orders.estimate:.1%}" == expected["correct_both"].split(" = ")[1]
