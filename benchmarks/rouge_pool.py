"""How long 1,000 new tasks take against a pool of 50,000: ROUGE-L with every text, exact, on one core (docs/synthesis.md).

The pool is made of the words of real instructions (alpaca_en_demo, alpaca_zh_demo), at their lengths; the new tasks too.

    python benchmarks/rouge_pool.py [POOL] [NEW]
"""

from __future__ import annotations

import json
import random
import sys
import time

from posttrain.assets import resolve_data
from posttrain.data.text import tokens
from posttrain.synth.pool import Pool


def instructions() -> list[list[str]]:
    """The words of every real instruction."""
    found = []
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        path = resolve_data(name)
        assert path is not None
        found += [tokens(row["instruction"]) for row in json.loads(path.read_text(encoding="utf-8"))]
    return [words for words in found if words]


def main(pool_size: int, new: int) -> None:
    """Print the time."""
    real, chance = instructions(), random.Random(0)
    words = [word for one in real for word in one]
    pool = Pool()

    def text() -> str:
        return " ".join(chance.choices(words, k=len(chance.choice(real))))

    for place in range(pool_size):
        pool.add(str(place), text(), made=False)
    tasks = [text() for _ in range(new)]
    start = time.perf_counter()
    for task in tasks:
        pool.similar(task)
    seconds = time.perf_counter() - start
    print(f"{new:,} tasks against {pool_size:,}: {seconds:.1f} s, {1000 * seconds / new:.1f} ms a task")


if __name__ == "__main__":
    pool_size, count = (int(text) for text in (*sys.argv[1:], *("50000", "1000")[len(sys.argv) - 1 :]))
    main(pool_size, count)
