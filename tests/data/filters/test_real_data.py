"""The default filters on real instructions: what goes is what should, in English, in Chinese and in code."""

from __future__ import annotations

import csv
import time
from collections import Counter
from pathlib import Path

import pytest

from data_examples import only
from posttrain.data.filters.harmful import terms_in
from posttrain.data.filters.lexicon import LEXICON
from posttrain.data.filters.replies import refusal
from posttrain.data.filters.step import FilterStep, judge
from posttrain.data.formats import RowError, detect_format
from posttrain.data.places import locate
from posttrain.data.rows import rows_frame
from posttrain.data.sources import Record, read
from posttrain.types import SftRow

pytestmark = pytest.mark.shared

REMOVED = {
    "llama-factory-demo/data__alpaca_en_demo.json": {"refusal": 24, "unfinished_code_fence": 1},
    "llama-factory-demo/data__alpaca_zh_demo.json": {"refusal": 31, "unfinished_code_fence": 1},
    "llama-factory-demo/data__identity.json": {},
    "llama-factory-demo/data__glaive_toolcall_en_demo.json": {"unfinished_code_fence": 1},
    "llama-factory-demo/data__glaive_toolcall_zh_demo.json": {"unfinished_code_fence": 1},
    "gpteacher/Roleplay__roleplay-simple-deduped-roleplay-instruct.json": {},
    "belle/data__1.5M__zh_seed_tasks.json": {},
    "belle/eval__eval_set.json": {"refusal": 5, "unfinished_code_fence": 1},
    "_derived/oasst_en_100.openai_messages.jsonl": {"refusal": 2},
    "self-instruct/data__seed_tasks.jsonl": {},
    "self-instruct/human_eval__user_oriented_instructions.jsonl": {},
    "llms-from-scratch/ch07__01_main-chapter-code__instruction-data.json": {},
    "tinker-cookbook/tinker_cookbook__example_data__conversations.jsonl": {},
}
"""Every removed row of these was read by a person (docs/data-filters.md)."""


def rows_of(path: Path) -> list[SftRow]:
    records = [r for r in read(locate(str(path), lambda name: None).parts[0]) if isinstance(r, Record)]
    chosen = detect_format([record.value for record in records[:100]], str(path))
    found = []
    for record in records:
        try:
            found.append(chosen.parse(record.value, record.origin, path.stem))
        except RowError:
            continue
    return found


@pytest.mark.parametrize("name", REMOVED)
def test_what_the_defaults_remove(shared_data: Path, name: str) -> None:
    judged = judge(rows_frame(rows_of(shared_data / name)), FilterStep(kind="filter").chosen())
    assert judged.errors == []
    assert Counter(reason for reason in judged.rejects["reason"]) == REMOVED[name]


def test_programs_stay(shared_data: Path) -> None:
    rows = rows_of(shared_data / "gpteacher/Codegen__codegen-instruct.json")
    step = FilterStep(kind="filter")
    begin = time.process_time()
    judged = judge(rows_frame(rows), step.chosen())
    assert len(rows) / (time.process_time() - begin) > 300  # a tenth of what a quiet machine does
    assert [(rows[row].origin.line, reason) for row, reason in judged.rejects.select("row", "reason").iter_rows()] == [
        (17212, "mojibake")
    ]


def test_a_decoder_in_a_loop_is_removed(shared_data: Path) -> None:
    rows = rows_of(shared_data / "self-instruct/human_eval__predictions__davinci_predictions.jsonl")
    judged = judge(rows_frame(rows), FilterStep(kind="filter").chosen())
    assert len(judged.rejects) > 0.9 * len(rows)


def test_keeping_english_keeps_exercises_in_translation(shared_data: Path) -> None:
    from posttrain.data.filters.language import LanguageFilter

    step = only(LanguageFilter(keep=("en",)))
    rows = rows_of(shared_data / "llms-from-scratch/ch07__01_main-chapter-code__instruction-data.json")
    assert len(judge(rows_frame(rows), step.chosen()).rejects) <= 2
    chinese = rows_of(shared_data / "belle/data__1.5M__zh_seed_tasks.json")
    assert len(judge(rows_frame(chinese), step.chosen()).rejects) >= 0.9 * len(chinese)


def test_refusals_against_labels_of_people(shared_data: Path) -> None:
    path = shared_data / "xstest/model_completions__xstest_v2_completions_llama2orig.csv"
    with path.open(encoding="utf-8") as file:
        counts = Counter((r["final_label"], bool(refusal(r["completion"]))) for r in csv.DictReader(file))
    assert counts["2_full_refusal", True] >= 255  # of 294
    assert counts["1_full_compliance", True] <= 5  # of 101; all five do refuse, for lack of an answer


def test_safe_questions_with_hard_words_are_not_harmful(shared_data: Path) -> None:
    with (shared_data / "xstest/xstest_prompts.csv").open(encoding="utf-8") as file:
        flagged = [r for r in csv.DictReader(file) if terms_in(r["prompt"], LEXICON)]
    assert Counter(r["label"] for r in flagged)["safe"] <= 1  # of 250
