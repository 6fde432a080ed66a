"""Judges ready to be asked, for ``posttrain judge`` and for the benchmarks of an evaluation stage.

    JudgeConfig -> JudgePool (engines behind one request cache, opened at first use) -> Judges.ask -> judgments
                                                                                    -> Judges.record -> JudgeRecord

A session is one command or one benchmark: it keeps account of what it asked, nothing of what others did.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from posttrain.errors import ConfigError
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.cost import Caps, Totals, read_calls, totals
from posttrain.generate.engine import Completion, Engine, Fingerprint, Outcome, Outcomes, Request, request_key
from posttrain.generate.engines import Engines
from posttrain.generate.source import prices_of
from posttrain.judge.bias import BiasReport, bias_report, failures_of
from posttrain.judge.config import JudgeConfig, JudgePrompt, JudgeSource, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import Judgment, judge, prepared, prompt_digest, try_out
from posttrain.judge.reward import RewardJudge, open_reward_judge
from posttrain.judge.verdicts import Accounting, Missing, account
from posttrain.parallel.peers import ALONE, Peers
from posttrain.stats.intervals import IntervalSettings
from posttrain.types import Display

MANY_UNREAD = 0.1
"""A judge that leaves more than this share of its calls without a verdict is named."""


# ---- the record ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calls(Accounting):
    """What became of a judge's questions, and why calls failed."""

    failures: dict[str, int] = field(default_factory=dict)
    """The failed ones by the engine's reason."""
    cached: int = 0
    """Answered from the request cache."""
    asked_again: int = 0
    """Cut off, and asked for a second time with a higher limit."""

    @property
    def unread(self) -> float:
        """Share of the calls that gave no verdict."""
        return (self.asked - self.parsed) / self.asked if self.asked else 0.0


@dataclass(frozen=True, slots=True)
class JudgeEntry:
    """One judge."""

    name: str
    fingerprint: Fingerprint
    calls: Calls
    prompts: tuple[str, ...] = ()
    """Digests of the prompts it was asked with."""


@dataclass(frozen=True, slots=True)
class JudgeRecord:
    """Who judged, and how."""

    judges: tuple[JudgeEntry, ...]
    language: Literal["en", "zh"]
    plan: Plan
    spent: Totals | None = None
    """What the ledger has on these very questions, whichever process sent them; None without calls to a server."""
    bias: dict[str, BiasReport] = field(default_factory=dict)
    """By judge, over all pairs of the session together."""


class Judged(NamedTuple):
    """One judge's judgments of the items it was given."""

    name: str
    judgments: list[Judgment]


# ---- who judges ----------------------------------------------------------------------------------------------------


def judge_names(sources: Sequence[JudgeSource]) -> list[str]:
    """Short names, all different: the model or the target, with a number where two are equal."""
    names = [source.name for source in sources]
    return [f"{name} #{names[: k + 1].count(name)}" if names.count(name) > 1 else name for k, name in enumerate(names)]


class JudgePool:
    """The judges of a configuration. Use it in a ``with`` block: what was opened is closed at its end.

    cache: holds every answer. ledger: one line for every call to a server. config: None where nobody judges; then there is
    nothing to open, and a session is an error. peers: who shares the work of judges that are local models.
    """

    def __init__(
        self,
        config: JudgeConfig | None,
        cache: RequestCache,
        ledger: Path,
        display: Display,
        peers: Peers = ALONE,
    ) -> None:
        self.config, self.ledger, self.display, self._peers = config, ledger, display, peers
        caps = Caps() if config is None else Caps(money=config.max_money, calls=config.max_calls)
        prices = None if config is None else prices_of(config.prompt_price, config.completion_price)
        shared = None if config is None else config.shared_budget
        self._engines = Engines(caps, prices, cache, ledger, display, peers, shared)
        self._rewards: dict[str, RewardJudge] = {}

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(self, *_: object) -> None:
        self._rewards.clear()
        self._engines.__exit__()

    def session(self, label: str = "", *, tried: bool = False) -> Judges:
        """Begin to ask. ``label`` stands before the progress of its questions; judges that were ``tried`` before are not tried again.

        Raises ConfigError where nobody judges.
        """
        if self.config is None:
            raise ConfigError("there is no judge", where="judge", fix="say who judges: judge: {judges: [...]}")
        return Judges(self, self.config, label, check=self.config.check and not tried)

    def judges(self) -> list[tuple[str, JudgeSource]]:
        """Name and source of every judge."""
        sources = self.config.judges if self.config is not None else ()
        return list(zip(judge_names(sources), sources, strict=True))

    def opened(self, name: str, source: JudgeSource) -> CachedEngine | RewardJudge:
        """The judge of this name, loaded or connected the first time it is wanted."""
        if source.reward is None:
            return self._engines.opened(source)
        if name not in self._rewards:
            self.display.tick(f"opening {name}", 0, 1)
            self._rewards[name] = open_reward_judge(source, peers=self._peers)
            self.display.tick(f"opening {name}", 1, 1)
        return self._rewards[name]


# ---- asking --------------------------------------------------------------------------------------------------------


class _Batch(NamedTuple):
    """One call of `Judges.ask`."""

    items: Sequence[Item]
    prompt: JudgePrompt
    plan: Plan
    judged: list[Judged]


