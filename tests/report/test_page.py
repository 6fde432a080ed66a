from __future__ import annotations

import base64
import hashlib
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
from posttrain.report.facts import check_words
from posttrain.report.markdown import fenced, inline
from posttrain.stages import KINDS
from posttrain.stages.page import flattened
from posttrain.stages.page import write_report as write_kinds

Edit = Callable[[Path, Callable[[Any], None]], None]
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Collects the attributes of all elements and the text of those of one class; checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.replies: list[str] = []
        self.headings: list[int] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
        if (dict(attrs).get("class") or "") == "reply":
            self.replies.append("")
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script":
            self.scripts.append(data)
        if attributes.get("class") == "reply":
            self.replies[-1] += data


def write_report(run: RunDir) -> Path:
    return write_kinds(run, KINDS)


def page_of(run: RunDir) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def replies_of(run: RunDir) -> list[dict[str, Any]]:
    text = (run.path / "evaluate/replies.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_all_files_are_written(run: RunDir) -> None:
    page = write_report(run)
    assert page == run.path / "report/index.html"
    assert {p.name for p in (run.path / "report/figures").iterdir()} == {
        "rows.svg",
        "sft-loss.svg",
        "sft-gradient-norm.svg",
        "sft-learning-rate.svg",
        "sft-speed.svg",
        "sft-lengths-conversation.svg",
        "sft-lengths-assistant.svg",
        "evaluate-loss-difference.svg",
        "evaluate-rows-base-sft.svg",
        "evaluate-accuracy.svg",
    }
    for path in (run.path / "report/figures").iterdir():
        ElementTree.parse(path)
    assert (run.path / "report/report.md").exists()
    assert json.loads((run.path / "summary.json").read_text())["schema"] == 2


def test_the_page_requests_nothing(run: RunDir) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    loading = {"src", "href", "srcset", "data", "poster", "action", "formaction", "xlink:href", "background"}
    targets = [value or "" for _, attributes in page.elements for name, value in attributes.items() if name in loading]
    assert targets
    assert all(target.startswith("#") or target == "data:," for target in targets)
    styles = re.findall(r"<style>(.*?)</style>", html, re.S)
    assert styles
    assert not any("url(" in style or "@import" in style for style in styles)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a) or ""
    assert "default-src 'none'" in policy
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_replies_stand_on_the_page_exactly_as_they_were_given(run: RunDir) -> None:
    page = page_of(run)
    expected = sorted(record["reply"] for record in replies_of(run) if record["reply"].strip())
    assert sorted(page.replies) == expected
    assert "(empty reply)" in "".join(page.text)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not any(tag == "img" for tag, _ in page.elements)
    assert sum(tag == "script" for tag, _ in page.elements) == 1


def test_hostile_text_everywhere_is_escaped(run: RunDir, edit_json: Edit) -> None:
    attack = '</title></style></pre><script>alert(1)</script><b onmouseover="x">\''
    edit_json(run.path / "prepare/ledger.json", lambda v: v["rejects"][0].update(detail=attack, file=attack))
    edit_json(run.path / "sft/manifest.json", lambda m: (m["config"].update(note=attack), m.update(device=attack)))
    edit_json(run.path / "evaluate/manifest.json", lambda m: m.update(status="failed", error=attack))
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["pairs"][0].update(b=attack))
    write_text(run.path / "recipe.yaml", f"name: {json.dumps(attack)}\nmodel: {json.dumps(attack)}\nstages: {{}}\n")
    page = page_of(run)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any("onmouseover" in attributes for _, attributes in page.elements)
    for path in (run.path / "report/figures").iterdir():
        assert "script" not in {element.tag.split("}")[-1] for element in ElementTree.parse(path).iter()}


def test_chinese_is_marked_as_chinese(run: RunDir) -> None:
    page = page_of(run)
    languages = [a.get("lang") for _, a in page.elements if a.get("class") == "reply"]
    assert languages.count("zh-Hans") == sum(r["language"] == "zh" and bool(r["reply"]) for r in replies_of(run))
    assert "《红楼梦》的作者是清代小说家曹雪芹" in "".join(page.text)


def test_headings_descend_one_level_at_a_time(run: RunDir) -> None:
    headings = page_of(run).headings
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(headings))


def test_ids_are_unique_and_links_lead_somewhere(run: RunDir) -> None:
    page = page_of(run)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [(a["href"] or "")[1:] for tag, a in page.elements if tag == "a"]
    assert links
    assert set(links) <= set(ids)
    labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(labels) <= set(ids)


def test_every_figure_has_words(run: RunDir) -> None:
    drawings = [a for tag, a in page_of(run).elements if tag == "svg"]
    assert len(drawings) == 10 + 2  # two headlines show their difference
    assert all(a.get("role") == "img" and len(a.get("aria-label") or "") > 30 for a in drawings)


