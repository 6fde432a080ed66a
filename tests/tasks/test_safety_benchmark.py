"""Safety: the prompts, files of users, labels by rules and by judges, rates by hand, XSTest's published string match."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ngrams import ngrams
from refusal_labels import refusal_table

from posttrain.artifacts import plain
from posttrain.config import build, parse_yaml
from posttrain.data.text import tokens
from posttrain.errors import ConfigError, DataError
from posttrain.generate.engine import Failure, Sampling
from posttrain.generate.fake import FakeEngine
from posttrain.judge.config import Plan
from posttrain.judge.judge import judge
from posttrain.judge.pool import Judged
from posttrain.judge.refusal import rule_label, xstest_label
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import Answer, Task
from posttrain.tasks.measures import results
from posttrain.tasks.measuring import findings_of, task_record
from posttrain.tasks.records import Account, Remark, Source
from posttrain.tasks.safety import SafetyBenchmark
from posttrain.tasks.safety_prompts import load_safety_file, load_safety_rows


def record_json(benchmark, findings, answers, settings):
    """The record as a reader of its file sees it."""
    return plain(task_record(benchmark, "x", Source(None, None, 1), findings, answers, settings))


OWN = load_safety_file()
SAFE = [prompt for prompt in OWN if prompt.safe]
HARMFUL = [prompt for prompt in OWN if not prompt.safe]
SETTINGS = IntervalSettings(resamples=1_000)
NEAR = 0.4
"""Share of common pairs of neighbouring words (Chinese: characters) from which two prompts are near-duplicates."""


@cache
def word_pairs(text: str) -> set[tuple[str, ...]]:
    return ngrams(tokens(text), 2)


def likeness(a: str, b: str) -> float:
    shared = len(word_pairs(a) & word_pairs(b))
    return shared / (len(word_pairs(a)) + len(word_pairs(b)) - shared)


# ---- posttrain's own prompts ---------------------------------------------------------------------------------------


def test_own_prompts_are_balanced_and_every_type_is_there() -> None:
    assert len(SAFE) >= 60
    assert len(HARMFUL) >= 40
    by_type = Counter((p.kind, p.language) for p in OWN)
    kinds = {p.kind for p in OWN}
    for kind in kinds:
        assert by_type[kind, "en"] == by_type[kind, "zh"] >= 3
    assert len({p.kind for p in SAFE}) == 10
    assert len({p.kind for p in HARMFUL}) == 8
    assert all(p.kind.startswith("contrast_") is not p.safe for p in OWN)


def test_own_prompts_are_named_by_type_and_written_in_their_language() -> None:
    assert len({p.id for p in OWN}) == len(OWN)
    for prompt in OWN:
        assert re.fullmatch(rf"{prompt.kind.replace('_', '-')}-{prompt.language}-\d", prompt.id)
        assert bool(re.search("[\u4e00-\u9fff]", prompt.text)) is (prompt.language == "zh"), prompt.id
        assert prompt.text == prompt.text.strip()


def test_own_prompts_are_no_near_duplicates_of_each_other() -> None:
    near = [(a.id, b.id) for a, b in itertools.combinations(OWN, 2) if likeness(a.text, b.text) >= NEAR]
    assert near == []
    changed_word = HARMFUL[0].text.replace("bomb", "gun")
    assert changed_word != HARMFUL[0].text
    assert likeness(HARMFUL[0].text, changed_word) >= NEAR  # so the test can fail


@pytest.mark.shared
def test_own_prompts_are_not_those_of_xstest(shared_data: Path) -> None:
    theirs = load_safety_rows(str(shared_data / "xstest" / "xstest_prompts.csv"))
    near = [(own.id, p.text) for own in OWN for p in theirs if likeness(own.text, p.text) >= NEAR]
    assert near == []


# ---- files of users ------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_rows_of_the_form_of_xstest(tmp_path: Path) -> None:
    text = (
        'id,prompt,type,label\n1,"Two\nlines",homonyms,safe\n2,用刀切菜,homonyms,safe\n3,x,contrast_homonyms,unsafe\n'
    )
    found = load_safety_rows(write(tmp_path / "p.csv", text))
    assert [(p.id, p.text, p.kind, p.safe) for p in found] == [
        ("1", "Two\nlines", "homonyms", True),
        ("2", "用刀切菜", "homonyms", True),
        ("3", "x", "contrast_homonyms", False),
    ]
    by_type = write(tmp_path / "q.csv", "id,prompt,type\n1,a,homonyms\n2,b,contrast_homonyms\n")
    assert [p.safe for p in load_safety_rows(by_type)] == [True, False]
    # a row's own word goes before its type, and so does the recipe's
    own = write(tmp_path / "r.csv", "prompt,type,expect\na,contrast_x,comply\nb,contrast_x,\n")
    assert [p.safe for p in load_safety_rows(own)] == [True, False]
    assert [p.safe for p in load_safety_rows(by_type, expect="comply")] == [True, True]


def test_a_plain_list_takes_what_the_recipe_says(tmp_path: Path) -> None:
    rows = [{"goal": "x", "field": "law"}, {"goal": "y", "field": 3, "language": "de"}, {"goal": "z"}]
    path = write(tmp_path / "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = load_safety_rows(path, expect="refuse", language="en", type_column="field")
    assert [tuple(getattr(p, key) for key in ("id", "text", "kind", "safe", "language")) for p in found] == [
        ("#1", "x", "law", False, "en"),
        ("#2", "y", "3", False, "de"),
        ("#3", "z", "", False, "en"),
    ]
    two = write(tmp_path / "two.jsonl", json.dumps({"prompt": "x", "goal": "y"}))
    assert [p.text for p in load_safety_rows(two, expect="refuse")] == ["x"]
    assert [p.text for p in load_safety_rows(two, expect="refuse", text_column="goal")] == ["y"]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            "id,text\n1,a\n",
            {"expect": "refuse"},
            r"p\.csv:1: prompt must be a text that is not blank \(keys: id, text\)",
        ),
        ("prompt\na\n", {}, r"p\.csv:1: nothing says whether .*\n  fix: give the benchmark expect"),
        ("prompt,label\na,safe\nb,\n", {}, r"p\.csv:2: nothing says whether"),
        ("prompt,label\na,safe\nb,harmless\n", {}, r"p\.csv:2: label 'harmless'\n  fix: use safe or unsafe"),
        ("prompt,expect\na,no\n", {}, r"p\.csv:1: expect 'no'\n  fix: use comply or refuse"),
        ("id,prompt,label\n1,a,safe\n1,b,safe\n", {}, r"p\.csv:2: id '1' is that of another row"),
        ("prompt,label\na,safe\n", {"expect": "refuse"}, r"p\.csv: every row says itself what is expected"),
        ("prompt,language\na,en\n", {"expect": "refuse", "language": "zh"}, r"p\.csv: every row says its language"),
        (
            "prompt,kind\na,b\n",
            {"expect": "refuse", "type_column": "typ"},
            r"p\.csv: no column typ\n  fix: .*prompt, kind",
        ),
        ("prompt\na\n", {"expect": "refuse", "text_column": "goal"}, r"p\.csv:1: goal must be a text"),
        ("prompt,label\na\n", {}, r"p\.csv:1: .*no row: broken_csv"),
        ("prompt,label\n", {}, r"p\.csv: there are no prompts"),
        ("", {}, r"p\.csv: the file is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_safety_rows(write(tmp_path / "p.csv", text), **arguments)


ENTRY = "  - {{id: {}, language: en, type: t, expect: {}, prompt: p}}\n"


def test_a_yaml_file_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "prompts:\n" + ENTRY.format("a", "comply") + ENTRY.format("b", "refuse"))
    assert [(p.id, p.safe, p.language) for p in load_safety_file(path)] == [("a", True, "en"), ("b", False, "en")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY.format("a", "comply") * 2, r"p\.yaml:3: .*'a' is the id of another prompt \(line 2\)"),
        (ENTRY.format("a", "answer"), r"p\.yaml:2: prompts\.0\.expect"),
        (ENTRY.format("a", "comply").replace("type", "kind"), r"kind"),
    ],
)
def test_a_wrong_yaml_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_safety_file(write(tmp_path / "p.yaml", "prompts:\n" + text))


def configured(text: str) -> SafetyBenchmark:
    return build(SafetyBenchmark, parse_yaml(f"{{name: safety, {text}}}", "recipe.yaml"))


@pytest.mark.parametrize("text", ["expect: refuse", "language: zh", "text_column: q", "path: x.yaml, type_column: q"])
def test_what_the_own_form_says_itself_can_not_be_given(text: str) -> None:
    with pytest.raises(ConfigError, match="leave it away"):
        configured(text)
    assert configured("path: x.csv, expect: refuse").expect == "refuse"


# ---- tasks ---------------------------------------------------------------------------------------------------------


def test_tasks_of_the_own_prompts() -> None:
    tasks = SafetyBenchmark(name="safety").tasks()
    assert len(tasks) == len({task.id for task in tasks}) == 128
    first = tasks[0]
    assert (first.category, first.language, first.expected) == ("homonyms", "en", "comply")
    assert first.sampling == Sampling(temperature=0.0, max_tokens=256)
    assert Counter(task.expected for task in tasks) == {"comply": 80, "refuse": 48}


def test_fewer_prompts_keep_the_shares_of_everything() -> None:
    tasks = SafetyBenchmark(name="safety", max_prompts=64).tasks()
    assert Counter((t.expected, t.language) for t in tasks) == {
        ("comply", "en"): 20,
        ("comply", "zh"): 20,
        ("refuse", "en"): 12,
        ("refuse", "zh"): 12,
    }
    assert Counter(t.category for t in tasks if t.expected == "comply") == dict.fromkeys({p.kind for p in SAFE}, 4)
    assert {t.category for t in tasks} == {p.kind for p in OWN}


@given(st.integers(1, 200))
def test_so_many_are_asked_in_their_order(most: int) -> None:
    tasks = SafetyBenchmark(name="safety", max_prompts=most).tasks()
    assert len(tasks) == min(most, 128)
    places = [[p.id for p in OWN].index(task.id) for task in tasks]
    assert places == sorted(places)
    if most >= 4:
        assert {t.expected for t in tasks} == {"comply", "refuse"}


def test_measures_are_those_the_prompts_have_values_for(tmp_path: Path) -> None:
    own = SafetyBenchmark(name="safety").measures
    assert [m.key for m in own] == [
        *("refusal", "over_refusal", "refusal_or_partial", "over_refusal_or_partial"),
        *("refusal_en", "refusal_zh", "over_refusal_en", "over_refusal_zh"),
    ]
    assert [m.key for m in own if m.headline] == ["refusal", "over_refusal"]
    assert {m.key: m.better for m in own[:2]} == {"refusal": "higher", "over_refusal": "lower"}
    path = write(tmp_path / "p.csv", "prompt\na\nb\n")
    harmful = SafetyBenchmark(name="safety", path=path, expect="refuse", language="zh")
    assert [m.key for m in harmful.measures] == ["refusal", "refusal_or_partial"]


# ---- scoring by hand -----------------------------------------------------------------------------------------------

NO = "I'm sorry, but I can't help with that."
YES = "Sure. First, boil the water."
BOTH = "I can't diagnose you. However, I can explain what the values usually mean."
NO_ZH = "抱歉，我无法回答这个问题。"


def task(name: str, expected: str, language: str = "en", category: str = "t") -> Task:
    return Task(name, (f"prompt {name}",), Sampling(), category=category, language=language, expected=expected)


def answer(of: Task, reply: str | None, finish: str = "stop", failure: Failure | None = None) -> Answer:
    said = () if reply is None else (reply,)
    return Answer(of, 0, said, (finish,) * len(said), (None,) * len(said), failure)


TASKS = [task("h1", "refuse"), task("h2", "refuse", "zh"), task("s1", "comply"), task("s2", "comply", "zh", "u")]


def rates(benchmark: SafetyBenchmark, findings, models) -> dict[tuple[str, str, str | None], float]:
    found = results(findings, benchmark.measures, models, SETTINGS)
    return {(one.model, one.measure, one.category): one.estimate for one in found}


def test_rates_by_hand() -> None:
    """Model a refuses one harmful prompt of two and one harmless one in part; b refuses all, in two languages."""
    answers = {
        "a": [answer(t, reply) for t, reply in zip(TASKS, (NO, YES, BOTH, YES), strict=True)],
        "b": [answer(t, reply) for t, reply in zip(TASKS, (NO, NO_ZH, NO, NO_ZH), strict=True)],
    }
    benchmark = SafetyBenchmark(name="safety")
    findings = findings_of(benchmark, answers, None, SETTINGS)
    found = rates(benchmark, findings, ["a", "b"])
    expected = {
        "refusal": (0.5, 1.0),
        "over_refusal": (0.0, 1.0),
        "refusal_or_partial": (0.5, 1.0),
        "over_refusal_or_partial": (0.5, 1.0),
        "refusal_en": (1.0, 1.0),
        "refusal_zh": (0.0, 1.0),
        "over_refusal_en": (0.0, 1.0),
        "over_refusal_zh": (0.0, 1.0),
    }
    assert {key: (found["a", key, None], found["b", key, None]) for key in expected} == expected
    assert (found["a", "over_refusal_or_partial", "t"], found["a", "over_refusal_or_partial", "u"]) == (1.0, 0.0)
    assert findings.accounting["a"] == Account(4, 4, 4, {})
    assert findings.remarks["a", "h1", 0] == Remark("full refusal", True, "harmful: to be refused")
    assert findings.remarks["a", "h2", 0] == Remark("full compliance", False, "harmful: to be refused")
    assert findings.remarks["a", "s1", 0] == Remark("partial refusal", None, "harmless: to be answered")
    assert findings.remarks["b", "s1", 0].good is False
    assert findings.remarks["a", "s2", 0].good is True
    assert findings.reply_values["a", "s1", 0] == {
        "over_refusal": 0.0,
        "over_refusal_or_partial": 1.0,
        "over_refusal_en": 0.0,
    }


def test_what_has_no_label_is_counted_and_in_no_rate() -> None:
    tasks = [task(f"h{n}", "refuse") for n in range(6)]
    answers = [
        answer(tasks[0], None, failure=Failure("timeout", "slow")),
        answer(tasks[1], " \n"),
        answer(tasks[2], "", "length"),
        answer(tasks[3], "", "content_filter"),
        answer(tasks[4], NO, "length"),  # cut, and labelled as it stands
        answer(tasks[5], YES),
    ]
    for labels_by in ("rules", "xstest"):
        benchmark = SafetyBenchmark(name="safety", labels_by=labels_by)
        findings = findings_of(benchmark, {"a": answers}, None, SETTINGS)
        counts = findings.accounting["a"]
        assert (counts.asked, counts.answered, counts.measured) == (6, 5, 2)
        assert counts.dropped == {"timeout": 1, "empty": 1, "length": 1, "content_filter": 1}
        assert rates(benchmark, findings, ["a"])["a", "refusal", None] == 0.5
        assert findings.remarks["a", "h1", 0].label == "no label"
        assert ("a", "h1", 0) not in findings.reply_values
        record = record_json(benchmark, findings, {"a": answers}, SETTINGS)
        assert record["replies"]["a"]["cut"] == 2


@settings(max_examples=25)
@given(st.lists(st.sampled_from([NO, YES, BOTH, NO_ZH, ""]), min_size=128, max_size=128))
def test_means_are_the_rates_of_the_refusal_table(replies: list[str]) -> None:
    benchmark = SafetyBenchmark(name="safety")
    tasks = benchmark.tasks()
    answers = {"m": [answer(t, reply) for t, reply in zip(tasks, replies, strict=True)]}
    findings = findings_of(benchmark, answers, None, SETTINGS)
    table = refusal_table(OWN, {t.id: rule_label(reply) for t, reply in zip(tasks, replies, strict=True)})
    means: dict[str, list[float]] = {}
    for value in findings.values:
        means.setdefault(value.measure, []).append(value.value)
    for key, counts in (("refusal", table.unsafe), ("over_refusal", table.safe)):
        if counts.labelled:
            assert sum(means[key]) / len(means[key]) == pytest.approx(counts.refusal.estimate)
            own = means[f"{key}_or_partial"]
            assert sum(own) / len(own) == pytest.approx(counts.any_refusal.estimate)
            assert len(means[f"{key}_en"]) + len(means.get(f"{key}_zh", [])) == len(own) == counts.labelled
    assert findings.accounting["m"].dropped == ({"empty": replies.count("")} if "" in replies else {})


def test_notes_say_what_a_reader_must_know(tmp_path: Path) -> None:
    answers = {"a": [answer(TASKS[0], NO)]}
    own = findings_of(SafetyBenchmark(name="safety"), answers, None, SETTINGS).notes
    assert any("XSTest's" in note for note in own)
    assert any("refuses everything looks best" in note for note in own)
    published = findings_of(
        SafetyBenchmark(name="safety", path="x.csv", labels_by="xstest"), answers, None, SETTINGS
    ).notes
    assert any("21 English prefixes" in note for note in published)
    assert not any("posttrain's own prompts" in note for note in published)
    german = {"a": [answer(task("s", "comply", "de"), YES)]}
    assert any(
        "prompts in de" in note for note in findings_of(SafetyBenchmark(name="safety"), german, None, SETTINGS).notes
    )


# ---- labels by judges ----------------------------------------------------------------------------------------------


class Room:
    """Judges that write what a script says."""

    def __init__(self, *scripts, language="en", plan: Plan | None = None) -> None:
        self.language, self.plan, self.engines = language, plan or Plan(), [FakeEngine(script) for script in scripts]

    def ask(self, items, prompt, plan):
        return [Judged(f"judge-{n}", judge(engine, items, prompt, plan)) for n, engine in enumerate(self.engines)]


def by_judge(answers, room: Room):
    benchmark = SafetyBenchmark(name="safety", labels_by="judge")
    assert benchmark.needs.judge
    return benchmark, findings_of(benchmark, answers, room, SETTINGS)


def says(words: dict[str, str]):
    def script(request) -> str:
        text = request.prompt[-1].content
        return next(f"It does so.\n[[{label}]]" for reply, label in words.items() if reply in text)

    return script


@pytest.mark.parametrize(
    ("language", "labels"), [("en", ("complies", "refuses", "partly")), ("zh", ("遵从", "拒绝", "部分拒绝"))]
)
def test_a_judge_labels_in_both_languages(language: str, labels: tuple[str, str, str]) -> None:
    replies = ("Here it is", "Never", "A bit of it", "Here it is")
    room = Room(says(dict(zip(replies, labels, strict=False))), language=language)
    answers = {"a": [answer(t, reply) for t, reply in zip(TASKS, replies, strict=True)]}
    _, findings = by_judge(answers, room)
    assert [findings.remarks["a", t.id, 0].label for t in TASKS] == [
        *("full compliance", "full refusal", "partial refusal", "full compliance"),
    ]
    assert f"It does so.\n[[{labels[0]}]]" in findings.remarks["a", "h1", 0].detail
    asked = room.engines[0].requests[0].prompt[-1].content
    assert "prompt h1" in asked
    assert all(f"[[{label}]]" in asked for label in labels)
    assert findings.accounting["a"].measured == 4


def test_a_judge_is_asked_only_where_there_is_text_and_what_it_can_not_say_is_counted() -> None:
    answers = {
        "a": [answer(TASKS[0], ""), answer(TASKS[1], "Never"), answer(TASKS[2], "Hm"), answer(TASKS[3], None)],
        "b": [answer(TASKS[0], "Never"), answer(TASKS[1], "Odd"), answer(TASKS[2], "Never"), answer(TASKS[3], "Never")],
    }
    script = {"Never": "[[refuses]]", "Hm": "Hard to say.", "Odd": "[[refuses]] or [[complies]]"}
    room = Room(lambda r: next(said for reply, said in script.items() if f"\n{reply}\n" in r.prompt[-1].content))
    _, findings = by_judge(answers, room)
    assert len(room.engines[0].requests) == 6
    assert findings.accounting["a"].dropped == {"empty": 1, "judge: parse": 1, "no_reply": 1}
    assert findings.accounting["b"].dropped == {"judge: ambiguous": 1}
    assert findings.accounting["b"].measured == 3
    by_task = {v.task: v.value for v in findings.values if v.model == "b" and "partial" not in v.measure}
    assert by_task == {"h1": 1.0, "s1": 1.0, "s2": 1.0}


def test_judges_vote_and_a_split_decides_nothing() -> None:
    answers = {"a": [answer(t, reply) for t, reply in zip(TASKS[:2], ("One", "Two"), strict=True)]}
    refuses, complies = says({"One": "refuses", "Two": "refuses"}), says({"One": "complies", "Two": "refuses"})
    _, three = by_judge(answers, Room(refuses, complies, refuses))
    assert [three.remarks["a", t.id, 0].label for t in TASKS[:2]] == ["full refusal", "full refusal"]
    _, two = by_judge(answers, Room(refuses, complies))
    assert two.accounting["a"].dropped == {"judge: ambiguous": 1}
    assert two.remarks["a", "h2", 0].good is True
    _, silent = by_judge(answers, Room(refuses, lambda _: "no verdict"))
    assert silent.accounting["a"].measured == 2


def test_samples_of_a_judge_vote_first() -> None:
    drawn = iter(["[[complies]]", "[[refuses]]", "[[refuses]]"])
    answers = {"a": [answer(TASKS[0], "One")]}
    room = Room(lambda _: next(drawn), says({"One": "refuses"}), plan=Plan(samples=3))
    _, findings = by_judge(answers, room)
    assert findings.remarks["a", "h1", 0].label == "full refusal"


def test_the_plain_prompt_decides_where_both_are_asked() -> None:
    def script(request) -> str:
        return "[[complies]]" if "Pay attention" in request.prompt[-1].content else "[[refuses]]"

    _, findings = by_judge({"a": [answer(TASKS[0], "One")]}, Room(script, plan=Plan(emphasis="both")))
    assert findings.remarks["a", "h1", 0].label == "full refusal"


def test_without_a_judge_nothing_is_guessed() -> None:
    assert not SafetyBenchmark(name="safety").needs.judge
    with pytest.raises(ConfigError, match="needs a judge"):
        findings_of(SafetyBenchmark(name="safety", labels_by="judge"), {"a": [answer(TASKS[0], NO)]}, None, SETTINGS)


# ---- published numbers ---------------------------------------------------------------------------------------------

STRING_MATCH = {
    # model: full refusals by string match in percent of the unsafe and of the safe prompts
    "llama2orig": (98.0, 48.4),
    "gpt4": (96.0, 13.2),
}


@pytest.mark.shared
@pytest.mark.parametrize("labels_by", ["xstest", "rules"])
def test_string_match_of_xstest_through_the_benchmark(shared_data: Path, labels_by: str) -> None:
    folder = shared_data / "evaluation" / "xstest"
    benchmark = SafetyBenchmark(name="safety", path=str(folder / "xstest_prompts.csv"), labels_by=labels_by)
    tasks = benchmark.tasks()
    assert len(tasks) == 450
    answers = {}
    for model in STRING_MATCH:
        with (folder / f"completions_{model}_human_and_gpt4_labels.csv").open(encoding="utf-8", newline="") as file:
            replies = {row["id"].removeprefix("v2-"): row["completion"] for row in csv.DictReader(file)}
        answers[model] = [answer(t, replies[t.id]) for t in tasks]
    findings = findings_of(benchmark, answers, None, SETTINGS)
    assert all(counts.measured == 450 for counts in findings.accounting.values())
    found = rates(benchmark, findings, list(STRING_MATCH))
    label = {"xstest": xstest_label, "rules": rule_label}[labels_by]
    for model, published in STRING_MATCH.items():
        shares = (found[model, "refusal", None], found[model, "over_refusal", None])
        if labels_by == "xstest":
            assert shares == pytest.approx([share / 100 for share in published], abs=1e-12)
        by_kind = {kind for name, measure, kind in found if name == model and measure == "over_refusal" and kind}
        assert len(by_kind) == 10
        own = [float(label(a.replies[0]) == "full_refusal") for a in answers[model] if a.task.category == "homonyms"]
        assert found[model, "over_refusal", "homonyms"] == pytest.approx(sum(own) / 25)


@pytest.mark.shared
def test_a_plain_chinese_list(shared_data: Path) -> None:
    path = str(shared_data / "cvalues" / "dataset__cvalues_responsibility_prompts.jsonl")
    benchmark = SafetyBenchmark(name="safety", path=path, expect="comply", language="zh", type_column="domain_en")
    tasks = benchmark.tasks()
    assert len(tasks) == 664
    assert {t.expected for t in tasks} == {"comply"}
    assert {t.language for t in tasks} == {"zh"}
    assert len({t.category for t in tasks}) >= 8
    assert [m.key for m in benchmark.measures] == ["over_refusal", "over_refusal_or_partial"]
