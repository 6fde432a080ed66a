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
from posttrain.report.markdown import fenced, inline
from posttrain.stages import KINDS
from posttrain.stages.page import flattened
from posttrain.stages.page import write_report as write_kinds
from posttrain.tasks.checks import Check, wanted

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
    text = (run.path / "evaluate/prompts.rows.jsonl").read_text(encoding="utf-8")
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
        "evaluate-likelihood-differences.svg",
        "evaluate-likelihood-rows-base-sft.svg",
        "evaluate-prompts-accuracy.svg",
        "evaluate-prompts-accuracy-categories.svg",
        "evaluate-prompts-differences.svg",
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
    expected = sorted(record["replies"][0] for record in replies_of(run) if record["replies"][0].strip())
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
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["differences"][0].update(b=attack))
    write_text(run.path / "recipe.yaml", f"name: {json.dumps(attack)}\nmodel: {json.dumps(attack)}\nstages: {{}}\n")
    page = page_of(run)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any("onmouseover" in attributes for _, attributes in page.elements)
    for path in (run.path / "report/figures").iterdir():
        assert "script" not in {element.tag.split("}")[-1] for element in ElementTree.parse(path).iter()}


def test_chinese_is_marked_as_chinese(run: RunDir) -> None:
    page = page_of(run)
    languages = [a.get("lang") for _, a in page.elements if a.get("class") == "reply"]
    assert languages.count("zh-Hans") == sum(r["language"] == "zh" and bool(r["replies"][0]) for r in replies_of(run))
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
    assert len(drawings) == 12 + 2  # two headlines show their difference
    assert all(a.get("role") == "img" and len(a.get("aria-label") or "") > 30 for a in drawings)


def test_numbers_on_the_page_equal_the_artefacts(run: RunDir) -> None:
    text = " ".join("".join(page_of(run).text).split())
    markdown = (run.path / "report/report.md").read_text(encoding="utf-8")
    unit = lambda record, one: next(m["unit"] for m in record["measures"] if m["key"] == one["measure"])  # noqa: E731
    read = lambda name: json.loads((run.path / name).read_text(encoding="utf-8"))  # noqa: E731
    records, manifest = [read(f"evaluate/{key}.json") for key in ("likelihood", "prompts")], read("sft/manifest.json")
    lengths, ledger = read("sft/lengths.json"), read("prepare/ledger.json")
    expected = [
        *(numbers.in_unit(one["estimate"], unit(record, one)) for record in records for one in record["results"]),
        numbers.signed_interval_in_unit(
            records[0]["differences"][0]["low"], records[0]["differences"][0]["high"], "number"
        ),
        numbers.signed_interval_in_unit(
            records[1]["differences"][0]["low"], records[1]["differences"][0]["high"], "share"
        ),
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
    for key in ("likelihood", "prompts"):
        record = json.loads((run.path / f"evaluate/{key}.json").read_text())
        (found,) = summary["records"][key]
        assert found["results"] == record["results"]
        for told, written in zip(found["differences"], record["differences"], strict=True):
            assert {name: told[name] for name in written} == written
            assert told["verdict"]
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
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["results"][1].update(estimate=float("inf")))
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
    assert len(images) == 12
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


# ---- small functions -----------------------------------------------------------------------------------------------


def test_fence_is_longer_than_any_inside() -> None:
    assert fenced("plain") == "```\nplain\n```"
    assert fenced("a ```` b", "json") == "`````json\na ```` b\n`````"


def test_checks_in_words() -> None:
    assert wanted(Check(kind="number_equals", expected=80)) == "number equals: 80"
    parts = (Check(kind="contains_any", expected=("木星",)), Check(kind="max_words", expected=5))
    assert wanted(Check(kind="all_of", expected=parts)) == "contains any: 木星; max words: 5"


def test_flattened_configuration() -> None:
    config = {"adapter": {"name": "lora", "rank": 16}, "targets": ["q", "v"], "sources": [{"path": "a"}], "none": None}
    assert list(flattened(config)) == [
        ("adapter.name", "lora"),
        ("adapter.rank", "16"),
        ("targets", '["q", "v"]'),
        ("sources[0].path", "a"),
        ("none", "null"),
    ]