def test_numbers_on_the_page_equal_the_artefacts(run: RunDir) -> None:
    text = " ".join("".join(page_of(run).text).split())
    markdown = (run.path / "report/report.md").read_text(encoding="utf-8")
    read = lambda name: json.loads((run.path / name).read_text(encoding="utf-8"))  # noqa: E731
    likelihood, accuracy, manifest = (
        read("evaluate/likelihood.json"),
        read("evaluate/accuracy.json"),
        read("sft/manifest.json"),
    )
    lengths, ledger = read("sft/lengths.json"), read("prepare/ledger.json")
    pair = likelihood["pairs"][0]
    expected = [
        *(f"{model['loss']:.3f}" for model in likelihood["models"].values()),
        *(f"{model['perplexity']:.2f}" for model in likelihood["models"].values()),
        numbers.interval(pair["low"], pair["high"]),
        *(f"{m['all']['passed']} of {m['all']['checked']}" for m in accuracy["models"].values()),
        *(numbers.percent_interval(m["all"]["low"], m["all"]["high"]) for m in accuracy["models"].values()),
        f"{manifest['result']['tokens']:,}",
        f"{manifest['result']['supervised_tokens']:,}",
        "3.12 GB",
        "47%",
        "6.7 minutes",
        *(f"{lengths[kind][p]:,.0f}" for kind in ("conversation", "assistant") for p in ("p50", "p90", "p95", "max")),
        numbers.percent(lengths["conversation"]["share_over_limit"]),
        *(f"{step['rows_in']:,}" for step in ledger["steps"]),
        manifest["digest"][:12],
    ]
    for number in expected:
        assert number in text
        assert number in markdown


def test_summary_holds_the_numbers_of_the_artefacts_and_the_sentences_of_the_page(run: RunDir) -> None:
    text = "".join(page_of(run).text)
    summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    likelihood = json.loads((run.path / "evaluate/likelihood.json").read_text())
    accuracy = json.loads((run.path / "evaluate/accuracy.json").read_text())
    (found,), (checked,), (replies,) = (summary["records"][name] for name in ("likelihood", "accuracy", "replies"))
    assert found["models"] == likelihood["models"]
    assert checked["models"] == accuracy["models"]
    assert {k: found["comparisons"][0][k] for k in likelihood["pairs"][0]} == likelihood["pairs"][0]
    assert {k: checked["comparisons"][0][k] for k in accuracy["pairs"][0]} == accuracy["pairs"][0]
    assert replies == {
        "stage": "evaluate",
        "prompts": 18,
        "outcomes": {"gained": 5, "both right": 6, "not checked": 5, "lost": 1, "both wrong": 1},
        "cut_at_length_limit": {"base": 2, "sft": 0},
        "not_finite": {"base": 0, "sft": 0},
    }
    (training,) = summary["records"]["training"]
    result = json.loads((run.path / "sft/manifest.json").read_text())["result"]
    assert {key: training["result"][key] for key in result} == result
    assert len(training["held_out"]) == 11
    assert summary["paragraph"] in text
    assert all(finding["text"] in text for finding in summary["findings"])
    markdown = (run.path / "report/report.md").read_text(encoding="utf-8")
    assert inline(summary["paragraph"]) in markdown
    assert all(inline(finding["text"]) in markdown for finding in summary["findings"])


