"""Judges ready to be asked, for ``posttrain judge`` and for the benchmarks of an evaluation stage.

    JudgeConfig -> JudgeRoom (engines behind one request cache, opened at first use) -> JudgeSession.ask -> games
                                                                                    -> JudgeSession.record -> JSON

A session is one command or one benchmark: it keeps account of what it asked, nothing of what others did.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from posttrain.errors import ConfigError
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.cost import Budget, Caps, Ledger, Prices, totals
from posttrain.generate.engine import Completion, Engine, Fingerprint, Outcome, Progress, Request, request_key
from posttrain.generate.openai import Endpoint, OpenAIEngine
from posttrain.judge.bias import bias_report
from posttrain.judge.config import JudgeConfig, JudgePrompt, JudgeSource, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import Game, Judged, judge, prepared, prompt_digest, try_out
from posttrain.judge.reward import RewardJudge, open_reward_judge
from posttrain.judge.verdicts import Missing, account
from posttrain.stats.intervals import Chance
from posttrain.types import Display

SERVER_CONCURRENCY, GGUF_SLOTS, GGUF_CONTEXT = 16, 4, 8192
CHANCE = Chance()


# ---- who judges ----------------------------------------------------------------------------------------------------


def judge_names(sources: Sequence[JudgeSource]) -> list[str]:
    """Short names, all different: the model or the target, with a number where two are equal."""
    plain_names = [source.name for source in sources]
    return [
        f"{name} #{plain_names[: k + 1].count(name)}" if plain_names.count(name) > 1 else name
        for k, name in enumerate(plain_names)
    ]


def open_engine(source: JudgeSource, config: JudgeConfig, ledger: Path) -> Engine:
    """The engine of a judge that writes. Calls to servers are written to the ledger, and their budget goes on from it."""
    if source.endpoint is not None and source.model is not None:
        endpoint = Endpoint(
            url=source.endpoint,
            model=source.model,
            api_key_env=source.api_key_env,
            concurrency=source.concurrency or SERVER_CONCURRENCY,
            max_tokens_field=source.max_tokens_field,
            extra_body=source.extra_body,
        )
        if source.request_timeout is not None:
            endpoint = replace(endpoint, request_timeout=source.request_timeout)
        caps = Caps(money=config.max_money, calls=config.max_calls)
        return OpenAIEngine(endpoint, prices=_prices(config), caps=caps, ledger=ledger)
    if source.gguf is not None:
        from posttrain.generate.llamacpp import GgufModel, LlamaCppEngine

        return LlamaCppEngine(
            GgufModel(
                path=Path(source.gguf),
                context=source.context or GGUF_CONTEXT,
                slots=source.concurrency or GGUF_SLOTS,
            )
        )
    return _local_engine(source)


def _prices(config: JudgeConfig) -> Prices | None:
    if config.prompt_price is None or config.completion_price is None:
        return None
    return Prices(prompt_per_million=config.prompt_price, completion_per_million=config.completion_price)


def _local_engine(source: JudgeSource) -> Engine:
    from posttrain.generate.local import LocalEngine
    from posttrain.model import hardware
    from posttrain.model.frozen import frozen_model
    from posttrain.model.targets import resolve_target

    assert source.local is not None, "a reward model is no engine"
    lineage = resolve_target(source.local, source.base)
    device = hardware.resolve_device("auto")
    model = frozen_model(lineage.folder, lineage.adapter, hardware.choose_dtype("auto", device), device)
    return LocalEngine(model, lineage.template, lineage.stops, f"{source.local}@{lineage.identity[:16]}")


class JudgeRoom:
    """The judges of a configuration. Use it in a ``with`` block: what was opened is closed at its end.

    cache: holds every answer. ledger: one line for every call to a server. config: None where nobody judges; then there is
    nothing to open, and a session is an error.
    """

    def __init__(self, config: JudgeConfig | None, cache: RequestCache, ledger: Path, display: Display) -> None:
        self.config, self.ledger, self.display = config, ledger, display
        self._cache = cache
        self._names = judge_names(config.judges) if config is not None else []
        self._open: dict[str, CachedEngine | RewardJudge] = {}
        self._budget: Budget | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> JudgeRoom:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._closing.close()

    def session(self, label: str = "") -> JudgeSession:
        """Begin to ask. ``label`` stands before the progress of its questions.

        Raises:
            ConfigError: nobody judges here.

        """
        if self.config is None:
            raise ConfigError("there is no judge", where="judge", fix="say who judges: judge: {judges: [...]}")
        return JudgeSession(self, self.config, label)

    def judges(self) -> list[tuple[str, JudgeSource]]:
        """Name and source of every judge."""
        return list(zip(self._names, self.config.judges, strict=True)) if self.config is not None else []

    def opened(self, name: str, source: JudgeSource) -> CachedEngine | RewardJudge:
        """The judge of this name, loaded or connected the first time it is wanted."""
        if name not in self._open:
            self.display.tick(f"opening {name}", 0, 1)
            self._open[name] = open_reward_judge(source) if source.reward is not None else self._engine(source)
            self.display.tick(f"opening {name}", 1, 1)
        return self._open[name]

    def _engine(self, source: JudgeSource) -> CachedEngine:
        assert self.config is not None, "a source is part of a configuration"
        engine = open_engine(source, self.config, self.ledger)
        if (note := getattr(engine, "speed_note", None)) is not None:  # only a model of this process has one
            self.display.note(note)
        if isinstance(engine, OpenAIEngine):
            # WHY one budget: an engine counts what it spends itself, and the cap is for all judges together
            self._budget = engine.budget = self._budget or engine.budget
        if isinstance(engine, contextlib.AbstractContextManager):
            self._closing.enter_context(engine)
        return CachedEngine(engine, self._cache)


# ---- asking --------------------------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """One call of `JudgeSession.ask`."""

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

    async def generate(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Outcome], None]:
        keys = [request_key(self.fingerprint, request) for request in requests]
        self._keys.update(keys)
        async with contextlib.aclosing(self._engine.generate(requests)) as outcomes:
            async for index, outcome in outcomes:
                yield index, self._told(keys[index], outcome)

    def _told(self, key: str, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Completion):
            return outcome
        if self._trial and not outcome.cached:
            self._tried.add(key)
        elif not self._trial and key in self._tried:
            self._tried.discard(key)
            return replace(outcome, cached=False)
        return outcome


class JudgeSession:
    """Questions to all judges of a room, and the record of them (`Judges` in tasks/base.py)."""

    def __init__(self, room: JudgeRoom, config: JudgeConfig, label: str) -> None:
        self._room, self._config = room, config
        self._prefix = f"{label}: " if label else ""
        self._asked: list[_Asked] = []
        self._keys: set[str] = set()
        self._tried: set[str] = set()

    @property
    def language(self) -> Literal["en", "zh"]:
        """Language of posttrain's own prompts."""
        return self._config.language

    @property
    def plan(self) -> Plan:
        """How the judges are to be asked."""
        return self._config.plan

    def try_out(self, items: Sequence[Item], prompt: JudgePrompt, plan: Plan, where: str) -> None:
        """Three questions to every judge that writes, before the rest is asked. Raises ConfigError as `judge.try_out`."""
        self._check(items, prompt, plan)
        for name, source in self._room.judges():
            opened = self._room.opened(name, source)
            if not isinstance(opened, RewardJudge):
                try_out(_Noting(opened, self._keys, self._tried, trial=True), items, prompt, plan, where)

    def ask(self, items: Sequence[Item], prompt: JudgePrompt, plan: Plan) -> list[Judged]:
        """All judges' games on all items, in the order of the judges. A judge on a server is tried on three questions first.

        Raises:
            ConfigError: the plan does not fit the prompt or the items, or a reward model is to rate; before anything is loaded or sent. Or none of the
                trial calls can be used.

        """
        self._check(items, prompt, plan)
        judged = []
        for name, source in self._room.judges():
            opened = self._room.opened(name, source)
            if self._config.check and source.endpoint is not None and not isinstance(opened, RewardJudge):
                trial = _Noting(opened, self._keys, self._tried, trial=True)
                try_out(trial, items, prompt, plan, source.endpoint)

            def tick(done: int, total: int, name: str = name) -> None:
                self._room.display.tick(f"{self._prefix}judging with {name}", done, total)

            judged.append(Judged(name, self._games(opened, items, prompt, plan, tick)))
        self._asked.append(_Asked(tuple(items), prompt, plan, judged))
        return judged

    def _check(self, items: Sequence[Item], prompt: JudgePrompt, plan: Plan) -> None:
        rewards = [source.reward is not None for source in self._config.judges]
        if any(rewards) and prompt.task != "pair":
            raise ConfigError(
                "a reward model judges pairs", where="judge", fix="let another judge see to single replies"
            )
        if not all(rewards):
            prepared(items, prompt, plan)

    def _games(
        self,
        opened: CachedEngine | RewardJudge,
        items: Sequence[Item],
        prompt: JudgePrompt,
        plan: Plan,
        progress: Progress,
    ) -> list[Game]:
        if isinstance(opened, RewardJudge):
            return opened.judge(items, plan, progress)
        return judge(_Noting(opened, self._keys, self._tried), items, prompt, plan, progress)

    def failed(self) -> str | None:
        """Why there is nothing to record: every call of every judge failed. None where one was answered, or nothing was asked."""
        games = [game for one in self._asked for judged in one.judged for game in judged.games]
        values = [game.value for game in games]
        if not values or not all(isinstance(value, Missing) and value.reason == "transport" for value in values):
            return None
        reasons = Counter(value.detail for value in values if isinstance(value, Missing))
        return f"none of {len(values)} calls to the judge was answered ({reasons.most_common(1)[0][0]})"

    def record(self, chance: Chance = CHANCE) -> dict[str, Any] | None:
        """Who judged and how: fingerprints, digests of prompts, calls, spending, bias over all pairs (docs/run-folder.md).

        ``spent`` is what the ledger has on these very questions, whichever process sent them; None without calls to a server.
        The bias report is over all pairs of the session together. None where nothing was asked.
        """
        asked = [one for one in self._asked if one.items]
        if not asked:
            return None
        judges: list[dict[str, Any]] = []
        bias: dict[str, Any] = {}
        for place, (name, source) in enumerate(self._room.judges()):
            games = [game for one in asked for game in one.judged[place].games]
            digests = [] if source.reward is not None else [prompt_digest(one.prompt, one.plan) for one in asked]
            judges.append(
                {
                    "name": name,
                    "fingerprint": self._room.opened(name, source).fingerprint._asdict(),
                    "prompts": list(dict.fromkeys(digests)),
                    "calls": calls_of(games),
                }
            )
            items, games = _pairs_together(asked, place)
            if games:
                bias[name] = plain(bias_report(items, games, **asdict(chance)))
        plans = list(dict.fromkeys(one.plan for one in asked))
        return {
            "judges": judges,
            "language": self.language,
            "plan": plain(plans[0] if len(plans) == 1 else self.plan),
            "spent": self._spent(),
            "bias": bias,
        }

    def _spent(self) -> dict[str, Any] | None:
        ledger = Ledger(self._room.ledger)
        if not ledger.path.exists():
            return None
        found: dict[str, Any] = plain(totals(call for call in ledger.calls() if call.key in self._keys))
        return found


