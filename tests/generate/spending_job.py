"""A job that asks until the shared budget is used up. test_shared_budget.py runs two of them at a time, and kills one.

usage: python spending_job.py URLS FOLDER CAPS NAME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from posttrain.generate.cost import Caps
from posttrain.generate.engine import Request, Sampling, complete
from posttrain.generate.openai import Endpoint, OpenAIEngine
from posttrain.generate.shared_budget import SharedBudget
from posttrain.types import Message


def main(urls: list[str], folder: Path, caps: Caps, name: str) -> None:
    ledger = folder / f"{name}.jsonl"
    engine = OpenAIEngine(Endpoint(url=tuple(urls), model="m", concurrency=8), ledger=ledger)
    with SharedBudget(folder / "budget.sqlite", caps, None, ledger) as engine.budget:
        complete(engine, [Request((Message("user", f"{name} {n}"),), Sampling(max_tokens=16)) for n in range(600)])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), Caps(**json.loads(sys.argv[3])), sys.argv[4])
