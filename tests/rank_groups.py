"""Groups of real processes that train, or run a recipe, together, for tests/parallel."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forking import ForkServer


@dataclass
class Trained:
    """What a group of processes left."""

    out: Path

    @property
    def codes(self) -> list[int]:
        """How every rank ended."""
        found: list[int] = json.loads((self.out / "ended.json").read_text())
        return found

    @property
    def said(self) -> str:
        """What the ranks printed."""
        return "".join(path.read_text() for path in sorted(self.out.glob("rank*.log")))

    @property
    def memory(self) -> dict[str, Any]:
        """What the training took, by part, in rank 0."""
        found: dict[str, Any] = json.loads((self.out / "stage" / "memory.json").read_text())["measured"]
        return found

    def numbers(self, split: str, *names: str) -> list[tuple[float, ...]]:
        """Of every record of a split, these values."""
        lines = [json.loads(line) for line in (self.out / "stage" / "metrics.jsonl").read_text().splitlines()]
        return [tuple(line[name] for name in names) for line in lines if line["split"] == split]


class Groups:
    """Starts groups of processes, one after the other."""

    def __init__(self, server: ForkServer) -> None:
        self.server = server

    def start(self, out: Path, size: int, what: str, **more: Any) -> None:
        """Begin a training."""
        for path in (*out.glob("*.json"), *out.glob("joined*"), *out.glob("rank*.log")):
            path.unlink()
        self.server.start(out, **{"size": size, "what": what, "steps": 20} | more)

    def run(self, out: Path, size: int, *words: str | Path) -> Path:
        """Run ``posttrain run`` with these words to its end, which is a good one, however slow one is; the folder of runs."""
        self.train(out, size, "run", words=["--runs", str(out / "runs"), *map(str, words)], grace=0.0)
        return out / "runs"

    def train(self, out: Path, size: int, what: str, **more: Any) -> Trained:
        """Run a training to its end, which is a good one."""
        self.start(out, size, what, **more)
        assert self.server.status() == 0
        found = Trained(out)
        assert found.codes == [0] * size, found.said
        return found


def wait_for(look: Callable[[], Any]) -> Any:
    """What is seen, once it is something."""
    until = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < until
        time.sleep(0.001)
    return found