def _pairs_together(asked: Sequence[_Asked], place: int) -> tuple[list[Item], list[Game]]:
    """Items and games of all pairs that one judge was asked for, as one list each."""
    items: list[Item] = []
    games: list[Game] = []
    for one in asked:
        if one.prompt.task == "pair":
            own = one.judged[place].games
            games += [game._replace(ask=game.ask._replace(item=game.ask.item + len(items))) for game in own]
            items += one.items
    return items, games


# ---- what is told --------------------------------------------------------------------------------------------------


def calls_of(games: Sequence[Game]) -> dict[str, Any]:
    """What became of a judge's games: asked = answered + failed; answered = parsed + missing for other reasons.

    ``failures``: the failed ones by the engine's reason. ``cached``: answered from the request cache. ``asked_again``: replies that were
    cut off and asked for a second time.
    """
    failures: dict[str, int] = {}
    for game in games:
        if isinstance(game.value, Missing) and game.value.reason == "transport":
            reason = game.value.detail.partition(":")[0]
            failures[reason] = failures.get(reason, 0) + 1
    return {
        **account([game.value for game in games])._asdict(),
        "failures": failures,
        "cached": sum(getattr(game.outcome, "cached", False) for game in games),
        "asked_again": sum(game.asked_again for game in games),
    }


def plain(value: Any) -> Any:
    """NamedTuples and dataclasses as dictionaries, NaN as null: what JSON can hold."""
    if hasattr(value, "_asdict"):
        return {key: plain(found) for key, found in value._asdict().items()}
    if hasattr(value, "__dataclass_fields__"):
        return {key: plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [plain(found) for found in value]
    return None if isinstance(value, float) and value != value else value
