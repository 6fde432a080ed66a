"""The one loop under all pipelines: ask, read, screen, filter, until enough rows are kept or the budget is spent.

    round n: threads -> requests -> answers -> requests ... -> rows and dropped answers -> filters -> round n + 1

Everything follows from the seed and the answers: the threads of a round go on side by side, and what they need at the same time is answered
together, in their order. Answers stand in the request cache, so a killed job that begins again is given them and makes the same rows; the
budget counts them as if they were asked.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import polars as pl

from posttrain.artifacts import Ledger, LedgerStep, Reject
from posttrain.data.rows import LINEAGE, rows_frame
from posttrain.errors import ConfigError
from posttrain.generate.cost import TRILLION, Prices
from posttrain.generate.engine import Completion, Engine, Failure, Outcome, complete, request_key
from posttrain.synth.base import Ask, Dropped, Made, Need, Pipeline, Rate, Screen, Situation, Thread
from posttrain.synth.pool import Pool
from posttrain.synth.prompts import Prompts
from posttrain.synth.records import Ending, Loss, Round
from posttrain.table import grouped
from posttrain.types import Display, Origin, PairRow, Row, SftRow, UnpairedRow

STEP = "synth"
LEAST_YIELD = 0.05
"""Share of threads that is taken to keep a row where fewer did, when the size of the next round is settled."""


# ---- what is decided and what comes of it --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When the loop ends; None = no cap."""

    rows_wanted: int
    round_size: int
    requests: int | None = None
    tokens: int | None = None
    """Read and written together."""
    money: float | None = None
    prices: Prices | None = None
    idle_rounds: int = 5
    """Rounds in a row that keep no row."""
    too_similar: float = 0.7
    """Largest ROUGE-L with a text of the pool."""


