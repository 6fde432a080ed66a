from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from posttrain.artifacts import RunDir, write_text
from posttrain.report import numbers
from posttrain.report.markdown import inline
from posttrain.stages import KINDS
from posttrain.stages.page import write_report

Edit = Callable[[Path, Callable[[Any], None]], None]
Add = Callable[..., None]
VOID = {"meta", "link", "input", "br", "img", "hr"}
PANELS = {"loss", "rewards", "margin", "accuracy", "log-probabilities", "kl", "gradient-norm", "learning-rate", "speed"}


class Page(HTMLParser):
    """Text, elements and headings of a page whose tags are balanced and whose references hold."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(write_report(run, KINDS).read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        ids = [a["id"] for _, a in self.elements if "id" in a]
        assert len(ids) == len(set(ids))
        assert {(a["href"] or "")[1:] for tag, a in self.elements if tag == "a"} <= set(ids)
        headings = [int(tag[1]) for tag, _ in self.elements if re.fullmatch(r"h\d", tag)]
        assert all(b <= a + 1 for a, b in pairwise(headings))
        self.text = " ".join("".join(self.parts).split())
        self.markdown = (run.path / "report/report.md").read_text(encoding="utf-8")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def ids(self) -> set[str | None]:
        return {a["id"] for _, a in self.elements if "id" in a}


def artefact(run: RunDir, name: str) -> Any:
    return json.loads((run.path / name).read_text(encoding="utf-8"))


def figures(run: RunDir) -> set[str]:
    return {path.stem for path in (run.path / "report/figures").iterdir()}


def test_small_multiples_and_what_they_are(preference_run: RunDir) -> None:
    page = Page(preference_run)
    names = figures(preference_run)
    assert {f"dpo-{panel}" for panel in PANELS} <= names
    assert {"dpo-lengths-conversation", "dpo-lengths-replies"} <= names
    assert {"prefer-preferences-reward_accuracy", "prefer-preferences-reward_margin"} <= names
    small = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "figure small"]
    assert len(small) == len(PANELS)
    assert all(len(a.get("aria-label") or "") > 30 for tag, a in page.elements if tag == "svg")
    for path in (preference_run.path / "report/figures").iterdir():
        ElementTree.parse(path)
    images = re.findall(r"\]\(figures/([^)]+)\.svg\)", page.markdown)
    assert set(images) == names


def test_numbers_equal_the_artefacts_on_page_and_in_markdown(preference_run: RunDir) -> None:
    page = Page(preference_run)
    lengths = artefact(preference_run, "dpo/lengths.json")
    held_out = [
        r
        for r in map(json.loads, (preference_run.path / "dpo/metrics.jsonl").read_text().splitlines())
        if r["split"] == "held_out"
    ]
    expected = [
        *(numbers.fixed(100 * r["rewards/accuracies"], 1) for r in held_out),
        *(numbers.fixed(r["logps/rejected"], 1) for r in held_out),
        *(numbers.fixed(r["kl"], 4) for r in held_out),
        *(f"{lengths[side][p]:,.0f}" for side in ("chosen", "rejected") for p in ("p50", "p90", "p95", "max")),
        "265 pairs",
        "Worth knowing",
    ]
    for number in expected:
        assert number in page.text
        assert number in page.markdown


def test_the_summary_holds_the_artefacts_and_the_verdicts(preference_run: RunDir) -> None:
    page = Page(preference_run)
    summary = artefact(preference_run, "summary.json")
    sft, dpo = summary["records"]["training"]
    assert (sft["objective"]["name"], dpo["objective"]["name"], dpo["reference"]) == ("sft", "dpo", "sft")
    assert (len(dpo["held_out"]), dpo["lengths"]["chosen"]["count"]) == (10, 270)
    assert summary["paragraph"] in page.text
    assert all(finding["text"] in page.text for finding in summary["findings"])
    assert all(inline(finding["text"]) in page.markdown for finding in summary["findings"])


def test_stages_stand_side_by_side(two_objectives: RunDir) -> None:
    page = Page(two_objectives)
    assert "stages" in page.ids()
    assert "Losses of different objectives are different quantities" in page.text
    assert "likelier where there is none" in page.text
    assert {"preferences-loss", "preferences-margin", "preferences-accuracy"} <= figures(two_objectives)
    assert "preferences-kl" not in figures(two_objectives), "SimPO logs no distance, and one curve is no comparison"
    for text in ("beta 2, gamma/beta 0.5", "3.1 min", "2.7 min", "612", "3.48 GB"):
        assert text in page.text
        assert text in page.markdown


@pytest.mark.parametrize(
    ("betas", "reference", "note", "kl"),
    [
        ((0.05, 0.5), None, "one objective with different settings", True),
        ((0.1, 0.1), "base", "the same settings", False),
    ],
)
def test_what_can_be_compared_is_said(
    run: RunDir, preference_stage: Add, betas: tuple[float, float], reference: str | None, note: str, kl: bool
) -> None:
    for name, beta in zip(("low", "high"), betas, strict=True):
        preference_stage(run, name, {"name": "dpo", "beta": beta, "sft_weight": 0.0, "reference": reference})
    page = Page(run)
    assert note in page.text
    # the KL of the training is the distance from the start only where that is the reference
    assert ("KL from where it starts" in page.text) is kl


def test_every_eval_and_train_stage_has_its_section(two_objectives: RunDir) -> None:
    ids = Page(two_objectives).ids()
    assert {
        "train-sft",
        "train-dpo",
        "train-simpo",
        "likelihood-evaluate",
        "prompts-evaluate",
        "replies-evaluate",
    } <= ids
    assert {"preferences-prefer", "replies-prefer"} <= ids
    assert not {"likelihood-prefer", "preferences-evaluate"} & ids


# ---- runs that are not whole ---------------------------------------------------------------------------------------


def test_kto_has_kinds_of_replies(run: RunDir, preference_stage: Add) -> None:
    preference_stage(run, "kto", {"name": "kto", "beta": 0.1, "reference": None})
    page = Page(run)
    names = {name.removeprefix("kto-") for name in figures(run) if name.startswith("kto-")}
    assert {"rewards", "log-probabilities", "reference-point", "lengths-replies"} <= names
    assert not {"margin", "accuracy", "kl"} & names
    assert "Undesirable replies" in page.text
    assert "Rewards, desirable" in page.text
    assert "535 judged replies" in page.text
    assert "so there is no accuracy" in page.text


def test_a_reward_model_has_scores_alone(run: RunDir, preference_stage: Add) -> None:
    preference_stage(run, "rm", {"name": "reward", "use_margin": False, "centering": 0.0})
    page = Page(run)
    names = {name.removeprefix("rm-") for name in figures(run) if name.startswith("rm-")}
    assert {"rewards", "margin", "accuracy"} <= names
    assert not {"log-probabilities", "kl"} & names
    assert "Reward modelling with LoRA" in page.text


def test_a_killed_run_without_held_out_shows_its_steps(preference_run: RunDir, edit_json: Edit) -> None:
    shutil.rmtree(preference_run.path / "prefer")
    (preference_run.path / "dpo/lengths.json").unlink()
    path = preference_run.path / "dpo/metrics.jsonl"
    records = [r for r in map(json.loads, path.read_text().splitlines()) if r["split"] == "train"][:3]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records) + '{"split": "tr')
    edit_json(
        preference_run.path / "dpo/manifest.json",
        lambda m: [m.pop(key) for key in ("result", "seconds", "finished")] and m.update(status="running"),
    )
    page = Page(preference_run)
    assert "Stage dpo has not finished" in page.text
    assert "Stage prefer (eval) has not started." in page.text
    assert {"dpo-rewards", "dpo-margin", "dpo-log-probabilities"} <= figures(preference_run)
    assert "Held-out measurements while training dpo" not in page.text
    assert "preferences-prefer" not in page.ids()


def test_a_stage_without_any_record_makes_a_page(preference_run: RunDir) -> None:
    for name in ("metrics.jsonl", "ledger.json"):
        (preference_run.path / "dpo" / name).unlink()
    page = Page(preference_run)
    assert "DPO (beta 0.1)" in page.text
    assert not any(name.startswith("dpo-") and "lengths" not in name for name in figures(preference_run))


def test_metrics_of_a_newer_kind_are_damaged_not_fatal(preference_run: RunDir) -> None:
    path = preference_run.path / "dpo/metrics.jsonl"
    path.write_text('{"split": "train", "step": 1, "loss": 0.69, "rewards/chosen": "high"}\n')
    page = Page(preference_run)
    assert "Stage dpo: metrics.jsonl can't be read" in page.text
    assert "DPO (beta 0.1)" in page.text


def test_hostile_names_are_escaped(run: RunDir, preference_eval: Add) -> None:
    attack = '</title></style><script>alert(1)</script><b onmouseover="x">'
    preference_eval(run, {"sft": 0.0, attack: 3.0}, replies=True)
    page = Page(run)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any("onmouseover" in attributes for _, attributes in page.elements)
    assert attack in page.text


def test_a_nll_term_gets_its_panel(preference_run: RunDir) -> None:
    path = preference_run.path / "dpo/metrics.jsonl"
    records = [{**json.loads(line), "nll": 1.4} for line in path.read_text().splitlines()]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    Page(preference_run)
    assert "dpo-nll" in figures(preference_run)


@pytest.mark.parametrize("name", ["dpo", "prefer", "pairs"])
def test_any_stage_may_be_missing(preference_run: RunDir, name: str) -> None:
    shutil.rmtree(preference_run.path / name)
    assert f"Stage {name} (" in Page(preference_run).text
