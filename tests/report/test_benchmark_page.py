"""Benchmarks on the page, in the Markdown and in summary.json; replies side by side; the figures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from posttrain.artifacts import RunDir, write_text
from posttrain.report import benchmark_replies, numbers
from posttrain.report.benchmark_figures import benchmark_figures, label_lines, radar_figure
from posttrain.report.benchmark_replies import (
    MARKDOWN_PROMPTS,
    MOST_LABELS,
    TEXT_CHARACTERS,
    Card,
    cards,
    chosen,
    fair_shares,
    filters,
    shelves,
)
from posttrain.report.benchmark_tables import (
    account_table,
    bias_table,
    category_tables,
    judges_table,
    mitigations_table,
)
from posttrain.report.benchmarks import BenchmarkFacts
from posttrain.report.facts import EvalFacts, read_run
from posttrain.report.page import cut_note, write_report
from posttrain.report.win_matrix import matrix_of_wins

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
    return next(e for e in read_run(run).evaluations if e.benchmarks)


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
    found = {b["key"]: b for e in summary["evaluations"] for b in e["benchmarks"]}
    for key, entry in found.items():
        file = json.loads((written.path / f"benchmarks/benchmarks/{key}.json").read_text(encoding="utf-8"))
        for part in ("results", "accounting", "replies", "cost", "notes", "models", "measures", "source"):
            assert entry[part] == file[part], (key, part)
        assert [{k: v for k, v in d.items() if k != "verdict"} for d in entry["differences"]] == file["differences"]
        assert {d["verdict"] for d in entry["differences"]} <= {"improved", "worse", "differs", "not shown"}
    assert found["alpaca"]["unread_judges"] == ["qwen3-8b"]
    lines = summary["overview"]["lines"]
    assert {line["label"] for line in lines} >= {"Mean rating", "Right answers", "Tokens written", "Self-BLEU"}
    for finding in summary["findings"]:
        assert " ".join(finding["text"].split()) in page.words
    shown = [f for f in summary["findings"] if f["stage"] == "benchmarks" and f["verdict"]]
    assert shown
    assert all(f["verdict"] != "not shown" for f in shown)
    assert (
        "7 benchmarks with 232 prompts were answered by base, sft, dpo and simpo. Compared with base, simpo is better in"
        in summary["paragraph"]
    )


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


def test_ids_are_unique_links_lead_somewhere_and_headings_descend(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for tag, a in page.elements if tag == "a"} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_marks_stand_only_where_a_difference_is_shown(written: RunDir, page: Page) -> None:
    marks = [a for tag, a in page.elements if (a.get("class") or "").startswith("mark ") and tag == "span"]
    summary = json.loads((written.path / "summary.json").read_text(encoding="utf-8"))
    verdicts = [e["verdict"] for line in summary["overview"]["lines"] for e in line["models"].values()]
    assert len(marks) == sum(verdict not in (None, "not shown") for verdict in verdicts) > 0


def test_equal_files_give_equal_bytes(written: RunDir, benchmark_run: RunDir) -> None:
    write_report(benchmark_run)
    for name in ("report/index.html", "report/report.md", "summary.json"):
        assert (benchmark_run.path / name).read_bytes() == (written.path / name).read_bytes()


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
    assert read_run(benchmark_run).gaps == ()
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
    found = evaluation(written)
    by = filters(found, shelves(found))
    assert by.benchmarks == tuple(b.name for b in found.benchmarks)
    assert {"math", "homonyms", "format"} <= set(by.categories)
    assert set(by.languages) == {"en", "zh"}
    assert {"gained", "both right", "both wrong", "not checked"} <= set(by.outcomes)
    prompts = [a for _, a in page.elements if a.get("class") == "prompt" and a["data-benchmark"] != "fixed prompts"]
    assert {a["data-benchmark"] for a in prompts} == set(by.benchmarks)
    assert {a["data-class"] for a in prompts} - {""} == set(by.categories)
    assert {a["data-outcome"] for a in prompts} == set(by.outcomes)


def test_the_most_frequent_verdicts_are_offered(benchmark_run: RunDir) -> None:
    found = evaluation(benchmark_run)
    few = replace(found, benchmarks=tuple(b for b in found.benchmarks if b.record.key in ("gsm8k", "form")))
    assert set(filters(few, shelves(few)).labels) == {"passed", "failed"}
    rows = rows_of(benchmark_run, "gsm8k")
    for place, row in enumerate(rows):
        row["shown"] = {"label": f"rare {place}" if place % 2 else "often", "good": None, "detail": ""}
    write_rows(benchmark_run, "gsm8k", rows)
    many = replace(few, benchmarks=(one(benchmark_run, "gsm8k"),))
    labels = filters(many, shelves(many)).labels
    assert (labels[0], len(labels)) == ("often", MOST_LABELS)


def test_gained_is_from_the_first_to_the_last_model(benchmark_run: RunDir) -> None:
    deck = {card.prompt_id: card for card in cards(one(benchmark_run, "gsm8k"))}
    rows = rows_of(benchmark_run, "gsm8k")
    good = {(row["prompt_id"], row["model"]): row["shown"] and row["shown"]["good"] for row in rows}
    words = {(True, True): "both right", (False, True): "gained", (True, False): "lost", (False, False): "both wrong"}
    for prompt, card in deck.items():
        ends = (good[prompt, "base"], good[prompt, "simpo"])
        assert card.outcome == words.get(ends, "not checked")  # type: ignore[call-overload]
    assert [model for model, _ in next(iter(deck.values())).answers] == ["base", "sft", "dpo", "simpo"]


def test_a_long_reply_is_cut_and_says_so(benchmark_run: RunDir) -> None:
    rows = rows_of(benchmark_run, "gsm8k")
    rows[0]["replies"] = ["x" * (TEXT_CHARACTERS + 234)]
    write_rows(benchmark_run, "gsm8k", rows)
    ((text, length),) = cards(one(benchmark_run, "gsm8k"))[0].answers[0][1][0].texts
    assert (text, length) == ("x" * TEXT_CHARACTERS, TEXT_CHARACTERS + 234)
    assert f"the first {TEXT_CHARACTERS:,} of {TEXT_CHARACTERS + 234:,} characters" in cut_note(length, text)
    assert cut_note(3, "all") == ""


@pytest.mark.parametrize(
    ("sizes", "room", "expected"),
    [([10, 20], 100, [10, 20]), ([10, 90, 90], 100, [10, 45, 45]), ([90, 5], 50, [45, 5]), ([], 5, []), ([7], 5, [5])],
)
def test_small_benchmarks_are_whole_and_large_ones_share_the_rest(
    sizes: list[int], room: int, expected: list[int]
) -> None:
    assert fair_shares(sizes, room) == expected


def card(category: str, size: int = 10) -> Card:
    return Card("1", category, "en", (), (), "right", (), size)


def test_what_fits_comes_from_every_category() -> None:
    deck = [*(card("a") for _ in range(8)), card("b"), card("b"), card("c")]
    assert [c.category for c in chosen(deck, 55)] == ["a", "a", "b", "b", "c"]
    assert chosen(deck, 1000) == tuple(deck)
    assert chosen(deck, 9) == ()


def test_a_large_benchmark_leaves_the_page_light(benchmark_run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"model": model, "prompt_id": str(place), "category": None, "language": "en", "sample": 0, "turns": ["Why?"],
         "replies": [f"{place} {'word ' * 200}"], "finishes": ["stop"], "tokens": 500, "failure": None, "values": {}, "shown": None}
        for place in range(200)
        for model in ("base", "sft", "dpo", "simpo")
    ]  # fmt: skip
    write_rows(benchmark_run, "alpaca", rows)
    monkeypatch.setattr(benchmark_replies, "PAGE_BYTES", 700_000)
    html = write_report(benchmark_run).read_text(encoding="utf-8")
    (shelf,) = (s for s in shelves(evaluation(benchmark_run), 700_000) if s.benchmark.record.key == "alpaca")
    assert 10 < len(shelf.cards) < 200
    assert len([c for s in shelves(evaluation(benchmark_run)) for c in s.cards]) == 24 + 30 + 200 + 40 + 30 + 80 + 8
    shown = html[html.index("<h3>AlpacaEval 2</h3>") : html.index("<h3>IFEval</h3>")]
    assert shown.count('class="prompt"') == len(shelf.cards)
    # the estimate of markup is on the safe side, and not far off
    assert 0.7 < len(shown.encode()) / sum(card.size for card in shelf.cards) <= 1.0
    words = Page(html).words
    assert f"{len(shelf.cards)} of 200 prompts are shown here" in words
    assert "all stand in benchmarks/benchmarks/alpaca.rows.jsonl" in words


def test_the_markdown_holds_a_few_prompts_of_each(written: RunDir) -> None:
    markdown = (written.path / "report/report.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^#### gsm8k", markdown, re.M)) == 0
    assert len(re.findall(r"^#### maths-\d", markdown, re.M)) == MARKDOWN_PROMPTS
    assert "5 prompts; all replies stand in `benchmarks/benchmarks/gsm8k.rows.jsonl`." in markdown


# ---- figures and tables --------------------------------------------------------------------------------------------


def test_every_benchmark_has_its_figures(written: RunDir) -> None:
    found = {b.record.key: benchmark_figures(b) for b in evaluation(written).benchmarks}
    names = {
        key: [f.name.removeprefix(f"benchmarks-{key}-") for f in (*f.results, *f.judges)] for key, f in found.items()
    }
    assert names == {
        "chat": ["rating", "win-rates", "rating-categories", "bias-1"],
        "arena": ["win_rate", "win-rates", "ratings", "bias-1"],
        "alpaca": ["win_rate"],
        "form": ["prompt_strict", "prompt_strict-categories"],
        "gsm8k": ["accuracy"],
        "safety": ["both-ways", "refusal-categories", "over_refusal-categories"],
        "variety": ["self_bleu"],
    }
    for figures in found.values():
        for figure in (*figures.results, *figures.judges):
            assert len(figure.alt) > 30
            assert (written.path / f"report/figures/{figure.name}.svg").exists()


def test_the_radar_has_one_outline_a_model_at_the_right_places(benchmark_run: RunDir) -> None:
    facts = one(benchmark_run, "chat")
    figure = radar_figure(facts, facts.measures[0])
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


def test_a_radar_needs_three_categories(benchmark_run: RunDir) -> None:
    facts = one(benchmark_run, "variety")
    assert facts.categories("self_bleu") == ("a", "b")
    assert radar_figure(facts, facts.measures[0]) is None


def test_accounts_name_every_reason(benchmark_run: RunDir) -> None:
    header, rows = account_table(one(benchmark_run, "chat"))
    assert header[:5] == ["Model", "Asked", "Answered", "Measured", "Without a value"]
    assert [row[:5] for row in rows] == [
        ["base", "24", "24", "24", "none"],
        ["sft", "24", "24", "23", "judge: parse 1"],
        ["dpo", "24", "23", "23", "timeout 1"],
        ["simpo", "24", "24", "24", "none"],
    ]


def test_tables_leave_out_what_nobody_knows(benchmark_run: RunDir, edit_json: Edit) -> None:
    edit_json(benchmark_run.path / "benchmarks/benchmarks/gsm8k.json", lambda v: v.update(cost={}))
    header, _ = account_table(one(benchmark_run, "gsm8k"))
    assert not {"Tokens read", "Tokens written", "Time"} & set(header)
    assert {"Characters", "P95"} <= set(header)
    assert [m.key for m, _ in category_tables(one(benchmark_run, "gsm8k"))] == []
    judge = one(benchmark_run, "arena").record.judge
    assert judge is not None
    header, rows = mitigations_table(judge.bias["qwen3-8b"])
    assert [row[0] for row in rows] == ["a shown first", "b shown first", "both orders"]
    assert "As labelled" not in header
    header, rows = bias_table(judge.bias["qwen3-8b"])
    assert [row[0] for row in rows] == ["all"]
    assert "Slope on length" in header


def test_judges_are_told_with_what_could_be_read(benchmark_run: RunDir) -> None:
    _, rows = judges_table([one(benchmark_run, "alpaca"), one(benchmark_run, "arena")])
    alpaca, arena = rows
    assert alpaca[3:] == ["32 of 40 (80.0%)", "empty 8", "not measured: no pairs"]
    assert arena[5].startswith("both orders agree in")


def test_the_matrix_counts_ties_as_half() -> None:
    found = matrix_of_wins(["a", "b", "c"], [[0, 2.5, 0], [1.5, 0, 0], [0, 0, 0]])
    assert found.rates_MM == ((None, 0.625, None), (0.375, None, None), (None, None, None))
    assert found.counts_MM == ((0, 4, 0), (4, 0, 0), (0, 0, 0))
    assert found.never_met == 2


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
