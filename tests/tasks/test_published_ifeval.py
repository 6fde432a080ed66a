"""IFEval of GPT-4's published responses against two published runs of the original code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ifeval_scores import InstructionVerdicts, instruction_scores, instruction_verdicts, load_replies

from posttrain.tasks.ifeval_rules.instructions import INSTRUCTIONS
from posttrain.tasks.ifeval_rules.scoring import (
    RANDOM_KEYS,
    load_instruction_prompts,
)

pytestmark = pytest.mark.shared

Run = dict[str, dict]


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "evaluation" / "ifeval"


@pytest.fixture(scope="module")
def texts(folder: Path) -> dict[int, str]:
    return {prompt.key: prompt.text for prompt in load_instruction_prompts(folder / "input_data.jsonl")}


@pytest.fixture(scope="module")
def found(folder: Path) -> InstructionVerdicts:
    prompts = load_instruction_prompts(folder / "input_data.jsonl")
    return instruction_verdicts(prompts, load_replies(folder / "gpt4_responses.jsonl"))


def published(folder: Path, kind: str, run: str) -> Run:
    path = folder / f"reference_eval_{kind}_run{run}_540.jsonl"
    return {r["prompt"]: r for r in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def test_every_published_prompt_is_read_and_every_type_is_asked(folder: Path) -> None:
    prompts = load_instruction_prompts(folder / "input_data.jsonl")
    assert len(prompts) == 541
    assert sum(len(p.instructions) for p in prompts) == 834
    assert {each.type for p in prompts for each in p.instructions} == set(INSTRUCTIONS)


def test_one_response_is_to_another_wording_and_counts_as_missing(found: InstructionVerdicts) -> None:
    assert (len(found.verdicts), found.missing, len(found.unknown), found.empty) == (540, (2785,), 1, ())


@pytest.mark.parametrize("kind", ["strict", "loose"])
def test_verdicts_are_those_of_the_published_runs(
    kind: str, folder: Path, texts: dict[int, str], found: InstructionVerdicts
) -> None:
    run_a, run_b = (published(folder, kind, run) for run in "AB")
    compared = 0
    for verdict in found.verdicts:
        a, b = run_a[texts[verdict.key]], run_b[texts[verdict.key]]
        assert a["instruction_id_list"] == list(verdict.types)
        if a != b:
            assert verdict.key in RANDOM_KEYS
            continue
        compared += 1
        ours = list(verdict.strict if kind == "strict" else verdict.loose)
        assert (verdict.key, ours, all(ours)) == (
            verdict.key,
            a["follow_instruction_list"],
            a["follow_all_instructions"],
        )
    assert compared == (538 if kind == "strict" else 539)


def test_the_random_keys_are_decided_by_what_the_prompt_asks(found: InstructionVerdicts, folder: Path) -> None:
    replies = load_replies(folder / "gpt4_responses.jsonl")
    text = {prompt.key: prompt.text for prompt in load_instruction_prompts(folder / "input_data.jsonl")}
    by_key = {verdict.key: verdict for verdict in found.verdicts}
    assert set(by_key) >= RANDOM_KEYS
    for key, mark, limit in ((1122, "#", 4), (1129, "!", 6)):
        asked = by_key[key].types.index("keywords:letter_frequency")
        assert by_key[key].strict[asked] == (replies[text[key]].count(mark) >= limit)


def test_scores_lie_within_what_the_random_keys_allow(folder: Path, found: InstructionVerdicts) -> None:
    scores = instruction_scores(found)
    for kind, ours in (("strict", scores.prompt_strict), ("loose", scores.prompt_loose)):
        shares = [
            sum(r["follow_all_instructions"] for r in published(folder, kind, run).values()) / 540 for run in "AB"
        ]
        assert min(shares) - 1 / 540 - 1e-12 <= ours.estimate <= max(shares) + 1 / 540 + 1e-12
        assert ours.low < min(shares) < max(shares) < ours.high
    assert scores.instruction_strict.low < scores.instruction_strict.estimate < scores.instruction_strict.high
    assert sum(each.instructions for each in scores.by_type) == 832


def test_verdicts_are_the_same_every_time(folder: Path, found: InstructionVerdicts) -> None:
    prompts = load_instruction_prompts(folder / "input_data.jsonl")
    assert instruction_verdicts(prompts, load_replies(folder / "gpt4_responses.jsonl")) == found


def test_replies_by_key_give_the_same(folder: Path, found: InstructionVerdicts) -> None:
    prompts = load_instruction_prompts(folder / "input_data.jsonl")
    replies = load_replies(folder / "gpt4_responses.jsonl")
    by_key = {p.key: replies[p.text] for p in prompts if p.text in replies}
    assert instruction_verdicts(prompts, by_key).verdicts == found.verdicts
