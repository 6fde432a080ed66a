"""Precision and recall of sentence vectors for decontamination and for dedup, on pairs that are known; needs the extra embed.

    python benchmarks/embedding_calibration.py SHARED_DATA [--rephrased FOLDER]

SHARED_DATA is the shared data folder. FOLDER is `data/rephrase` of github.com/lm-sys/llm-decontaminator (Apache-2.0): MMLU questions and
GSM8K problems, reworded in English and translated to Chinese, with options and without. One JSON line a measurement:

- ``decontamination``: pairs of an evaluation prompt and the same said otherwise. ``recall``: share of the pairs at each cosine or above;
  ``precision``: of the rows that are near any prompt, those whose nearest prompt is their own; ``wrong``: how many of the other pairs (each prompt with each other row) are; ``whole`` compares whole texts, ``segments`` what the step does.
- ``noise``: Alpaca rows (English and Chinese) that are near one of the prompts of seven benchmarks. None that we read is a copy.
- ``dedup``: pairs of rows. ``merged`` by the cosine alone, and ``merged_by_the_step``, where numbers and symbols tell apart.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.data.decontaminate.benchmarks import Benchmark, load
from posttrain.data.decontaminate.proposals import segments
from posttrain.data.encoders import loaded_encoder
from posttrain.data.marks import marks

COSINES = (0.55, 0.6, 0.65, 0.7, 0.75)
DEDUP_COSINES = (0.8, 0.85, 0.9, 0.95)
SUBJECTS = ("abstract_algebra", "sociology", "high_school_us_history")
BENCHMARKS = {
    "mt_bench": "fastchat/fastchat__llm_judge__data__mt_bench__question.jsonl",
    "vicuna": "fastchat/fastchat__llm_judge__data__vicuna_bench__question.jsonl",
    "alpaca_eval": "alpaca-eval/results__text_davinci_003__model_outputs.json",
    "arena_hard": "arena-hard/data__arena-hard-v0.1__question.jsonl",
    "ifeval": "ifeval/data__input_data.jsonl",
    "gsm8k": "gsm8k/grade_school_math__data__test.jsonl",
    "mt_bench_zh": "mt-bench-zh-huozi/data__mt-bench-zh__question.jsonl",
}
REWORDED = Path(__file__).parents[1] / "tests/data/decontaminate/rephrased_vicuna.jsonl"

Pairs = tuple[list[str], list[str]]
Cut = Callable[[str], Sequence[str]]


class Cosines:
    """Cosines of texts by their nearest parts; every part is encoded once."""

    def __init__(self) -> None:
        self._encoder, self._known = loaded_encoder("use-multilingual"), dict[str, NDArray[np.float32]]()

    def __call__(self, left: Sequence[str], right: Sequence[str], cut: Cut) -> NDArray[np.float32]:
        """Float32 [left, right]."""
        (a, a_starts), (b, b_starts) = self._parts(left, cut), self._parts(right, cut)
        nearest: NDArray[np.float32] = np.maximum.reduceat(np.maximum.reduceat(a @ b.T, a_starts, 0), b_starts, 1)
        return nearest

    def _parts(self, texts: Sequence[str], cut: Cut) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        parts = [cut(text) for text in texts]
        fresh = sorted({part for its in parts for part in its} - set(self._known), key=len)
        for begin in range(0, len(fresh), 64):
            batch = fresh[begin : begin + 64]
            self._known.update(zip(batch, self._encoder.encode(batch), strict=True))
        vectors = np.stack([self._known[part] for its in parts for part in its])
        return vectors, np.cumsum([0, *map(len, parts)])[:-1]


def whole(text: str) -> tuple[str, ...]:
    """A text is its only part."""
    return (text,)


def turns(shared: Path, name: str) -> list[tuple[str, ...]]:
    """The turns of every prompt of a benchmark."""
    return [prompt.turns for prompt in load(Benchmark(name=name, path=str(shared / BENCHMARKS[name])), lambda _: None)]


def known_pairs(shared: Path, rephrased: Path | None) -> Iterator[tuple[str, Pairs]]:
    """(what they are, prompts and what says the same)."""
    english, chinese = turns(shared, "mt_bench"), turns(shared, "mt_bench_zh")
    for number, name in enumerate(("first", "second")):
        yield f"MT-Bench, {name} turns, Chinese", ([t[number] for t in english], [t[number] for t in chinese])
    vicuna = [t[0] for t in turns(shared, "vicuna")]
    written = [json.loads(line) for line in REWORDED.read_text(encoding="utf-8").splitlines()]
    for language, how in (("zh", "Chinese"), ("en", "reworded")):
        yield f"Vicuna, {how}", ([vicuna[r["question_id"] - 1] for r in written], [r[language] for r in written])
    if rephrased is None:
        return
    yield "GSM8K, reworded", gsm8k(shared, rephrased)
    for subject in SUBJECTS:
        rows = list(csv.reader((rephrased / f"{subject}_test.csv").open(encoding="utf-8", newline="")))
        optioned = [
            "\n".join([r[0], *(f"{label}. {o}" for label, o in zip("ABCD", r[1:5], strict=True))]) for r in rows
        ]
        others = {
            "Chinese with options": texts_of(rephrased / f"{subject}_test_chinese_filtered_question.jsonl"),
            "Chinese with answer": texts_of(rephrased / f"{subject}_test_chinese.jsonl"),
            "reworded question": texts_of(rephrased / f"{subject}_test_rephrase_english_filtered_question.jsonl"),
        }
        others["Chinese question"] = [
            segments(text)[1] if len(segments(text)) > 1 else text for text in others["Chinese with options"]
        ]
        for how, texts in others.items():
            there = [number for number, text in enumerate(texts) if text.strip()]
            for kind, prompts in (("question", [r[0] for r in rows]), ("question and options", optioned)):
                yield f"{subject}, {kind} - {how}", ([prompts[n] for n in there], [texts[n] for n in there])


def texts_of(path: Path) -> list[str]:
    """The column ``text`` of a file."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def gsm8k(shared: Path, rephrased: Path) -> Pairs:
    """400 problems and the same in other words."""
    problems = [t[0] for t in turns(shared, "gsm8k")][:400]
    others = [
        text.removeprefix("Question: ").partition("\nAnswer:")[0]
        for text in texts_of(rephrased / "rephrase_gsm8k.jsonl")[:400]
    ]
    return problems, others


