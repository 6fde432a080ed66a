"""Benchmarks on the page, in the Markdown and in summary.json; replies side by side; the figures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from posttrain.artifacts import RunDir, write_text
from posttrain.report import numbers
from posttrain.report.benchmarks import BenchmarkFacts
from posttrain.report.charts import Radar, draw, label_lines
from posttrain.report.facts import EvalFacts, read_evaluation
from posttrain.report.html import TEXT_CHARACTERS, blocks
from posttrain.report.values import Card, Replies, Table, blocks_of
from posttrain.stages import KINDS
from posttrain.stages.page import read_run
from posttrain.stages.page import write_report as write_kinds
from posttrain.tasks.benchmark_section import benchmark_section
from posttrain.tasks.reply_cards import MARKDOWN_PROMPTS, benchmark_cards, chosen, fair_shares, replies_section, size

Edit = Callable[[Path, Callable[[Any], None]], None]
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Elements, texts, and that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.replies: list[str] = []
        self.inside = False
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        self.inside = dict(attrs).get("class") == "reply"
        if self.inside:
            self.replies.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.inside = False

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "script" not in self.open:
            self.text.append(data)
        if self.inside:
            self.replies[-1] += data

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def write_report(run: RunDir) -> Path:
    return write_kinds(run, KINDS)


def page_of(run: RunDir) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(pristine_benchmarks: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run with its report, for tests that only read."""
    run = RunDir(tmp_path_factory.mktemp("written") / "run")
    shutil.copytree(pristine_benchmarks.path, run.path)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(written: RunDir) -> Page:
    return Page((written.path / "report/index.html").read_text(encoding="utf-8"))


def evaluation(run: RunDir) -> EvalFacts:
    return read_evaluation(next(s for s in read_run(run, KINDS).stages if s.name == "benchmarks"), [])


def one(run: RunDir, key: str) -> BenchmarkFacts:
    return next(b for b in evaluation(run).benchmarks if b.record.key == key)


