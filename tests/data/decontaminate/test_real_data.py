"""Contamination that is known: planted prompts, the fixtures of decon, benchmarks that hold other sets."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from posttrain.data.decontaminate.benchmarks import Benchmark, load
from posttrain.data.decontaminate.step import DecontaminateStep
from posttrain.data.formats import RowError, detect_format
from posttrain.data.places import locate
from posttrain.data.sources import Record, read
from posttrain.data.steps import Decisions
from posttrain.data.text import tokens
from posttrain.types import SftRow

from .conftest import RUN, row

pytestmark = pytest.mark.shared

Rows = Callable[[Sequence[SftRow]], Path]
PATHS = {
    "mt_bench": "fastchat/fastchat__llm_judge__data__mt_bench__question.jsonl",
    "vicuna": "fastchat/fastchat__llm_judge__data__vicuna_bench__question.jsonl",
    "alpaca_eval": "alpaca-eval/results__text_davinci_003__model_outputs.json",
    "arena_hard": "arena-hard/data__arena-hard-v0.1__question.jsonl",
    "ifeval": "ifeval/data__input_data.jsonl",
    "gsm8k": "gsm8k/grade_school_math__data__test.jsonl",
    "mt_bench_zh": "mt-bench-zh-huozi/data__mt-bench-zh__question.jsonl",
}


@pytest.fixture
def benchmark(shared_data: Path) -> Callable[[str], Benchmark]:
    return lambda name: Benchmark(name=name, path=str(shared_data / PATHS[name]))


def decide(path: Path, *benchmarks: Benchmark) -> Decisions:
    return DecontaminateStep(kind="decontaminate", benchmarks=benchmarks).decide(path, 0, RUN)


def read_rows(path: Path) -> list[SftRow]:
    """The rows of a file in any known format."""
    records = [r for part in locate(str(path), RUN.resolve).parts for r in read(part) if isinstance(r, Record)]
    known = detect_format([record.value for record in records[:100]], str(path))
    rows = []
    for record in records:
        try:
            rows.append(known.parse(record.value, record.origin, path.parent.name))
        except RowError:
            continue
    return rows


# ---- planted prompts -----------------------------------------------------------------------------------------------

PLANTED: dict[str, Callable[[str, random.Random], str]] = {
    "verbatim": lambda text, draw: text,
    "upper case": lambda text, draw: text.upper(),
    "spacing": lambda text, draw: "  \t\n ".join(text.split()),
    "without punctuation": lambda text, draw: text.translate(str.maketrans(dict.fromkeys('.,!?;:"()*`', " "))),
    "other punctuation": lambda text, draw: " ".join(
        word + draw.choice([",", " -", "!", ";", " ..."]) for word in text.split()
    ),
    "full width": lambda text, draw: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "in a longer turn": lambda text, draw: f"Please help me with this task.\n\n{text}\n\nTake your time.",
    "in one line": lambda text, draw: f'Hello there! Question: "{text}" Thank you.',
}


@pytest.mark.parametrize("how", PLANTED)
@pytest.mark.parametrize("name", ["mt_bench", "alpaca_eval"])
def test_every_planted_prompt_is_found(
    rows_file: Rows, benchmark: Callable[[str], Benchmark], name: str, how: str
) -> None:
    draw = random.Random(0)
    prompts = load(benchmark(name), RUN.resolve)
    texts = [(prompt.id, turn) for prompt in prompts for turn in prompt.turns]
    assert sum(len(tokens(text)) < 8 for _, text in texts) == {"mt_bench": 7, "alpaca_eval": 88}[name]
    rows = [row(PLANTED[how](text, draw), line=number) for number, (_, text) in enumerate(texts)]
    found = decide(rows_file(rows), benchmark(name))
    missed = [texts[number] for number in set(range(len(rows))) - set(found.rejects["row"].to_list())]
    assert missed == []
    by_row = found.tables["matches"].select("row", "prompt").rows()
    own = {(number, prompt) for number, (prompt, _) in enumerate(texts)}
    assert own <= set(by_row), "found as the prompt it is, not only as a like one"


def test_planted_in_a_later_turn_and_in_chinese(rows_file: Rows, benchmark: Callable[[str], Benchmark]) -> None:
    prompts = load(benchmark("mt_bench_zh"), RUN.resolve)
    texts = [turn for prompt in prompts for turn in prompt.turns]
    rows = [row("你好，请问", text.replace("，", " ").replace("。", "！")) for text in texts]
    assert len(decide(rows_file(rows), benchmark("mt_bench_zh")).rejects) == 160


def test_a_prompt_with_every_eighth_word_changed_is_not_found(
    rows_file: Rows, benchmark: Callable[[str], Benchmark]
) -> None:
    """What the rule can't see: the embedding tier is for that."""
    texts = [p.turns[0] for p in load(benchmark("vicuna"), RUN.resolve)]
    changed = [" ".join("zzz" if i % 8 == 7 else w for i, w in enumerate(tokens(text))) for text in texts]
    found = decide(rows_file([row(text) for text in changed]), benchmark("vicuna"))
    assert found.verdicts["value"].max() < 1.0


# ---- what is known to be contaminated ------------------------------------------------------------------------------