def alpaca(shared: Path) -> list[str]:
    """The prompts of both demo sets."""
    files = [shared / f"llama-factory-demo/data__alpaca_{language}_demo.json" for language in ("en", "zh")]
    records = [record for file in files for record in json.loads(file.read_text(encoding="utf-8"))]
    return ["\n".join(filter(None, (record["instruction"], record["input"]))) for record in records]


def decontamination(cosines: Cosines, shared: Path, rephrased: Path | None) -> Iterator[dict[str, Any]]:
    """Recall and wrong pairs."""
    for name, (prompts, others) in known_pairs(shared, rephrased):
        own = np.eye(len(prompts), dtype=bool)
        for how, cut in (("whole", whole), ("segments", segments)):
            found = cosines(prompts, others, cut)
            recall = [round(float((found[own] >= cosine).mean()), 3) for cosine in COSINES]
            wrong = [int((found[~own] >= cosine).sum()) for cosine in COSINES]
            nearest, right = found.max(axis=0), found.argmax(axis=0) == np.arange(len(prompts))
            precision = [round(float(right[nearest >= cosine].mean()), 3) for cosine in COSINES]
            told = {"decontamination": name, "pairs": len(prompts), "compared": how}
            yield told | {"recall": recall, "precision": precision, "wrong": wrong}


