"""A job that asks N requests through cache and ledger and writes the outcomes. test_faults.py kills it on the way.

usage: python killed_job.py URL FOLDER N
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.cost import Prices
from posttrain.generate.engine import Completion, Request, complete
from posttrain.generate.openai import Endpoint, OpenAIEngine
from posttrain.types import Message


def main(url: str, folder: Path, number: int) -> None:
    endpoint = Endpoint(
        url=url, model="m", concurrency=8, request_timeout=1.0, first_backoff=0.002, longest_backoff=0.02, attempts=20
    )
    prices = Prices(prompt_per_million=1.0, completion_per_million=2.0)
    engine = OpenAIEngine(endpoint, prices=prices, ledger=folder / "ledger.jsonl", seed=0)
    requests = [Request((Message("user", f"question {n}"),)) for n in range(number)]
    with RequestCache(folder / "cache.sqlite") as cache:
        outcomes = complete(CachedEngine(engine, cache), requests)
    rows = [o.text if isinstance(o, Completion) else [o.reason] for o in outcomes]
    (folder / "result.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