class _Noting:
    """An engine that notes the keys of what it is asked: they find its calls in the ledger, also those of an earlier life.

    An answer of the trial is no cached one when its question comes again in earnest: it was asked and paid in this session.
    """

    def __init__(self, engine: Engine, keys: set[str], tried: set[str], *, trial: bool = False) -> None:
        self._engine, self._keys, self._tried, self._trial = engine, keys, tried, trial

    @property
    def fingerprint(self) -> Fingerprint:
        return self._engine.fingerprint

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        keys = [request_key(self.fingerprint, request) for request in requests]
        self._keys.update(keys)
        with contextlib.closing(self._engine.generate(requests)) as outcomes:
            for index, outcome in outcomes:
                yield index, self._noted(keys[index], outcome)

    def _noted(self, key: str, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Completion):
            return outcome
        if self._trial and not outcome.cached:
            self._tried.add(key)
        elif not self._trial and key in self._tried:
            self._tried.discard(key)
            return replace(outcome, cached=False)
        return outcome


class Judges:
    """Questions to all judges of a pool (one, or a panel) in one command or benchmark, and the account of their calls and bias."""

    def __init__(self, pool: JudgePool, config: JudgeConfig, label: str, *, check: bool) -> None:
        self._pool, self._config, self._tries = pool, config, check
        self._prefix = f"{label}: " if label else ""
        self._batches: list[_Batch] = []
        self._keys: set[str] = set()
        self._tried: set[str] = set()
        self.language: Literal["en", "zh"] = config.language
        self.plan = config.plan

    def try_out(self, items: Sequence[Item], prompt: JudgePrompt, plan: Plan, where: str) -> None:
        """Three questions to every judge that writes, before the rest is asked. Raises ConfigError as `judge.try_out`."""
        self._check(items, prompt, plan)
        for name, source in self._pool.judges():
            opened = self._pool.opened(name, source)
            if not isinstance(opened, RewardJudge):
                try_out(self._noting(opened, trial=True), items, prompt, plan, where)

    def ask(self, items: Sequence[Item], prompt: JudgePrompt, plan: Plan) -> list[Judged]:
        """All judges' judgments on all items, in the order of the judges. A judge on a server is tried on three questions first.

        Raises:
            ConfigError: the plan does not fit the prompt or the items, or a reward model is to rate; before anything is loaded or sent. Or none of the
                trial calls can be used.

        """
        self._check(items, prompt, plan)
        judged = []
        for name, source in self._pool.judges():
            opened = self._pool.opened(name, source)
            tick = partial(self._pool.display.tick, f"{self._prefix}judging with {name}")
            if isinstance(opened, RewardJudge):
                judged.append(Judged(name, opened.judge(items, plan, tick)))
                continue
            if self._tries and source.endpoint is not None:
                try_out(self._noting(opened, trial=True), items, prompt, plan, source.place)
            judged.append(Judged(name, judge(self._noting(opened), items, prompt, plan, tick)))
        self._batches.append(_Batch(tuple(items), prompt, plan, judged))
        return judged

    def _noting(self, engine: Engine, *, trial: bool = False) -> _Noting:
        return _Noting(engine, self._keys, self._tried, trial=trial)

    def _check(self, items: Sequence[Item], prompt: JudgePrompt, plan: Plan) -> None:
        rewards = [source.reward is not None for source in self._config.judges]
        if any(rewards) and prompt.task != "pair":
            raise ConfigError(
                "a reward model judges pairs", where="judge", fix="let another judge see to single replies"
            )
        if not all(rewards):
            prepared(items, prompt, plan)

    def failed(self) -> str | None:
        """Why there is nothing to record: every call of every judge failed. None where one was answered, or nothing was asked."""
        judgments = [judgment for one in self._batches for judged in one.judged for judgment in judged.judgments]
        values = [judgment.value for judgment in judgments]
        if not values or not all(isinstance(value, Missing) and value.reason == "transport" for value in values):
            return None
        reasons = Counter(value.detail for value in values if isinstance(value, Missing))
        return f"none of {len(values)} calls to the judge was answered ({reasons.most_common(1)[0][0]})"

    def record(self, settings: IntervalSettings = IntervalSettings()) -> JudgeRecord | None:
        """Who judged and how; None where nothing was asked."""
        batches = [one for one in self._batches if one.items]
        if not batches:
            return None
        judges: list[JudgeEntry] = []
        bias: dict[str, BiasReport] = {}
        for place, (name, source) in enumerate(self._pool.judges()):
            judgments = [judgment for one in batches for judgment in one.judged[place].judgments]
            digests = [] if source.reward is not None else [prompt_digest(one.prompt, one.plan) for one in batches]
            fingerprint = self._pool.opened(name, source).fingerprint
            judges.append(JudgeEntry(name, fingerprint, calls_of(judgments), tuple(dict.fromkeys(digests))))
            items, of_pairs = _pairs_together(batches, place)
            if of_pairs:
                bias[name] = bias_report(items, of_pairs, settings)
        plans = {one.plan for one in batches}
        plan = plans.pop() if len(plans) == 1 else self.plan
        return JudgeRecord(tuple(judges), self.language, plan, self._spent(), bias)

    def _spent(self) -> Totals | None:
        if not self._pool.ledger.exists():
            return None
        return totals([call for call in read_calls(self._pool.ledger) if call.key in self._keys])


def _pairs_together(batches: Sequence[_Batch], place: int) -> tuple[list[Item], list[Judgment]]:
    """Items and judgments of all pairs that one judge was asked for, as one list each."""
    items: list[Item] = []
    judgments: list[Judgment] = []
    for one in batches:
        if one.prompt.task == "pair":
            own = one.judged[place].judgments
            judgments += [other._replace(ask=other.ask._replace(item=other.ask.item + len(items))) for other in own]
            items += one.items
    return items, judgments


def calls_of(judgments: Sequence[Judgment]) -> Calls:
    """Count what became of a judge's questions."""
    return Calls(
        **asdict(account([judgment.value for judgment in judgments])),
        failures=failures_of(judgments),
        cached=sum(getattr(judgment.outcome, "cached", False) for judgment in judgments),
        asked_again=sum(judgment.asked_again for judgment in judgments),
    )
