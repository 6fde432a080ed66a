"""``posttrain synth`` on a server that misbehaves: an exact account, and the same rows after being killed five times."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forking import ForkServer
from posttrain.artifacts import read_json
from posttrain.generate.cost import read_calls
from servers import Server, chat_body, name_of, seeded_faults, stored_keys

pytestmark = pytest.mark.slow

PROMPTS, SAMPLES = int(os.environ.get("SYNTH_PROMPTS", "75")), 4


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """As many words as the request's seed says; now and then it is cut."""
    draw = random.Random(f"{name_of(body)}/{body['seed']}")
    text = " ".join(f"w{draw.randint(0, 99)}" for _ in range(draw.randint(1, 30)))
    return chat_body(name_of(body), text, finish_reason="length" if draw.random() < 0.05 else "stop")


@pytest.fixture(scope="module")
def jobs() -> Iterator[ForkServer]:
    with contextlib.closing(ForkServer(Path(__file__).with_name("synth_server.py"), Path())) as forks:
        yield forks


def start(jobs: ForkServer, prompts: Path, out: Path, server: Server) -> int:
    """Start a synthesis; its process id."""
    arguments = ["synth", "preferences", prompts, "-o", out, "--endpoint", server.url, "--model", "m"]
    options = [
        "--score.by",
        "length",
        "--min-margin",
        9,
        "--samples",
        SAMPLES,
        "--rows-wanted",
        10**6,
        "--held-out",
        0,
        "--concurrency",
        24,
    ]
    return jobs.start(out, arguments=[*map(str, (*arguments, *options))])


def told(out: Path) -> dict[str, Any]:
    """What a synthesis wrote, without what it had in its cache."""
    import polars as pl

    folder = out / "preferences"
    facts = read_json(folder / "facts.json")
    return {
        "rows": [
            row | {"meta": _without_keys(json.loads(row["meta"]))}
            for row in pl.read_parquet(folder / "rows" / "train.parquet").to_dicts()
        ],
        "dropped": (folder / "dropped.jsonl").read_text(encoding="utf-8"),
        "ledger": read_json(folder / "ledger.json"),
        "facts": {key: value for key, value in facts.items() if key not in ("cached", "engines")},
    }


def _without_keys(meta: dict[str, Any]) -> dict[str, Any]:
    """Without the keys of requests, which hold the server's port."""
    for request in meta["synth"]["requests"]:
        assert len(request.pop("request")) == 16
    return meta


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Tell me number {k} of your stories"}) + "\n" for k in range(PROMPTS)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(jobs: ForkServer, prompts: Path) -> Path:
    out = prompts.parent / "whole"
    with Server(does=seeded_faults(0.1, seed=1, billed=False), bodies=reply) as server:
        start(jobs, prompts, out, server)
        assert jobs.status() == 0
        calls = read_calls(out / "preferences" / "calls.jsonl")
        assert len(calls) == len(server.asked), "every call is in the ledger"
        assert len(server.billed) == PROMPTS * SAMPLES, "nothing is paid twice"
    return out


def test_every_answer_is_a_row_or_has_its_reason(undisturbed: Path) -> None:
    found = told(undisturbed)
    facts, ledger = found["facts"], found["ledger"]
    assert facts["requests"] == PROMPTS * SAMPLES
    assert len(stored_keys(undisturbed / ".requests.sqlite")) == PROMPTS * SAMPLES
    assert len(found["dropped"].splitlines()) == sum(ledger["dropped"].values())
    assert len(found["rows"]) == ledger["rows_kept"] == facts["kept"]
    assert {"cut", "small_margin"} <= ledger["dropped"].keys()
    asked = sum(len(row["meta"]["synth"]["requests"]) for row in found["rows"])
    assert asked == SAMPLES * len(found["rows"])


def test_killed_five_times_it_makes_the_same_rows(
    jobs: ForkServer, undisturbed: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cut"
    with Server(does=seeded_faults(0.1, seed=2, billed=False), bodies=reply, think_time=0.005) as server:
        for life in range(5):
            job = start(jobs, prompts, out, server)
            until = time.monotonic() + 60
            while len(server.billed) < (life + 1) * PROMPTS * SAMPLES // 6:
                assert time.monotonic() < until
                time.sleep(0.005)
            os.kill(job, signal.SIGKILL)
            assert os.WTERMSIG(jobs.status()) == signal.SIGKILL
        start(jobs, prompts, out, server)
        assert jobs.status() == 0
        assert len(server.billed) <= PROMPTS * SAMPLES + 5 * 24, "at most what was under way is asked again"
    assert told(out) == told(undisturbed)