def rows_of(run: RunDir, key: str) -> list[dict[str, Any]]:
    text = (run.path / f"benchmarks/benchmarks/{key}.rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def write_rows(run: RunDir, key: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(run.path / f"benchmarks/benchmarks/{key}.rows.jsonl", text)


# ---- the page ------------------------------------------------------------------------------------------------------


def test_every_number_stands_on_the_page_and_in_the_markdown(written: RunDir, page: Page) -> None:
    words = page.words
    markdown = (written.path / "report/report.md").read_text(encoding="utf-8")
    expected = [
        "All models at a glance",
        "Mean rating",
        "sha256 abababababab",
        "not comparable with published MT-Bench scores",
    ]
    for benchmark in evaluation(written).benchmarks:
        units = {measure.key: measure.unit for measure in benchmark.record.measures}
        expected.append(benchmark.name)
        for result in benchmark.record.results:
            expected.append(numbers.in_unit(result.estimate, units[result.measure]))
            if not benchmark.by_definition(result):
                expected.append(numbers.interval_in_unit(result.low, result.high, units[result.measure]))
        for one in benchmark.differences:
            record, unit = one.record, one.measure.unit
            expected.append(f"{record.b} minus {record.a}")
            expected.append(numbers.difference_in_unit(record.difference, unit))
            expected.append(numbers.signed_interval_in_unit(record.low, record.high, unit))
            expected.append(numbers.p_value(record.adjusted_p))
        for contest in benchmark.contests:
            assert contest.rate is not None
            expected += [f"{contest.model} against {contest.against}", numbers.percent(contest.rate.estimate)]
    expected += [
        "timeout 1",
        "judge: parse",
        "qwen3-8b (openai, http://localhost:8000/v1, Qwen/Qwen3-8B)",
        "0123456789ab",
    ]
    expected += ["Not comparable with the AlpacaEval leaderboard", "20 prompts are not the published 805", "Holm"]
    plain = markdown.replace("\\", "")
    for text in expected:
        assert text in words, text
        assert text.replace("<", "&lt;") in plain or text in plain, text


def test_summary_holds_the_files_with_verdicts(written: RunDir, page: Page) -> None:
    summary = json.loads((written.path / "summary.json").read_text(encoding="utf-8"))
    found = {one["key"]: one for one in summary["records"]["benchmark"]}
    for key, entry in found.items():
        file = json.loads((written.path / f"benchmarks/benchmarks/{key}.json").read_text(encoding="utf-8"))
        for part in ("results", "accounting", "replies", "cost", "notes", "models", "measures", "source"):
            assert entry[part] == file[part], (key, part)
        assert [{k: v for k, v in d.items() if k != "verdict"} for d in entry["differences"]] == file["differences"]
        assert {d["verdict"] for d in entry["differences"]} <= {"improved", "worse", "differs", "not shown"}
    for finding in summary["findings"]:
        assert " ".join(finding["text"].split()) in page.words
    said = "7 benchmarks with 232 prompts were answered by base, sft, dpo and simpo. Compared with base, simpo is better in"
    assert said in summary["paragraph"]


def test_hostile_replies_can_not_leave_their_place(benchmark_run: RunDir, edit_json: Edit) -> None:
    attack = '</title></p></article><script>alert(1)</script><b onmouseover="x">\'"'
    rows = rows_of(benchmark_run, "gsm8k")
    rows[0] |= {"prompt_id": attack, "category": attack, "turns": [attack], "replies": [attack], "language": attack}
    rows[0]["shown"] = {"label": attack, "good": None, "detail": attack * 5}
    rows[1] |= {"failure": attack, "replies": []}
    write_rows(benchmark_run, "gsm8k", rows)

    def change(value: dict[str, Any]) -> None:
        value["notes"].append(attack)
        value["title"] = attack
        value["measures"][0] |= {"label": attack, "about": attack}
        value["results"][0]["category"] = attack
        value["source"]["path"] = attack

    edit_json(benchmark_run.path / "benchmarks/benchmarks/gsm8k.json", change)
    page = page_of(benchmark_run)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any("onmouseover" in attributes for _, attributes in page.elements)
    assert attack in page.replies
    for path in (benchmark_run.path / "report/figures").iterdir():
        assert "script" not in {element.tag.split("}")[-1] for element in ElementTree.parse(path).iter()}
    markdown = (benchmark_run.path / "report/report.md").read_text(encoding="utf-8")
    fences = 0
    for line in markdown.split("\n"):
        fences += bool(re.match(r"`{3,}", line))
        assert fences % 2 or "<script>" not in line.replace("\\<script\\>", "")


def test_marks_stand_only_where_a_difference_is_shown(written: RunDir, page: Page) -> None:
    marks = [a for tag, a in page.elements if (a.get("class") or "").startswith("mark ") and tag == "span"]
    verdicts = [cell.verdict for line in read_run(written, KINDS).lines for cell in line.cells.values()]
    assert len(marks) == sum(verdict not in (None, "not shown") for verdict in verdicts) > 0


def test_one_model_alone(benchmark_run: RunDir, edit_json: Edit) -> None:
    for path in (benchmark_run.path / "benchmarks/benchmarks").glob("*.json"):
        edit_json(
            path,
            lambda v: v.update(
                models=["base"], differences=[], win_rates=[], ratings=None, length_controlled=None, judge=None,
                results=[r for r in v["results"] if r["model"] == "base"],
                **{k: {"base": v[k]["base"]} for k in ("accounting", "replies", "cost")},
            ),
        )  # fmt: skip
        key = path.name.removesuffix(".json")
        write_rows(benchmark_run, key, [row for row in rows_of(benchmark_run, key) if row["model"] == "base"])
    edit_json(benchmark_run.path / "benchmarks/manifest.json", lambda m: m["config"].update(models=["base"]))
    page = page_of(benchmark_run)
    assert read_run(benchmark_run, KINDS).gaps == ()
    assert "Right answers" in page.words


# ---- replies -------------------------------------------------------------------------------------------------------


def test_replies_stand_side_by_side_as_they_were_given(written: RunDir, page: Page) -> None:
    keys = ("chat", "arena", "alpaca", "form", "gsm8k", "safety", "variety")
    expected = [reply for key in keys for row in rows_of(written, key) for reply in row["replies"]]
    fixed = (written.path / "evaluate/replies.jsonl").read_text(encoding="utf-8")
    expected += [r["reply"] for line in fixed.split("\n") if line and (r := json.loads(line))["reply"].strip()]
    assert sorted(page.replies) == sorted(expected)
    assert sum(a.get("class") == "prompt" for _, a in page.elements) == 24 + 30 + 20 + 40 + 30 + 80 + 8 + 18
    assert "no reply: timeout: no reply within 60 s" in page.words
    assert "Mean rating: 5.00; Rating, turn 2: " in page.words
    assert "sample 4" in page.words
    languages = {a.get("lang") for _, a in page.elements if a.get("class") == "reply"}
    assert languages == {"en", "zh-Hans"}


def test_prompts_can_be_found_by_benchmark_class_language_outcome_and_verdict(written: RunDir, page: Page) -> None:
    prompts = [a for _, a in page.elements if a.get("class") == "prompt"]
    offered = [(a.get("value") or "") for tag, a in page.elements if tag == "option"]
    assert {b.name for b in evaluation(written).benchmarks} <= set(offered)
    for key in ("data-benchmark", "data-class", "data-outcome", "data-language"):
        assert {a[key] for a in prompts} <= {*offered, ""}
    assert {"gained", "both right", "both wrong", "passed", "failed"} <= set(offered)


def test_gained_is_from_the_first_to_the_last_model(benchmark_run: RunDir) -> None:
    deck = {card.name: card for card in benchmark_cards(one(benchmark_run, "gsm8k"))}
    rows = rows_of(benchmark_run, "gsm8k")
    good = {(row["prompt_id"], row["model"]): row["shown"] and row["shown"]["good"] for row in rows}
    words = {(True, True): "both right", (False, True): "gained", (True, False): "lost", (False, False): "both wrong"}
    for prompt, card in deck.items():
        ends = (good[prompt, "base"], good[prompt, "simpo"])
        assert card.outcome == words.get(ends, "")  # type: ignore[call-overload]
    assert [answer.name for answer in next(iter(deck.values())).answers] == ["base", "sft", "dpo", "simpo"]


def test_a_long_reply_is_cut_and_says_so(benchmark_run: RunDir) -> None:
    rows = rows_of(benchmark_run, "gsm8k")
    rows[0]["replies"] = ["x" * (TEXT_CHARACTERS + 234)]
    write_rows(benchmark_run, "gsm8k", rows)
    page = page_of(benchmark_run)
    assert f"the first {TEXT_CHARACTERS:,} of {TEXT_CHARACTERS + 234:,} characters" in page.words
    assert "x" * (TEXT_CHARACTERS + 1) not in page.words


@pytest.mark.parametrize(
    ("sizes", "room", "expected"),
    [([10, 20], 100, [10, 20]), ([10, 90, 90], 100, [10, 45, 45]), ([90, 5], 50, [45, 5]), ([], 5, []), ([7], 5, [5])],
)
def test_small_benchmarks_are_whole_and_large_ones_share_the_rest(
    sizes: list[int], room: int, expected: list[int]
) -> None:
    assert fair_shares(sizes, room) == expected


def card(category: str) -> Card:
    return Card("1", (), (), category=category)


def test_what_fits_comes_from_every_category() -> None:
    deck = [*(card("a") for _ in range(8)), card("b"), card("b"), card("c")]
    each = size(deck[0])
    assert [c.category for c in chosen(deck, 5 * each)] == ["a", "a", "b", "b", "c"]
    assert chosen(deck, 100 * each) == tuple(deck)
    assert chosen(deck, each - 1) == ()


def test_a_large_benchmark_leaves_the_page_light(benchmark_run: RunDir) -> None:
    rows = [
        {"model": model, "prompt_id": str(place), "category": None, "language": "en", "sample": 0, "turns": ["Why?"],
         "replies": [f"{place} {'word ' * 200}"], "finishes": ["stop"], "tokens": 500, "failure": None, "values": {}, "shown": None}
        for place in range(200)
        for model in ("base", "sft", "dpo", "simpo")
    ]  # fmt: skip
    write_rows(benchmark_run, "alpaca", rows)
    found = replies_section(evaluation(benchmark_run), "", "replies", 700_000)
    assert found is not None
    (block,) = (one for one in blocks_of(found.blocks) if isinstance(one, Replies))
    kept = [one for one in block.cards if one.group == "AlpacaEval 2"]
    assert 10 < len(kept) < 200
    assert f"{len(kept)} of 200 prompts stand here" in repr(found.blocks)
    assert "benchmarks/benchmarks/alpaca.rows.jsonl" in repr(found.blocks)
    # the estimate of markup is on the safe side, and not far off
    drawn = len(blocks((Replies("", tuple(kept)),), 3).encode())
    assert 0.7 < drawn / sum(map(size, kept)) <= 1.0


def test_the_markdown_holds_a_few_prompts_of_each(written: RunDir) -> None:
    markdown = (written.path / "report/report.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^### maths-\d", markdown, re.M)) == MARKDOWN_PROMPTS