def noise(cosines: Cosines, shared: Path) -> Iterator[dict[str, Any]]:
    """Rows that have nothing to do with the benchmarks."""
    prompts = [turn for name in BENCHMARKS for its in turns(shared, name) for turn in its]
    for how, cut in (("whole", whole), ("segments", segments)):
        nearest = cosines(alpaca(shared), prompts, cut).max(axis=1)
        yield {
            "noise": len(nearest),
            "prompts": len(prompts),
            "compared": how,
            "rows": [int((nearest >= c).sum()) for c in COSINES],
        }


def dedup(cosines: Cosines, shared: Path, rephrased: Path | None) -> Iterator[dict[str, Any]]:
    """What is merged of rows that should be, and of rows that should not."""
    draw = random.Random(0)
    problems = [t[0] for t in turns(shared, "gsm8k")][:400]
    numbered = [text for text in problems if re.search(r"\d", text)]
    chinese = [text for text in alpaca(shared) if re.search(r"\d", text) and re.search("[\u4e00-\u9fff]", text)]
    written = [json.loads(line) for line in REWORDED.read_text(encoding="utf-8").splitlines()]
    vicuna = [t[0] for t in turns(shared, "vicuna")]
    sets: dict[str, tuple[bool, Pairs]] = {
        "GSM8K with other numbers": (False, (numbered, [other_numbers(text, draw) for text in numbered])),
        "Chinese rows with other numbers": (False, (chinese, [other_numbers(text, draw) for text in chinese])),
        "Vicuna, reworded": (True, ([vicuna[r["question_id"] - 1] for r in written], [r["en"] for r in written])),
        "Alpaca, with a polite word": (True, (alpaca(shared), [polite(text) for text in alpaca(shared)])),
    }
    if rephrased is not None:
        sets["GSM8K, reworded"] = (True, gsm8k(shared, rephrased))
    for name, (same, (left, right)) in sets.items():
        found = np.array([cosines([a], [b], whole)[0, 0] for a, b in zip(left, right, strict=True)])
        alike = np.array([marks(a).amounts == marks(b).amounts for a, b in zip(left, right, strict=True)])
        yield {
            "dedup": name,
            "same": same,
            "pairs": len(left),
            "cosines": DEDUP_COSINES,
            "merged": [int((found >= cosine).sum()) for cosine in DEDUP_COSINES],
            "merged_by_the_step": [int(((found >= cosine) & alike).sum()) for cosine in DEDUP_COSINES],
        }
    for name, texts in (("GSM8K, other problems", problems), ("Alpaca, other rows", alpaca(shared))):
        texts = list(dict.fromkeys(texts))
        found = np.triu(cosines(texts, texts, whole), 1)
        amounts = [marks(text).amounts for text in texts]
        merged = [[(i, j) for i, j in np.argwhere(found >= cosine).tolist()] for cosine in DEDUP_COSINES]
        yield {
            "dedup": name,
            "same": False,
            "pairs": len(texts) * (len(texts) - 1) // 2,
            "cosines": DEDUP_COSINES,
            "merged": [len(pairs) for pairs in merged],
            "merged_by_the_step": [sum(amounts[i] == amounts[j] for i, j in pairs) for pairs in merged],
        }


def other_numbers(text: str, draw: random.Random) -> str:
    """The text with another number in the place of each."""
    return re.sub(r"\d+", lambda found: str(int(found[0]) + draw.randint(1, 9)), text)


def polite(text: str) -> str:
    """The same, asked for politely."""
    return f"请{text}" if re.search("[\u4e00-\u9fff]", text) else f"Please {text[:1].lower()}{text[1:]}"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--rephrased", type=Path)
    options = parser.parse_args()
    cosines = Cosines()
    for part in (
        decontamination(cosines, options.shared, options.rephrased),
        noise(cosines, options.shared),
        dedup(cosines, options.shared, options.rephrased),
    ):
        for line in part:
            print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
