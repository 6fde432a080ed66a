"""Goldens: what the whole tool said and wrote when it was last declared right. ``GOLDEN=record pytest tests/golden`` declares anew."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from golden.goldens import RECIPES, differences, machine, numbers, same
from posttrain.model import hardware
from posttrain.model.companions import copy_tokenizer

RECORDED = Path(__file__).with_name("recorded")
RECORDING = os.environ.get("GOLDEN") == "record"


@pytest.fixture(scope="module", autouse=True)
def quiet_machine() -> Iterator[None]:
    """One thread, fp32 everywhere, a terminal of 100 columns without colour."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "matmul_flops", lambda dtype, device: 1e9)  # no type is faster: auto is fp32
        for name, value in {
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "TOKENIZERS_PARALLELISM": "false",
        }.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: two micro models, recipes and rows, all named by relative paths."""
    folder = tmp_path_factory.mktemp("golden")
    for seed, name in enumerate(("model", "other")):
        micro_model(folder / name, seed, demo_model)
    shutil.copytree(RECIPES, folder / "recipes", ignore=shutil.ignore_patterns("*.py"))
    for name, rows in files().items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    with contextlib.chdir(folder):
        yield folder


def micro_model(folder: Path, seed: int, tokenizer: Path) -> None:
    """A two-layer Llama with the real tokenizer of the demo model; its greedy replies are not all the same token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def files() -> dict[str, Sequence[Mapping[str, Any]] | str]:
    """Small inputs of every kind, by name of the file."""
    things = ("iron", "copper", "clay", "wool", "glass", "paper", "stone", "silk", "salt", "wood", "ice", "wax")
    rows = [
        {
            "instruction": f"What is {thing} used for in daily life?",
            "input": "",
            "output": f"{thing} is useful. " * (k + 1),
        }
        for k, thing in enumerate(things)
    ]
    rows += [{"instruction": f"数字{k}后面是几？", "input": "", "output": f"是{k + 1}。"} for k in range(6)]
    rows += [
        rows[0],
        rows[1] | {"instruction": "What is copper used for in daily life!"},
        {"instruction": "", "output": "x"},
    ]
    rows += [{"instruction": "Help me.", "input": "", "output": "I'm sorry, but I can't help with that."}]
    pairs = [
        {
            "prompt": f"Count to {k}.",
            "chosen": f"One to {k}, {'and on ' * (k % 5)}.",
            "rejected": f"No, {k} is too far. Why?",
        }
        for k in range(24)
    ]
    feedback = [
        {"prompt": f"Count to {k}.", "completion": f"One to {k}, {'and on ' * (k % 5)}.", "label": k % 2 == 0}
        for k in range(24)
    ]
    judged = [
        {
            "id": k,
            "category": ("math", "writing")[k % 2],
            "prompt": f"Say {k}.",
            "label": "abb"[k % 3],
            "model_a": "x",
            "model_b": "y",
        }
        | {
            "reply_a": f"It is {k}{'. GOOD' * (k % 3 == 0)}",
            "reply_b": f"{k}{', GOOD' * (k % 3 > 0)}",
            "winner": "model_" + "abb"[k % 3],
        }
        for k in range(18)
    ]
    single = [
        {
            "id": k,
            "model": "xy"[k % 2],
            "category": "writing",
            "prompt": f"Say {k}.",
            "reply": f"It is {k}.",
            "label": 3 + k % 6,
        }
        for k in range(18)
    ]
    games = [
        {
            "model_a": one,
            "model_b": other,
            "winner": "tie" if k % 7 == 3 else "model_a" if (k * 5 + m) % 9 > 2 else "model_b",
        }
        | {"prompt": k % 9, "tokens_a": 50 + k * 13 % 70, "tokens_b": 50 + (k + m) * 29 % 90}
        for m, (one, other) in enumerate(itertools.combinations("abcd", 2))
        for k in range(12)
    ]
    scores = [
        {"model": model, "prompt_id": k, "score": (k * (3 + n)) % 7 + n, "passed": (k * (2 + n)) % 3 == 0}
        for n, model in enumerate("ab")
        for k in range(20)
    ]
    prompts = [
        {
            "id": "one",
            "language": "en",
            "prompt": "What comes after 1?",
            "check": {"kind": "number_equals", "expected": 2},
        },
        {"id": "two", "language": "zh", "prompt": "你好"},
    ]
    return {
        "rows.jsonl": rows,
        "pairs.jsonl": pairs,
        "feedback.jsonl": feedback,
        "judged.jsonl": judged,
        "single.jsonl": single,
        "games.jsonl": games,
        "scores.jsonl": scores,
        "prompts.yaml": yaml.safe_dump({"knowledge": prompts}, allow_unicode=True),
        "exam.jsonl": [{"question": "What is iron used for in daily life?"}, {"question": "Who was the first?"}],
        "gsm8k.jsonl": [{"question": f"{k} and {k}?", "answer": f"Add.\n#### {2 * k}"} for k in range(4)],
        "ifeval.jsonl": [
            {"key": k, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
            for k in range(3)
        ],
        "mt_bench.jsonl": [
            {"question_id": 81 + k, "category": "math" if k else "writing", "turns": ["Write.", f"Again {k}."]}
            for k in range(3)
        ],
        "overlap.jsonl": [{"prompt": f"Say {k}.", "reference": f"It is {k}."} for k in range(4)],
        "alpaca_eval.json": json.dumps(
            [
                {"instruction": f"Say {k}.", "output": f"It is {k}.", "generator": "baseline", "dataset": "own"}
                for k in range(4)
            ]
        ),
        "arena_hard.jsonl": [
            {"question_id": f"h{k}", "cluster": f"c{k % 2}", "turns": [{"content": f"Prove {k} = {k}."}]}
            for k in range(4)
        ],
    }


def read(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, value: Any) -> None:
    (RECORDED / f"{name}.json").write_text(json.dumps(value, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def golden() -> Callable[[str, Any], None]:
    """``golden(name, value)``: the value is that of recorded/name.json; while recording it becomes it."""

    def check(name: str, value: Any) -> None:
        value = json.loads(json.dumps(value))
        if RECORDING:
            write(name, value)
            write("machine", machine())
            return
        found = list(differences(read(name), value, read("machine") == machine()))
        shown = "\n".join(found[:60])
        assert not found, f"{len(found)} differences from recorded/{name}.json:\n{shown}"

    return check


@pytest.fixture(scope="session")
def numbers_of_old() -> Callable[[str, Any], None]:
    """``numbers_of_old(name, summary)``: every number and verdict in recorded/numbers_name.json is in the summary, in whatever shape.

    They are recorded once, and again only where the file has been removed.
    """

    def check(name: str, summary: Any) -> None:
        found = sorted(set(numbers(summary)), key=lambda value: (isinstance(value, str), value))
        if RECORDING and not (RECORDED / f"numbers_{name}.json").exists():
            write(f"numbers_{name}", found)
        here = read("machine") == machine()
        lost = [old for old in read(f"numbers_{name}") if not any(same(old, new, here) for new in found)]
        assert lost == [], f"{len(lost)} numbers and verdicts of numbers_{name}.json are not in summary.json"

    return check
