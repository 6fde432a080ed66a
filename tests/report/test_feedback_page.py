"""Held-out judged replies on the page: numbers of the file, verdicts, no false gaps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from posttrain.artifacts import RunDir
from posttrain.report.facts import read_run
from posttrain.report.page import write_report

Add = Callable[..., dict[str, Any]]


def test_the_page_shows_what_the_file_holds(run: RunDir, feedback_eval: Add) -> None:
    record = feedback_eval(run, gain=1.0)
    page = write_report(run).read_text(encoding="utf-8")
    share = record["models"]["sft"]["separation"]["estimate"]
    assert "Held-out judged replies: labels" in page
    assert f"{100 * share:.1f}%" in page
    assert "50.0% by definition" in page
    markdown = (run.path / "report" / "report.md").read_text(encoding="utf-8")
    assert "Separation is how often" in markdown
    assert f"{100 * share:.1f}%" in markdown
    facts = read_run(run)
    assert not [gap for gap in facts.gaps if gap.stage == "labels"]
    summary = json.loads((run.path / "summary.json").read_text())
    (found,) = [one["feedback"] for one in summary["evaluations"] if one["stage"] == "labels"]
    assert found["models"]["sft"]["separation"]["estimate"] == share


@pytest.mark.parametrize(("gain", "verdict"), [(0.4, "improved"), (-0.4, "worse"), (0.0, "not shown")])
def test_verdicts_follow_the_interval(run: RunDir, feedback_eval: Add, gain: float, verdict: str) -> None:
    feedback_eval(run, gain)
    (evaluation,) = [one for one in read_run(run).evaluations if one.stage.name == "labels"]
    assert evaluation.feedback is not None
    headline = evaluation.feedback.headline
    assert headline is not None
    assert headline[3] == verdict


def test_a_damaged_file_is_a_gap(run: RunDir, feedback_eval: Add, edit_json: Callable[..., None]) -> None:
    feedback_eval(run, 1.0)
    edit_json(run.stage("labels").file("feedback.json"), lambda value: value.pop("rows"))
    assert [gap.kind for gap in read_run(run).gaps if gap.stage == "labels"] == ["damaged"]
    write_report(run)


def test_one_kind_of_replies_only_has_no_separation(
    run: RunDir, feedback_eval: Add, edit_json: Callable[..., None]
) -> None:
    feedback_eval(run, 1.0)

    def only_good(value: Any) -> None:
        for one in (*value["models"].values(), *value["differences"]):
            one["separation"] = one["reward_margin"] = None

    edit_json(run.stage("labels").file("feedback.json"), only_good)
    assert "Held-out judged replies" in write_report(run).read_text(encoding="utf-8")