def test_summary_is_strict_json_even_with_values_that_are_not_finite(run: RunDir, edit_json: Edit) -> None:
    with (run.path / "sft/metrics.jsonl").open("a") as file:
        file.write('{"split": "held_out", "step": 119, "loss": NaN}\n')
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["models"]["sft"].update(perplexity=float("inf")))
    text = "".join(page_of(run).text)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads((run.path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["records"]["training"][0]["held_out"][-1]["loss"] is None
    assert "infinite" in text


def test_equal_artefacts_give_equal_bytes(run: RunDir, tmp_path: Path) -> None:
    twin = RunDir(tmp_path / "elsewhere")
    shutil.copytree(run.path, twin.path)
    write_report(run)
    write_report(twin)
    write_report(twin)
    for path in sorted(p for p in run.path.rglob("*") if p.is_file()):
        assert path.read_bytes() == (twin.path / path.relative_to(run.path)).read_bytes()


def test_markdown_images_exist(run: RunDir) -> None:
    write_report(run)
    images = re.findall(r"\]\((figures/[^)]+)\)", (run.path / "report/report.md").read_text(encoding="utf-8"))
    assert len(images) == 10
    assert all((run.path / "report" / image).exists() for image in images)


def test_a_figure_of_a_former_report_does_not_stay(run: RunDir) -> None:
    write_report(run)
    (run.path / "sft/lengths.json").unlink()
    write_report(run)
    assert not list((run.path / "report/figures").glob("*lengths*"))


# ---- runs that are not whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [["prepare"], ["sft"], ["evaluate"], ["prepare", "sft"]])
def test_any_part_of_a_run_makes_a_page(run: RunDir, kept: list[str]) -> None:
    for name in {"prepare", "sft", "evaluate"} - set(kept):
        shutil.rmtree(run.path / name)
    page = page_of(run)
    text = "".join(page.text)
    assert "What this report can't show" in text
    for name in {"prepare", "sft", "evaluate"} - set(kept):
        assert re.search(rf"Stage {name} \(\w+\) has not started\.", text)
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["status"] == "incomplete"
    assert {s["name"]: s["status"] for s in summary["records"]["stages"][0]} == {
        name: "complete" if name in kept else "not started" for name in ("prepare", "sft", "evaluate")
    }


def test_bare_manifests_make_a_page(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "bare")
    for name, kind in (("a", "data"), ("b", "train"), ("c", "eval"), ("d", "synth")):
        run.stage(name).write_manifest({"kind": kind, "status": "running"})
    text = "".join(page_of(run).text)
    assert all(f"Stage {name} has not finished" in text for name in "abcd")
    assert "recipe.yaml is missing" in text


def test_a_failed_run_shows_its_error_and_its_curves(run: RunDir, edit_json: Edit) -> None:
    shutil.rmtree(run.path / "evaluate")
    edit_json(
        run.path / "sft/manifest.json", lambda m: m.update(status="failed", error="loss is not finite", result=None)
    )
    page = page_of(run)
    assert "Stage sft failed: loss is not finite" in "".join(page.text)
    assert (run.path / "report/figures/sft-loss.svg").exists()


def test_three_models_and_two_train_stages(run: RunDir, edit_json: Edit) -> None:
    shutil.copytree(run.path / "sft", run.path / "second")
    edit_json(run.path / "second/manifest.json", lambda m: m["config"].update(start_from="sft"))

    def likelihood(value: dict[str, Any]) -> None:
        value["models"]["second"] = {"loss": 1.7001, "perplexity": 5.474, "tokens": 9523, "rows": 98}
        pair = value["pairs"][0]
        value["pairs"] += [{**pair, "b": "second"}, {**pair, "a": "sft", "b": "second", "low": -0.1, "high": 0.1}]

    edit_json(run.path / "evaluate/likelihood.json", likelihood)
    edit_json(run.path / "evaluate/manifest.json", lambda m: m["config"].update(models=["base", "sft", "second"]))
    records = replies_of(run)
    records += [{**record, "model": "second"} for record in records if record["model"] == "sft"]
    write_text(run.path / "evaluate/replies.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    page = page_of(run)
    text = " ".join("".join(page.text).split())
    assert "Training: sft" in text
    assert "Training: second" in text
    assert "the weights of stage sft" in text
    assert "second minus sft" in text
    summary = json.loads((run.path / "summary.json").read_text())
    assert [c["verdict"] for c in summary["records"]["likelihood"][0]["comparisons"]] == [
        "improved",
        "improved",
        "not shown",
    ]
    assert sum(a.get("class") == "answer" for _, a in page.elements) == 3 * 18


def test_one_model_alone(run: RunDir, edit_json: Edit) -> None:
    for name in ("likelihood", "accuracy"):
        edit_json(run.path / f"evaluate/{name}.json", lambda v: (v["models"].pop("sft"), v.update(pairs=[])))
    edit_json(run.path / "evaluate/manifest.json", lambda m: m["config"].update(models=["base"]))
    write_text(
        run.path / "evaluate/replies.jsonl",
        "".join(json.dumps(record) + "\n" for record in replies_of(run) if record["model"] == "base"),
    )
    text = " ".join("".join(page_of(run).text).split())
    assert "Held-out loss in nats per token: base" in text
    assert "(baseline)" not in text


# ---- small functions -----------------------------------------------------------------------------------------------


def test_fence_is_longer_than_any_inside() -> None:
    assert fenced("plain") == "```\nplain\n```"
    assert fenced("a ```` b", "json") == "`````json\na ```` b\n`````"


def test_checks_in_words() -> None:
    assert check_words("contains_any", ["7", "seven"]) == "contains any: 7, seven"
    assert check_words("number_equals", 80) == "number equals: 80"
    parts = [{"kind": "contains_any", "expected": ["木星"]}, {"kind": "max_words", "expected": 5}]
    assert check_words("all_of", parts) == "contains any: 木星; max words: 5"


def test_flattened_configuration() -> None:
    config = {"adapter": {"name": "lora", "rank": 16}, "targets": ["q", "v"], "sources": [{"path": "a"}], "none": None}
    assert list(flattened(config)) == [
        ("adapter.name", "lora"),
        ("adapter.rank", "16"),
        ("targets", '["q", "v"]'),
        ("sources[0].path", "a"),
        ("none", "null"),
    ]