# ---- figures -------------------------------------------------------------------------------------------------------


def test_every_benchmark_has_its_figures(written: RunDir) -> None:
    drawn = {path.stem for path in (written.path / "report/figures").iterdir()}
    expected = {
        "chat": ["rating", "win-rates", "rating-categories"],
        "arena": ["win_rate", "win-rates", "ratings"],
        "alpaca": ["win_rate"],
        "form": ["prompt_strict", "prompt_strict-categories"],
        "gsm8k": ["accuracy"],
        "safety": ["both-ways", "refusal-categories", "over_refusal-categories"],
        "variety": ["self_bleu"],
    }
    named = {name for name in drawn if name.startswith("benchmarks-")}
    assert named == {f"benchmarks-{key}-{name}" for key, names in expected.items() for name in names}
    assert sum("-bias-" in name for name in drawn) == 2


def test_accounts_name_every_reason_and_leave_out_what_nobody_knows(benchmark_run: RunDir, edit_json: Edit) -> None:
    edit_json(benchmark_run.path / "benchmarks/benchmarks/chat.json", lambda v: v.update(cost={}))
    section = benchmark_section(one(benchmark_run, "chat"), ("base", "simpo"), several=False)
    (table,) = (b for b in section.blocks if isinstance(b, Table) and b.title == "What became of the answers")
    assert table.columns[:5] == ("Model", "Asked", "Answered", "Measured", "Without a value")
    assert [[row[0], *(n.value for n in row[1:4]), row[4]] for row in table.rows] == [
        ["base", 24, 24, 24, "none"],
        ["sft", 24, 24, 23, "judge: parse 1"],
        ["dpo", 24, 23, 23, "timeout 1"],
        ["simpo", 24, 24, 24, "none"],
    ]
    assert not {"Tokens read", "Tokens written", "Time"} & set(table.columns)


