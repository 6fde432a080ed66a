"""The filter step: verdicts of every row, reasons, facts, workers, odd rows, bad settings."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_examples import only
from posttrain.config import build, override, parse_yaml, read_yaml, resolved_yaml
from posttrain.data import steps
from posttrain.data.filters import FILTERS, Conversation
from posttrain.data.filters.form import Length
from posttrain.data.filters.step import FilterStep
from posttrain.data.rows import LINEAGE, rows_frame, write_rows
from posttrain.data.steps import Decisions, StepRun, apply
from posttrain.errors import ConfigError, DataError
from posttrain.types import Message, Origin, SftRow

RUN = StepRun(lambda name: None)


def row(user: str, assistant: str, number: int = 1, source: str = "s", **meta: Any) -> SftRow:
    messages = (Message("user", user), Message("assistant", assistant))
    return SftRow(messages, Origin("f.jsonl", number), source, meta=meta)


ROWS = [
    row("Name a colour.", "Blue.", 1),
    row("Name a colour.", "As an AI language model, I cannot name colours.", 2),
    row("说一种颜色。", "蓝色。", 3, "zh"),
    row("说一种颜色。", "作为一个人工智能语言模型，我无法说颜色。", 4, "zh"),
    row("Where is the café?", "Le cafÃ© est ici.", 5),
    row("", "Nothing was asked.", 6),
    row("Print 1.", "```python\nprint(1)", 7, "code"),
]
KEPT = [0, 2]


def file_of(rows: Sequence[SftRow], folder: Path) -> Path:
    write_rows(folder / "in.parquet", rows_frame(rows))
    return folder / "in.parquet"


def decide(step: FilterStep, rows: Sequence[SftRow], folder: Path, run: StepRun = RUN) -> Decisions:
    return step.decide(file_of(rows, folder), 0, run)


def from_yaml(text: str) -> FilterStep:
    return build(FilterStep, parse_yaml(text, "recipe.yaml"))


def test_reasons_verdicts_and_facts(tmp_path: Path) -> None:
    decisions = decide(FilterStep(kind="filter"), ROWS, tmp_path)
    rejects = {r: (reason, detail) for r, reason, detail, _ in decisions.rejects.iter_rows()}
    assert {r: reason for r, (reason, _) in rejects.items()} == {
        1: "refusal",
        3: "refusal",
        4: "mojibake",
        5: "empty_turn",
        6: "unfinished_code_fence",
    }
    assert rejects[5][1] == "turn 1 (user); also user_too_short"
    verdicts = decisions.verdicts
    assert verdicts.schema == steps.VERDICTS
    checks = set(verdicts["check"]) - {c for c in verdicts["check"] if c.startswith("language.")}
    for number in range(len(ROWS)):
        own = verdicts.filter(pl.col("row") == number)
        assert own["check"].is_unique().all()
        assert checks < set(own["check"])
        assert own["passed"].all() == (number in KEPT)
    tokens = verdicts.filter(pl.col("check") == "length.user_tokens").sort("row")
    assert tokens["value"].to_list() == [3, 3, 5, 5, 4, 0, 2]
    assert set(tokens["limit"]) == {">= 1, <= 8192"}
    facts = decisions.facts
    json.dumps(facts)
    assert (facts["rows"], facts["kept"]) == (7, 2)
    assert facts["sources"]["zh"] == {"rows": 2, "kept": 1, "dropped": {"refusal": 1}}
    assert facts["languages"]["zh"] == {"zh": 2}
    assert (facts["filters"]["length"]["failed"], facts["filters"]["length"]["alone"]) == (1, 0)
    assert facts["filters"]["refusal"]["settings"] == {"max_turns": 0, "with_tools": False}
    assert facts["checks"]["length.user_tokens"]["quantiles"]["max"] == 5
    assert facts["checks"]["refusal.turns"]["failed"] == 2
    shown = next(e for e in facts["examples"] if e["reason"] == "mojibake")
    assert shown["id"] == ROWS[4].id
    assert shown["user"] == "Where is the café?"


def test_applied_every_row_carries_its_verdicts(tmp_path: Path) -> None:
    path = file_of(ROWS, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    line = apply("filter", path, FilterStep(kind="filter").decide(path, 0, RUN), out)
    assert (line.rows_in, line.rows_out, line.dropped["refusal"]) == (7, 2, 2)
    kept, rejects = pl.read_parquet(out / "rows.parquet"), pl.read_parquet(out / "rejects.parquet")
    assert kept.schema["verdicts"] == LINEAGE["verdicts"]
    assert kept["line"].to_list() == [1, 3]
    assert rejects["line"].to_list() == [2, 4, 5, 6, 7]
    failed = [v for v in rejects.row(0, named=True)["verdicts"] if not v["passed"]]
    assert failed == [{"step": "filter", "check": "refusal.turns", "value": 1.0, "limit": "<= 0", "passed": False}]


def test_order_workers_and_blocks_play_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [
        row(f"Say {n}.", "As an AI language model, I can't." if n % 3 else "Done.", n, "ab"[n % 2]) for n in range(40)
    ]
    expected = decide(FilterStep(kind="filter"), many, tmp_path)
    monkeypatch.setattr("posttrain.data.steps.BLOCK_ROWS", 16)
    split = decide(FilterStep(kind="filter"), many, tmp_path, dataclasses.replace(RUN, workers=2))
    assert split.verdicts.equals(expected.verdicts)
    assert split.rejects.equals(expected.rejects)
    assert split.facts == expected.facts
    order = list(range(40))
    random.Random(0).shuffle(order)
    shuffled = decide(FilterStep(kind="filter"), [many[n] for n in order], tmp_path)
    assert shuffled.facts == expected.facts
    assert {order[r] for r in shuffled.rejects["row"]} == set(expected.rejects["row"])


def test_two_limits_of_one_check_are_both_told(tmp_path: Path) -> None:
    tools = SftRow(ROWS[0].messages, Origin("f.jsonl", 9), "s", tools=({"name": "search"},))
    for order in ([ROWS[0], tools], [tools, ROWS[0]]):
        decisions = decide(FilterStep(kind="filter"), order, tmp_path)
        assert decisions.facts["checks"]["refusal.turns"]["limit"] == "<= 0 or any"


def test_an_odd_row_costs_its_measurement_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Length.measure

    def broken(self: Length, conversation: Conversation) -> Any:
        if conversation.messages[-1].content == "Blue.":
            raise ValueError("odd")
        return real(self, conversation)

    monkeypatch.setattr(Length, "measure", broken)
    decisions = decide(FilterStep(kind="filter"), ROWS, tmp_path)
    assert decisions.notes == {"length_not_measured": 1}
    assert decisions.facts["errors"] == [{"filter": "length", "id": ROWS[0].id, "error": "ValueError: odd"}]
    assert 0 not in set(decisions.rejects["row"])
    assert "refusal.turns" in set(decisions.verdicts.filter(pl.col("row") == 0)["check"])


def test_no_rows_at_all(tmp_path: Path) -> None:
    decisions = decide(FilterStep(kind="filter"), [], tmp_path)
    assert len(decisions.rejects) == len(decisions.verdicts) == decisions.facts["rows"] == 0


def test_scores_come_from_lineage_or_meta(tmp_path: Path) -> None:
    rows = [row("Hi", "Hello", 1, toxicity=0.1), row("Hi", "Hello", 2, toxicity=0.9), row("Hi", "Hello", 3)]
    frame = rows_frame(rows)
    scores = [[], [], [{"name": "toxicity", "value": v, "by": by} for v, by in ((0.2, "a"), (0.7, "b"))]]
    frame = frame.with_columns(scores=pl.Series(scores, dtype=LINEAGE["scores"]))
    write_rows(tmp_path / "in.parquet", frame)
    step = from_yaml("kind: filter\nharmful: {score: toxicity, max_score: 0.5}")
    decisions = step.decide(tmp_path / "in.parquet", 0, RUN)
    assert decisions.rejects.select("row", "reason").rows() == [(1, "harmful_score"), (2, "harmful_score")]
    values = decisions.verdicts.filter(pl.col("check") == "harmful.score")
    assert values["value"].to_list() == [0.1, 0.9, 0.7]
    wrong = from_yaml("kind: filter\nharmful: {score: toxic}")
    with pytest.raises(DataError, match="no row carries a score 'toxic' \\(did you mean 'toxicity'\\?\\)"):
        wrong.decide(tmp_path / "in.parquet", 0, RUN)


def test_rows_without_the_score_are_counted(tmp_path: Path) -> None:
    step = from_yaml("kind: filter\nharmful: {score: toxicity}")
    decisions = decide(step, [row("Hi", "Hello", 1, toxicity=0.1), row("Hi", "Hello there", 2)], tmp_path)
    assert decisions.notes == {"without_harm_score": 1}


def test_private_finds_are_not_shown(tmp_path: Path) -> None:
    step = from_yaml("kind: filter\npii: {}\nsecrets: {}")
    decisions = decide(step, [row("Who?", "Write to jane.doe@university.edu.")], tmp_path)
    assert decisions.rejects["detail"].to_list() == ["1 finds (at most 0): email 1"]
    assert "jane" not in json.dumps(decisions.facts)


def test_a_filter_is_turned_off_and_on_and_set_in_yaml(tmp_path: Path) -> None:
    step = from_yaml("kind: filter\nrefusal: null\npii: {kinds: [email]}\nlanguage: {keep: [en, zh]}")
    assert step.refusal is None
    assert [name for name, _ in step.chosen()] == [n for n in FILTERS if n not in ("refusal", "secrets")]
    assert from_yaml(resolved_yaml(step)) == step


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: filter\nlenght: {}", "lenght: unknown key \\(did you mean 'length'\\?\\)"),
        (
            "kind: filter\nlength: {min_user_token: 3}",
            "length.min_user_token: unknown key \\(did you mean 'min_user_tokens'",
        ),
        ("kind: filter\ngarbled: {max_symbol_share: 2}", "garbled.max_symbol_share: must be a number of at least 0"),
        ("kind: filter\nmin_user_tokens: 3", "belongs one level deeper: 'length.min_user_tokens'"),
    ],
)
def test_wrong_settings_are_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_yaml(text)


def test_unusable_settings_are_told_before_rows_are_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.parquet"
    with pytest.raises(ConfigError, match=r"language.keep: unknown language 'eng' \(did you mean 'en'\?\)"):
        from_yaml("kind: filter\nlanguage: {keep: [eng]}").decide(missing, 0, RUN)
    with pytest.raises(ConfigError, match="every filter is off"):
        only().decide(missing, 0, RUN)


def test_a_step_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "filter.yaml").write_text("kind: filter\nlength:\n  min_user_tokens: 3\n", encoding="utf-8")
    step = build(FilterStep, override(read_yaml(tmp_path / "filter.yaml"), ["length.max_user_tokens=5"], FilterStep))
    assert step.length is not None
    assert (step.length.min_user_tokens, step.length.max_user_tokens) == (3, 5)
