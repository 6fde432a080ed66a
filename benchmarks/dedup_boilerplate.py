"""Dedup of tasks that stand under a few long descriptions of tools, with planted duplicates: what common_share changes.

    python benchmarks/dedup_boilerplate.py SHARED_DATA [--rows 4000] [--methods minhash ngram simhash embedding]

SHARED_DATA is the shared data folder. Every row is one of six descriptions and a task (GSM8K and Alpaca, English and Chinese, all different);
to a twentieth of the rows a copy with a changed word is added, under the same description. One JSON line a method and share:
``different_dropped``: rows that are no copy and went, where their copy did not stay for them; ``found``: planted pairs of which one row is gone.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from posttrain.data.dedup.step import DedupStep
from posttrain.data.rows import rows_frame, write_rows
from posttrain.data.steps import StepRun
from posttrain.types import Message, Origin, SftRow

ACTIONS = ("search the archive", "book a seat", "solve an equation", "send a letter", "draw a chart", "plan a route")


def description(number: int) -> str:
    """What a tool does, in about 120 words."""
    action = ACTIONS[number]
    options = "\n".join(
        f"- option_{number}_{name}: {text} when you {action}"
        for name, text in (
            ("limit", "how many results come back at most"),
            ("order", "which of them comes first, the newest or the one that fits best"),
            ("language", "the language of the answer, English unless it is given"),
            ("format", "text, a table or a list of records"),
        )
    )
    return (
        f"You are an assistant who can {action} with the tool number {number}. Call the tool whenever the user asks for something that you "
        f"can't know. Write the call on a line of its own, wait for the result, then answer in full sentences and name where "
        f"the result is from. Never make up a result.\nThe options of the tool:\n{options}\nThe task of the user follows.\n\n"
    )


def tasks(shared: Path) -> list[str]:
    """Different tasks of at least eight words (16 CJK characters)."""
    gsm = [
        json.loads(line)["question"]
        for line in (shared / "gsm8k/grade_school_math__data__test.jsonl").open(encoding="utf-8")
    ]
    files = [shared / f"llama-factory-demo/data__alpaca_{language}_demo.json" for language in ("en", "zh")]
    alpaca = [
        " ".join(filter(None, (record["instruction"], record["input"])))
        for file in files
        for record in json.loads(file.read_text(encoding="utf-8"))
    ]
    return [text for text in dict.fromkeys(gsm + alpaca) if len(text) > 40 or (len(text) > 16 and not text.isascii())]


def changed(text: str, draw: random.Random) -> str:
    """The task with a word (in Chinese a character) more at its end."""
    return f"{text} {draw.choice(('Thanks', 'Please', 'Now'))}" if text.isascii() else f"{text}{draw.choice('吧呢啊')}"


def corpus(shared: Path, rows: int) -> tuple[list[str], dict[int, int]]:
    """(texts, copy -> what it is a copy of)."""
    draw = random.Random(0)
    chosen = draw.sample(all_tasks := tasks(shared), min(rows, len(all_tasks)))
    tools = [draw.randrange(len(ACTIONS)) for _ in chosen]
    texts = [description(tool) + task for tool, task in zip(tools, chosen, strict=True)]
    copies = draw.sample([n for n, task in enumerate(chosen) if len(task) > 80], len(texts) // 20)
    texts += [description(tools[n]) + changed(chosen[n], draw) for n in copies]
    return texts, {len(chosen) + place: number for place, number in enumerate(copies)}


def measured(path: Path, planted: dict[int, int], method: str, share: float) -> dict[str, Any]:
    """One run."""
    step = DedupStep(kind="dedup", method=method, common_share=share)  # type: ignore[arg-type]
    decisions = step.decide(path, 0, StepRun(lambda _: None))
    gone = set(decisions.rejects["row"].to_list())
    of_a_pair = {row for copy, original in planted.items() for row in (copy, original)}
    pairs = sum(copy in gone or original in gone for copy, original in planted.items())
    both = sum(copy in gone and original in gone for copy, original in planted.items())
    return {
        "method": method,
        "common_share": share,
        "dropped": len(gone),
        "different_dropped": len(gone - of_a_pair) + both,
        "planted": len(planted),
        "found": pairs,
        "warnings": len(decisions.facts["warnings"]),
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--methods", nargs="+", default=["minhash", "ngram", "simhash"])
    options = parser.parse_args()
    texts, planted = corpus(options.shared, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        rows = [
            SftRow((Message("user", text), Message("assistant", "ok")), Origin("rows", number), "rows")
            for number, text in enumerate(texts, 1)
        ]
        write_rows(path, rows_frame(rows))
        for method in options.methods:
            for share in (1.0, 0.05, 0.01):
                print(json.dumps({"rows": len(texts), **measured(path, planted, method, share)}), flush=True)


if __name__ == "__main__":
    main()
