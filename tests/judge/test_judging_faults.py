"""Four hundred judgments through ``posttrain judge pairs`` on a server that fails one call in five; and killed on the way.

Nothing lost, nothing paid twice, an exact account; a command that was killed three times writes the same verdicts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from posttrain.generate.cost import read_calls
from posttrain.judge.config import Plan
from posttrain.judge.items import read_items
from posttrain.judge.judge import prepared
from posttrain.judge.prompts import load_prompt
from servers import Server, chat_body, name_of, seeded_faults, stored_keys, usage_of

pytestmark = pytest.mark.slow

ITEMS = 200
CONCURRENCY = 12
SCRIPT = Path(__file__).with_name("killed_judge.py")


def opinion(prompt: str) -> str:
    """A judge whose verdicts look drawn, and are the same for the same question."""
    draw = random.Random(prompt)
    return f"After {draw.randint(1, 99)} thoughts:\n[[{draw.choice('ABC')}]]"


def bodies(body: dict[str, Any]) -> dict[str, Any]:
    return chat_body(name_of(body), opinion(name_of(body)))


def without_cached(path: Path) -> list[dict[str, Any]]:
    """The lines of verdicts.jsonl. Whether an answer came from the cache is the one thing a killed command tells differently."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "cached"} for line in lines]


class Finished(NamedTuple):
    """A command that nobody disturbed, and what its server has seen."""

    items: Path
    out: Path
    server: Server
    summary: dict[str, Any]


def start(items: Path, out: Path, server: Server) -> subprocess.Popen[bytes]:
    arguments = ["judge", "pairs", items, "-o", out, "--endpoint", server.url, "--model", "j"]
    command = [sys.executable, str(SCRIPT), *map(str, arguments), "--concurrency", str(CONCURRENCY)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("judged")
    items, out = folder / "pairs.jsonl", folder / "out"
    records = [{"id": k, "prompt": f"Q{k}?", "reply_a": f"{k} it is.", "reply_b": "x" * (k % 17)} for k in range(ITEMS)]
    items.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    with Server(does=seeded_faults(0.2, seed=1, billed=False), bodies=bodies) as server:
        assert start(items, out, server).wait(120) == 0
        yield Finished(items, out, server, json.loads((out / "pairs" / "summary.json").read_text(encoding="utf-8")))


def test_nothing_is_lost_nothing_is_paid_twice_and_the_account_is_exact(finished: Finished) -> None:
    server, summary = finished.server, finished.summary
    (judge,) = summary["judges"]
    assert judge["calls"] == {
        "asked": 2 * ITEMS,
        "answered": 2 * ITEMS,
        "parsed": 2 * ITEMS,
        "missing": {},
        "failures": {},
        "cached": 0,
        "asked_again": 0,
    }
    questions = prepared(read_items(finished.items, "pair").items, load_prompt("pair", "pair"), Plan())
    requests = [request for _, request in questions]
    prompts = [request.prompt[-1].content for request in requests]  # type: ignore[union-attr]
    # every reply stands beside its own question, both orders of it
    assert [line["reply"] for line in without_cached(finished.out / "pairs" / "verdicts.jsonl")] == list(
        map(opinion, prompts)
    )
    assert Counter(server.billed) == Counter(prompts)
    assert len(server.asked) > 1.15 * 2 * ITEMS
    assert len({asked.does for asked in server.asked}) == 11  # an answer and every kind of fault
    spent = summary["spent"]
    assert spent["calls"] == len(server.asked)
    assert spent["answers"] == 2 * ITEMS
    assert spent["outcomes"]["timeout"] == sum(asked.does in ("hang", "stall") for asked in server.asked)
    assert spent["prompt_tokens"] == sum(usage_of(prompt)["prompt_tokens"] for prompt in prompts)
    assert spent["completion_tokens"] == sum(usage_of(prompt)["completion_tokens"] for prompt in prompts)


def test_killed_three_times_it_writes_the_same_verdicts(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stored() -> set[str]:
        path = out / ".requests.sqlite"
        return stored_keys(path) if path.exists() else set()

    with Server(does=seeded_faults(0.2, seed=2, billed=False), bodies=bodies, think_time=0.005) as server:
        for life in range(3):
            cached, begun = stored(), len(server.asked)
            job = start(finished.items, out, server)
            until = time.monotonic() + 120
            while len(set(server.billed)) < (life + 1) * 2 * ITEMS // 4:
                assert job.poll() is None, "it ended before it was killed"
                assert time.monotonic() < until
                time.sleep(0.005)
            job.send_signal(signal.SIGKILL)
            assert job.wait(30) == -signal.SIGKILL
            again = {asked.headers["idempotency-key"] for asked in server.asked[begun:]}
            assert again
            assert not again & cached
        assert not (out / "pairs" / "verdicts.jsonl").exists()
        assert start(finished.items, out, server).wait(120) == 0

    assert without_cached(out / "pairs" / "verdicts.jsonl") == without_cached(finished.out / "pairs" / "verdicts.jsonl")
    summary = json.loads((out / "pairs" / "summary.json").read_text(encoding="utf-8"))
    assert summary["judges"][0]["calls"]["parsed"] == 2 * ITEMS
    for key in ("win_rates", "bias", "items", "questions"):
        assert summary[key] == finished.summary[key]
    # Of what a kill cut off the account knows nothing: that was in flight, so many at a time.
    calls = read_calls(out / ".calls" / "pairs.jsonl")
    assert summary["spent"]["calls"] == len(calls)
    assert 0 <= len(server.asked) - len(calls) <= 3 * CONCURRENCY
    assert len(stored()) == 2 * ITEMS
    unseen = sum(call.outcome in ("timeout", "connection") for call in calls)
    assert len(server.billed) - 2 * ITEMS <= 3 * CONCURRENCY + unseen