def test_alpaca_eval_holds_self_instruct_and_vicuna(
    shared_data: Path, rows_file: Rows, benchmark: Callable[[str], Benchmark]
) -> None:
    tasks = read_rows(shared_data / "self-instruct/human_eval__user_oriented_instructions.jsonl")
    assert len(tasks) == 252
    found = decide(rows_file(tasks), benchmark("alpaca_eval"))
    assert len(found.rejects) == 252
    [line] = found.tables["benchmarks"].rows(named=True)
    assert (line["contaminated_prompts"], line["contaminated"]) == (252, True)

    vicuna = [row(p.turns[0]) for p in load(benchmark("vicuna"), RUN.resolve)]
    found = decide(rows_file(vicuna), benchmark("alpaca_eval"))
    assert len(found.rejects) == 80
    assert found.tables["benchmarks"]["contaminated_prompts"].to_list() == [80]


def test_the_same_the_other_way_round(
    shared_data: Path, rows_file: Rows, benchmark: Callable[[str], Benchmark]
) -> None:
    outputs = [row(prompt.turns[0]) for prompt in load(benchmark("alpaca_eval"), RUN.resolve)]
    tasks = Benchmark(
        name="tasks", path=str(shared_data / "self-instruct/human_eval__user_oriented_instructions.jsonl")
    )
    found = decide(rows_file(outputs), tasks, benchmark("vicuna"))
    table = found.tables["benchmarks"].select("benchmark", "prompts", "contaminated_prompts", "contaminated")
    assert table.rows() == [("tasks", 252, 252, True), ("vicuna", 80, 80, True)]


FIXTURES = "decon-bundled-evals/tests__fixtures__"
CONTAMINATED = (
    "at_beginning",
    "at_end",
    "edge_cases",
    "middle_position",
    "mixed",
    "multiple_in_one",
    "punctuation_variation",
    "single_deletion",
    "single_edit",
    "single_insertion",
)


@pytest.mark.parametrize(
    "reference", ["question_reference", "question_answer_reference", "passage_question_answer_reference"]
)
def test_the_fixtures_of_decon(shared_data: Path, rows_file: Rows, reference: str) -> None:
    bench = Benchmark(name="decon", path=str(shared_data / f"{FIXTURES}reference__{reference}.jsonl"))
    files = [f"contaminated_{name}.jsonl" for name in CONTAMINATED] + ["long_document.jsonl", "clean.jsonl"]
    files += [f"contaminated_mixed.jsonl.{suffix}" for suffix in ("gz", "bz2", "xz", "zst")]
    rows = []
    for file in files:
        [part] = locate(str(shared_data / f"{FIXTURES}training__{file}"), RUN.resolve).parts
        rows += [row(r.value["text"], source=file) for r in read(part) if isinstance(r, Record)]
    found = decide(rows_file(rows), bench)
    flagged = set(found.tables["matches"]["source"])
    assert set(files) - flagged == {"clean.jsonl"}
    clean = [number for number, its in enumerate(rows) if its.source == "clean.jsonl"]
    assert found.verdicts["value"].gather(clean).to_list() == [0.0] * 5
    contaminated = {r["source"] for r in found.tables["benchmarks"].rows(named=True) if r["contaminated"]}
    assert contaminated == flagged


def test_the_demo_of_decon_holds_a_question_of_gsm8k(shared_data: Path, rows_file: Rows) -> None:
    lines = (shared_data / f"{FIXTURES}training__demo.jsonl").read_text().splitlines()
    bench = Benchmark(name="gsm8k", path=str(shared_data / "gsm8k/grade_school_math__data__train.jsonl"))
    found = decide(rows_file([row(json.loads(line)["text"]) for line in lines]), bench)
    assert found.rejects["row"].to_list() == [1]
    assert found.tables["matches"]["overlap"].to_list() == pytest.approx([84 / 85])


# ---- unrelated sets ------------------------------------------------------------------------------------------------

UNRELATED = (
    "llama-factory-demo/data__alpaca_en_demo.json",
    "llama-factory-demo/data__alpaca_zh_demo.json",
    "self-instruct/data__seed_tasks.jsonl",
    "belle/data__1.5M__zh_seed_tasks.json",
    "fastchat/data__dummy_conversation.json",
    "gsm8k/grade_school_math__data__train.jsonl",
    "gpteacher/Codegen__codegen-instruct.json",
    "gpteacher/Roleplay__roleplay-simple-deduped-roleplay-instruct.json",
)


@pytest.mark.slow
def test_what_is_found_in_unrelated_sets_has_been_read(
    shared_data: Path, rows_file: Rows, benchmark: Callable[[str], Benchmark]
) -> None:
    """14 matching rows among 16,780. Each shares more than half of a prompt word for word (docs/data-decontamination.md)."""
    rows = [its for path in UNRELATED for its in read_rows(shared_data / path)]
    found = decide(rows_file(rows), *map(benchmark, PATHS))
    table = found.tables["benchmarks"].filter(found.tables["benchmarks"]["matching_rows"] > 0)
    assert table.select("source", "benchmark", "contaminated_prompts", "matching_rows").rows() == [
        ("gpteacher", "mt_bench", 1, 1),
        ("gpteacher", "vicuna", 3, 7),
        ("gpteacher", "alpaca_eval", 5, 9),
        ("gpteacher", "arena_hard", 1, 1),
        ("gsm8k", "gsm8k", 2, 3),
    ]
