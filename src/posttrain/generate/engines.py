"""The models that one piece of work asks, judges and writers alike: opened once, behind one request cache and one budget."""

from __future__ import annotations

import contextlib
from pathlib import Path

from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.cost import Budget, Caps, Prices
from posttrain.generate.openai import OpenAIEngine
from posttrain.generate.shared_budget import SharedBudget
from posttrain.generate.source import ModelSource, open_source
from posttrain.parallel.peers import ALONE, Peers
from posttrain.types import Display


class Engines:
    """Each model is loaded or connected the first time it is wanted. Use it in a ``with`` block: what was opened is closed at its end.

    caps, prices: of all servers together. ledger: one line for every call to a server. peers: who shares the work of local models. shared_budget: the
    file in which other processes count as well; None = the caps are those of this ledger alone.
    """

    def __init__(
        self,
        caps: Caps,
        prices: Prices | None,
        cache: RequestCache,
        ledger: Path,
        display: Display,
        peers: Peers = ALONE,
        shared_budget: str | None = None,
    ) -> None:
        self._caps, self._prices, self._cache, self._ledger, self._display = caps, prices, cache, ledger, display
        self._peers, self._shared_budget = peers, shared_budget
        self._open: list[tuple[ModelSource, CachedEngine]] = []
        self._budget: Budget | SharedBudget | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._closing.close()

    def opened(self, source: ModelSource) -> CachedEngine:
        """The engine of a model. Raises what `open_source` raises."""
        for known, engine in self._open:
            if known == source:
                return engine
        self._display.tick(f"opening {source.name}", 0, 1)
        opened = open_source(source, self._caps, self._prices, self._ledger, self._peers)
        self._display.tick(f"opening {source.name}", 1, 1)
        if (note := getattr(opened, "speed_note", None)) is not None:  # only a model of this process has one
            self._display.note(note)
        if isinstance(opened, OpenAIEngine):
            # WHY one budget: an engine counts what it spends itself, and the cap is for all servers together
            self._budget = opened.budget = self._budget or self._shared() or opened.budget
        if isinstance(opened, contextlib.AbstractContextManager):
            self._closing.enter_context(opened)
        self._open.append((source, CachedEngine(opened, self._cache)))
        return self._open[-1][1]

    def _shared(self) -> SharedBudget | None:
        if self._shared_budget is None:
            return None
        path = Path(self._shared_budget).expanduser()
        return self._closing.enter_context(SharedBudget(path, self._caps, self._prices, self._ledger))