@dataclass
class Spent:
    """What the answers cost, those from the cache too. Mutable: a running account."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unknown_usage: int = 0
    """Answers without a count of tokens."""
    money: int = 0
    """In trillionths of the currency."""
    refused: bool = False
    """Whether an engine found that the next call could go over the cap."""

    def add(self, outcome: Outcome, prices: Prices | None) -> None:
        """Count one outcome; what was not sent because of the cap costs nothing."""
        if isinstance(outcome, Failure) and outcome.reason == "budget":
            self.refused = True
            return
        self.requests += 1
        if isinstance(outcome, Failure):
            return
        self.cached += outcome.cached
        if outcome.usage is None:
            self.unknown_usage += 1
            return
        self.prompt_tokens += outcome.usage.prompt_tokens
        self.completion_tokens += outcome.usage.completion_tokens
        self.money += prices.of(outcome.usage) if prices is not None else 0

    def room(self, limits: Limits) -> int:
        """How many more requests the limits allow; of tokens and money it is known only once they are spent."""
        tokens = self.prompt_tokens + self.completion_tokens
        over = (
            self.refused
            or (limits.tokens is not None and tokens >= limits.tokens)
            or (limits.money is not None and self.money >= round(limits.money * TRILLION))
        )
        if over:
            return 0
        return 2**62 if limits.requests is None else limits.requests - self.requests


@dataclass(frozen=True)
class Found:
    """What the loop made."""

    rows: pl.DataFrame
    """Those kept, at most as many as wanted."""
    ledger: Ledger
    losses: Sequence[Loss]
    spent: Spent
    history: Sequence[Round]
    threads: int
    stopped: Ending


Filters = Callable[[pl.DataFrame, int], tuple[pl.DataFrame, list[LedgerStep], list[Loss]]]
"""The rows of a round and its number -> those that stay, the account, and the others."""
Rater = Callable[[Sequence[Rate]], list[list[float | None]]]
"""Of every question: what each of its replies is worth, None where nobody could say."""


# ---- the loop ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Live:
    """A thread under way."""

    thread: Thread
    number: int
    parts: list[int]
    """How many asks it has made; a list so that threads that go on from it count on."""
    trail: list[Mapping[str, Any]]
    need: Need | None = None
    answer: Any = None
    said: list[str] = field(default_factory=list)
    """Texts that came in it so far, for the account of what was dropped."""


@dataclass
class Loop:
    """A job of synthesis. Mutable: it holds what there is so far."""

    pipeline: Pipeline
    engines: Mapping[str, Engine]
    """By role."""
    prompts: Prompts
    language: str
    limits: Limits
    seed: int
    source: str
    """Name of the rows' source."""
    filters: Filters
    display: Display
    rater: Rater | None = None
    rows: Sequence[Row] = ()
    """Those of the pipeline's ``data``."""
    pool: Pool = field(default_factory=Pool)
    spent: Spent = field(default_factory=Spent)
    losses: list[Loss] = field(default_factory=list)
    made: LedgerStep = field(default_factory=lambda: LedgerStep("ask"))
    filtered: dict[str, LedgerStep] = field(default_factory=dict)
    threads: int = 0
    rounds: int = 0
    history: list[Round] = field(default_factory=list)

    def run(self) -> Found:
        """Make rows until a limit is reached."""
        for entry_id, text in self.pipeline.seeds(self.language):
            self.pool.add(entry_id, text, made=False)
        kept: list[pl.DataFrame] = []
        ids: set[str] = set()
        stopped: Ending = "wanted"
        idle = 0
        while len(ids) < self.limits.rows_wanted:
            fresh = self._round(len(ids))
            if fresh is None:
                stopped = "exhausted"
                break
            new = self._distinct(fresh, ids)
            kept.append(new)
            ids.update(new["id"])
            self._tell(len(ids), len(new))
            idle = 0 if len(new) else idle + 1
            if self.spent.room(self.limits) <= 0:
                stopped = "budget" if len(ids) < self.limits.rows_wanted else "wanted"
                break
            if idle >= self.limits.idle_rounds:
                stopped = "idle"
                break
        made = pl.concat([rows_frame([]), *kept], how="vertical_relaxed")
        rows = self._within(made)
        return Found(
            rows,
            self._ledger(len(made), len(rows)),
            self.losses,
            self.spent,
            self.history,
            self.threads,
            stopped,
        )

    def _round(self, kept: int) -> pl.DataFrame | None:
        """The rows of one round that passed the filters; None where there is nothing more to ask."""
        size = self._size(self.limits.rows_wanted - kept, kept)
        chance = random.Random(f"{self.seed}:{self.rounds}")
        situation = Situation(
            self.pool, self.rounds, self.threads, size, chance, self.prompts, self.language, self.rows
        )
        begun = self.pipeline.threads(situation)
        if not begun:
            return None
        live = [_Live(thread, self.threads + place, [0], []) for place, thread in enumerate(begun, 1)]
        self.threads += len(begun)
        self.made.rows_in += len(begun)
        ends_before = self.made.rows_out + sum(self.made.dropped.values())
        rows = self._play(live)
        self.rounds += 1
        self.made.rows_out += len(rows)
        ends = self.made.rows_out + sum(self.made.dropped.values()) - ends_before
        self.made.added += ends - len(begun)
        frame = self._frame(rows)
        if not rows:
            return frame
        stay, lines, losses = self.filters(frame, self.rounds)
        for line in lines:
            self._count(line)
        self.losses += losses
        return stay

    def _size(self, needed: int, kept: int) -> int:
        """Threads of the next round: as many as the rows need at the yield so far, and no more than the requests left can finish."""
        most = self.pipeline.rows_a_thread
        rate = max(LEAST_YIELD * most, kept / self.threads) if self.threads else most
        costs = self.pipeline.costs(self.prompts, self.language)
        requests = max(1.0, most * sum(cost.a_row for cost in costs))
        room = int(self.spent.room(self.limits) / requests)
        return max(1, min(self.limits.round_size, math.ceil(needed / rate), room))

    def _play(self, begun: Sequence[_Live]) -> list[tuple[Row, Made, _Live]]:
        """Drive threads to their ends."""
        rows: list[tuple[Row, Made, _Live]] = []
        live = [one for new in begun for one in self._advance(new, rows)]
        while live:
            self._answer([one for one in live if not isinstance(one.need, Rate)])
            self._rate([one for one in live if isinstance(one.need, Rate)])
            live = [one for old in live for one in self._advance(old, rows)]
        return rows

    def _advance(self, one: _Live, rows: list[tuple[Row, Made, _Live]]) -> list[_Live]:
        """Send a thread what it waits for; it and the threads that go on from it, as far as they need an engine or a judge."""
        if isinstance(one.answer, Dropped):
            return self._end(one, one.answer)
        try:
            need = one.thread.send(one.answer)
            while isinstance(need, Screen):
                similar = self.pool.similar(need.text, need.but)
                if similar and similar[0].score > self.limits.too_similar:
                    detail = f"ROUGE-L {similar[0].score:.2f} with {similar[0].id}, limit {self.limits.too_similar:g}"
                    return self._end(one, Dropped("too_similar", detail, need.text))
                self.pool.add(f"{self.pipeline.name}-{one.number}.{one.parts[0]}", need.text, made=True)
                one.said.append(need.text)
                need = one.thread.send(similar)
        except StopIteration as end:
            children: list[_Live] = []
            for result in end.value:
                if isinstance(result, Dropped):
                    self._lose(result, one)
                elif isinstance(result, Made):
                    rows.append((self._row(result, one), result, one))
                else:
                    children += self._advance(_Live(result, one.number, one.parts, list(one.trail)), rows)
            return children
        one.need, one.answer = need, None
        return [one]

    def _end(self, one: _Live, why: Dropped) -> list[_Live]:
        one.thread.close()
        self._lose(why if why.text else why._replace(text="\n\n".join(one.said)), one)
        return []

    def _answer(self, asking: Sequence[_Live]) -> None:
        """Answer the requests of a wave; a thread whose request fails, or finds the budget spent, is told to end."""
        questions: list[tuple[_Live, int, Ask]] = []
        room = self.spent.room(self.limits)
        for one in asking:
            asks = cast(tuple[Ask, ...], one.need)
            if len(asks) > room:
                one.answer = Dropped("budget", "the budget was spent before it could be asked")
                continue
            room -= len(asks)
            one.answer = []
            for ask in asks:
                one.parts[0] += 1
                questions.append((one, one.parts[0], self._seeded(ask, one.number, one.parts[0])))
        found: dict[int, Outcome] = {}
        for role, places in grouped((ask.role, place) for place, (_, _, ask) in enumerate(questions)).items():
            label = "asking" if len(self.engines) == 1 else f"asking the {role}"

            def progress(done: int, total: int, label: str = label) -> None:
                self.display.tick(label, done, total)

            outcomes = complete(self.engines[role], [questions[place][2].request for place in places], progress)
            found.update(zip(places, outcomes, strict=True))
        for place, (one, _, ask) in enumerate(questions):
            outcome = found[place]
            self.spent.add(outcome, self.limits.prices)
            one.trail.append(self._lineage(ask, outcome))
            if isinstance(outcome, Failure):
                reason = "budget" if outcome.reason == "budget" else f"failed_{outcome.reason}"
                found_instead: Completion | Dropped = Dropped(reason, outcome.detail)
            elif not _encodable(outcome.text):
                text = outcome.text.encode("utf-8", "replace").decode()
                found_instead = Dropped("invalid_unicode", "the answer has half a character", text)
            else:
                one.said.append(outcome.text)
                found_instead = outcome
            if isinstance(one.answer, Dropped):
                continue  # another of its requests has ended it; what this one said stands in its account
            if isinstance(found_instead, Dropped) and not ask.optional:
                one.answer = found_instead
            else:
                one.answer.append(found_instead)

    def _seeded(self, ask: Ask, thread: int, part: int) -> Ask:
        """The request with a seed of its own, which depends on nothing but the job's seed and its place."""
        sampling = ask.request.sampling
        if sampling.temperature == 0:
            return ask
        number = hashlib.sha256(f"{self.seed}:{thread}:{part}".encode()).digest()
        seed = int.from_bytes(number[:4], "big") >> 1
        return ask._replace(request=replace(ask.request, sampling=replace(sampling, seed=seed)))

    def _lineage(self, ask: Ask, outcome: Outcome) -> Mapping[str, Any]:
        """What the lineage of a row says of one request."""
        request, engine = ask.request, self.engines[ask.role]
        sampling = request.sampling
        return {
            "role": ask.role,
            "request": request_key(engine.fingerprint, request)[:16],
            "prompt": self.prompts.digest(ask.prompt) if ask.prompt else None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }

    def _rate(self, rating: Sequence[_Live]) -> None:
        if not rating:
            return
        if self.rater is None:
            raise ConfigError("nobody rates replies here", where=self.source, fix="say who scores: score: ...")
        for one, values in zip(rating, self.rater([cast(Rate, one.need) for one in rating]), strict=True):
            one.answer = values

    # ---- rows and accounts -----------------------------------------------------------------------------------------

    def _lose(self, dropped: Dropped, one: _Live) -> None:
        self.made.dropped[dropped.reason] = self.made.dropped.get(dropped.reason, 0) + 1
        self.losses.append(Loss(self.made.name, dropped.reason, dropped.detail, dropped.text, one.number))

    def _row(self, made: Made, one: _Live) -> Row:
        meta: dict[str, Any] = {
            **made.meta,
            "synth": {
                "pipeline": self.pipeline.name,
                "topic": made.topic,
                "thread": one.number,
                "round": self.rounds,
                "requests": one.trail,
                "similar": [[entry, round(score, 4)] for entry, score in made.similar],
            },
        }
        beside: dict[str, Any] = {
            "origin": Origin(self.source, one.number),
            "source": self.source,
            "meta": meta,
        }
        if made.rejected is not None:
            return PairRow(made.prompt, made.replies, made.rejected, **beside)
        if made.desirable is not None:
            return UnpairedRow(made.prompt, made.replies, made.desirable, **beside)
        return SftRow((*made.prompt, *made.replies), **beside)

    def _frame(self, rows: Sequence[tuple[Row, Made, _Live]]) -> pl.DataFrame:
        """The rows with their lineage."""
        frame = rows_frame([row for row, _, _ in rows])
        if not rows:
            return frame
        by = ", ".join(f"{engine.fingerprint.model}" for engine in self.engines.values())
        lineage: dict[str, list[Any]] = {
            "parents": [list(made.parents) for _, made, _ in rows],
            "verdicts": [[{"step": STEP, **verdict} for verdict in made.verdicts] for _, made, _ in rows],
            "scores": [
                [{"name": name, "value": value, "by": by} for name, value in made.scores.items()] for _, made, _ in rows
            ],
            "cluster": [made.topic for _, made, _ in rows],
        }
        return frame.with_columns(pl.Series(name, values, dtype=LINEAGE[name]) for name, values in lineage.items())

    def _distinct(self, frame: pl.DataFrame, ids: set[str]) -> pl.DataFrame:
        """The rows that are not there yet."""
        fresh = frame["id"].is_first_distinct() & ~frame["id"].is_in(list(ids))
        for row in frame.filter(~fresh).iter_rows(named=True):
            self.losses.append(
                Loss("deduplicate", "exact_duplicate", f"same as {row['id']}", text_of(row), row["line"])
            )
        twice = len(frame) - int(fresh.sum())
        dropped = {"exact_duplicate": twice} if twice else {}
        self._count(LedgerStep("deduplicate", len(frame), len(frame) - twice, dropped=dropped))
        return frame.filter(fresh)

    def _within(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The first rows, as many as wanted."""
        wanted = min(self.limits.rows_wanted, len(rows))
        if 0 < wanted < len(rows) and rows["desirable"][wanted] is not None:
            while wanted and rows["line"][wanted - 1] == rows["line"][wanted]:
                wanted -= 1  # a good reply and the bad one to the same prompt stay together
            wanted = wanted or len(rows.filter(pl.col("line") == rows["line"][0]))
        for row in rows[wanted:].iter_rows(named=True):
            self.losses.append(Loss("wanted", "not_wanted", f"{wanted:,} rows were there", text_of(row), row["line"]))
        return rows[:wanted]

    def _count(self, line: LedgerStep) -> None:
        """Add a round's account of a step to that of all."""
        total = self.filtered.setdefault(line.name, LedgerStep(line.name))
        total.rows_in += line.rows_in
        total.rows_out += line.rows_out
        for mine, more in ((total.dropped, line.dropped), (total.notes, line.notes)):
            for name, count in more.items():
                mine[name] = mine.get(name, 0) + count

    def _ledger(self, made: int, kept: int) -> Ledger:
        surplus = {"not_wanted": made - kept} if made > kept else {}
        last = LedgerStep("wanted", made, kept, dropped=surplus)
        ledger = Ledger([self.made, *self.filtered.values(), last])
        for loss in self.losses:
            ledger.rejects.append(Reject(Origin(self.source, loss.thread), loss.step, loss.reason, loss.detail[:500]))
        return ledger

    def _tell(self, kept: int, fresh: int) -> None:
        """Progress with the yield by filter."""
        lost = Counter[str]()
        for line in (self.made, *self.filtered.values()):
            lost.update(line.dropped)
        self.history.append(Round(self.rounds, self.threads, self.spent.requests, kept, dict(lost)))
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in lost.most_common(4))
        self.display.tick("rows kept", min(kept, self.limits.rows_wanted), self.limits.rows_wanted)
        self.display.note(
            f"round {self.rounds}: {fresh:,} rows kept, {min(kept, self.limits.rows_wanted):,} of {self.limits.rows_wanted:,}; "
            f"{self.spent.requests:,} requests" + (f"; so far dropped: {reasons}" if reasons else "")
        )


def _encodable(text: str) -> bool:
    """Whether a text can be written; half of a surrogate pair can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_of(row: Mapping[str, Any]) -> str:
    """A row as the account of what was dropped shows it."""
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"])
