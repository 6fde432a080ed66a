"""Files of rows for tests, and the run folder of a data stage that dropped rows for every kind of reason."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_examples import only
from posttrain.artifacts import StageDir
from posttrain.data.config import DataSettings, Source
from posttrain.data.dedup.step import DedupStep
from posttrain.data.filters.form import Length
from posttrain.data.pipeline import prepare


def lines(folder: Path, name: str, rows: Sequence[Any]) -> Path:
    """A file with a line a row; texts are written as they are."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    written = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(written.encode()) if name.endswith(".gz") else written.encode())
    return path


def turns(number: int, reply: str = "It is so.") -> dict[str, Any]:
    """A row."""
    return {"prompt": f"Question number {number}?", "completion": reply}


def data_run(run: Path, data: Path) -> Path:
    """A run with a data stage over ``data/rows.jsonl``: 19 records, of which 14 stay."""
    rows = [
        *(turns(n, f"Reply {n} with words that no other has: {'x' * n} {n * n}.") for n in range(12)),
        turns(3, f"Reply 3 with words that no other has: {'x' * 3} 9."),  # the same again
        "{broken",
        {"prompt": "Where is the reply?", "completion": ""},
        turns(90, "far " * 80),
        {"prompt": "Say the alphabet in order from a up to the letter k please", "completion": "abcdefghijk one"},
        {"prompt": "Say the alphabet in order from a up to the letter k, please!", "completion": "abcdefghijk two"},
        {"prompt": "红色的反义词是什么？", "completion": "没有。"},
    ]
    source = Source(path=str(lines(data, "rows.jsonl", rows)))
    steps = (only(Length(max_assistant_tokens=40)), DedupStep(kind="dedup", method="ngram"))
    out = StageDir(run / "prepare")
    result = prepare(DataSettings(sources=(source,), steps=steps, held_out=2), out, 0, lambda name: None)
    out.write_manifest({"kind": "data", "status": "complete", "started": 1.0, "result": result})
    (run / "recipe.yaml").write_text(f"name: {run.name}\n")
    return run