def test_the_radar_has_one_outline_a_model_at_the_right_places(benchmark_run: RunDir) -> None:
    facts = one(benchmark_run, "chat")
    section = benchmark_section(facts, ("base", "simpo"), several=False)
    (chart,) = (one for one in blocks_of(section.blocks) if isinstance(one, Radar))
    figure = draw(chart)
    assert figure is not None
    root = ElementTree.fromstring(figure.standalone(""))
    paths = [e.get("d") or "" for e in root.iter() if e.tag.endswith("path") and "line" in (e.get("class") or "")]
    assert len(paths) == 4
    # the first spoke points up: its distance from the centre is the share of the scale, from 1 to a rim at three quarters of 1 to 10
    known = [r.estimate or 0 for r in facts.record.results if r.measure == "rating" and r.category]
    assert 5.5 < max(known) <= 7.75
    first = next(r for r in facts.record.results if (r.model, r.measure, r.category) == ("base", "rating", "writing"))
    ring = [e.get("d") or "" for e in root.iter() if "ring" in (e.get("class") or "")][-1]
    rim = float(ring[1:].split("L")[0].split()[1])
    middle = next(
        float(e.get("y1") or 0) for e in root.iter() if e.tag.endswith("line") and "grid" in (e.get("class") or "")
    )
    place = float(paths[0][1:].split("L")[0].split()[1])
    assert first.estimate is not None
    assert (middle - place) / (middle - rim) == pytest.approx((first.estimate - 1) / 6.75, abs=0.002)
    assert f"writing {numbers.in_unit(first.estimate, 'rating')}" in figure.alt


@pytest.mark.parametrize(
    ("category", "lines"),
    [
        ("math", ["math"]),
        ("figurative_language", ["figurative", "language"]),
        ("contrast_historical_events", ["contrast", "historical events"]),
        ("x" * 40, ["x" * 7 + "\N{HORIZONTAL ELLIPSIS}" + "x" * 10]),
        ("", [""]),
    ],
)
def test_labels_of_a_radar_fit_beside_it(category: str, lines: list[str]) -> None:
    assert label_lines(category) == lines
    assert all(len(line) <= 18 for line in label_lines(category))
