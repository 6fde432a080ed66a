"""Judging: items -> asks -> requests -> one engine -> judgments. Every ask becomes one judgment, read or missing with its reason.

Both orders by default. Verdicts of judgments are in positions (``first`` was shown first); `outcomes` turns them into models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from posttrain.artifacts import digest
from posttrain.errors import ConfigError
from posttrain.generate.engine import Completion, Engine, Failure, Outcome, Progress, Request, Sampling, complete
from posttrain.judge.config import JudgePrompt, JudgeTask, Plan
from posttrain.judge.items import Item, needs_reference
from posttrain.judge.parsers import PARSERS, TOP_LOGPROBS
from posttrain.judge.prompts import check_fits, messages_text
from posttrain.judge.verdicts import BothOrders, Missing, Verdict, majority, mirrored
from posttrain.table import grouped
from posttrain.types import Message

Order = Literal["original", "swapped", "none"]
"""a shown first, b shown first, or no order: single replies, and judges that see one reply at a time."""


class Ask(NamedTuple):
    """One question to the judge."""

    item: int
    """Place of the item in the list."""
    turn: int
    """From 1."""
    order: Order
    sample: int
    """From 0."""
    emphasis: bool


class Judgment(NamedTuple):
    """What became of one question to the judge."""

    ask: Ask
    value: Verdict | float | Missing
    """A verdict in positions, a rating, the place of a label, or why there is none."""
    to_second: float | None = None
    """Probability of the reply shown second, where the judge gives one."""
    outcome: Outcome | None = None
    """The reply or the failed call; None for a judge that writes nothing (a reward model)."""
    asked_again: bool = False
    """The first reply was cut off at its limit, and the question was asked once more with a higher one."""


Question = tuple[int, int]
"""(place of the item, turn): what a verdict or a mean rating belongs to."""


# ---- asking --------------------------------------------------------------------------------------------------------


def asks_of(items: Sequence[Item], plan: Plan, task: JudgeTask) -> list[Ask]:
    """Everything the plan asks: items, turns, prompt variants, orders and samples, in this order."""
    orders: tuple[Order, ...] = ("none",)
    if task == "pair":
        orders = ("original", "swapped") if plan.orders == "both" else (plan.orders,)
    variants = {"no": (False,), "yes": (True,), "both": (False, True)}[plan.emphasis]
    return [
        Ask(place, turn, order, sample, emphasis)
        for place, item in enumerate(items)
        for turn in range(1 if plan.turns == "each" else len(item.turns), len(item.turns) + 1)
        for emphasis in variants
        for order in orders
        for sample in range(plan.samples)
    ]


def sampling_of(prompt: JudgePrompt, plan: Plan) -> Sampling:
    """How replies are drawn.

    Raises:
        ConfigError: several samples at temperature 0 (they would all be the same), or of a judge that is read by its probabilities.

    """
    parser = PARSERS[prompt.parser]
    if plan.samples > 1 and (plan.temperature == 0 or parser.logprobs):
        problem = "at temperature 0" if plan.temperature == 0 else "of probabilities, which do not change,"
        raise ConfigError(
            f"{plan.samples} samples {problem} would be one sample {plan.samples} times",
            where="--samples",
            fix="give a temperature above 0, or ask for one sample" if plan.temperature == 0 else "ask for one sample",
        )
    temperature = plan.temperature if plan.temperature is not None else 0.0 if plan.samples == 1 else 1.0
    return Sampling(
        temperature=temperature,
        max_tokens=plan.max_tokens or prompt.max_tokens,
        logprobs=TOP_LOGPROBS if parser.logprobs else None,
    )


def shows_reference(item: Item, turn: int, plan: Plan) -> bool:
    """Whether the judge sees the item's reference answer of a turn."""
    if plan.reference == "never" or not item.references or not item.references[turn - 1]:
        return False
    return plan.reference == "always" or item.category is None or needs_reference(item.category)


def judge(
    engine: Engine, items: Sequence[Item], prompt: JudgePrompt, plan: Plan, progress: Progress | None = None
) -> list[Judgment]:
    """Ask everything the plan asks. Put a `CachedEngine` around the engine and a stopped job goes on where it was.

    What is cut off at its limit is asked once more with ``plan.retry_cut`` times the tokens, and a second reply takes the place of the
    first. ``progress`` begins anew for these.

    Raises:
        ConfigError: the plan does not fit the prompt or the items; or what the engine raises for a whole batch.

    """
    return _judgments(engine, prepared(items, prompt, plan), prompt, plan, progress)


def prepared(items: Sequence[Item], prompt: JudgePrompt, plan: Plan) -> list[tuple[Ask, Request]]:
    """Everything that is asked, and how. Nothing is sent. Raises ConfigError as `judge`."""
    asks = asks_of(items, plan, prompt.task)
    check_fits(
        prompt,
        later_turns=any(ask.turn > 1 for ask in asks),
        emphasis=plan.emphasis != "no",
        criteria=plan.criteria,
    )
    sampling = sampling_of(prompt, plan)

    def request(ask: Ask) -> Request:
        system, user = messages_text(
            prompt,
            items[ask.item],
            ask.turn,
            swapped=ask.order == "swapped",
            reference=shows_reference(items[ask.item], ask.turn, plan),
            emphasis=ask.emphasis,
            criteria=plan.criteria,
        )
        opening = (Message("system", system),) if system else ()
        return Request((*opening, Message("user", user)), sampling, sample=ask.sample)

    return [(ask, request(ask)) for ask in asks]


MOST_TOKENS = 32_768
"""A reply that was cut off is not asked for with more than this."""


def _judgments(
    engine: Engine,
    questions: Sequence[tuple[Ask, Request]],
    prompt: JudgePrompt,
    plan: Plan,
    progress: Progress | None = None,
) -> list[Judgment]:
    """Ask all questions, those that were cut off once more."""
    read = PARSERS[prompt.parser].read
    outcomes = complete(engine, [request for _, request in questions], progress)
    judgments = [
        Judgment(ask, *read(outcome, prompt), outcome) for (ask, _), outcome in zip(questions, outcomes, strict=True)
    ]
    longer = {}
    for place, (_, request) in enumerate(questions):
        limit = min(request.sampling.max_tokens * plan.retry_cut, MOST_TOKENS)
        if limit > request.sampling.max_tokens and _was_cut(judgments[place]):
            longer[place] = replace(request, sampling=replace(request.sampling, max_tokens=limit))
    if not longer:
        return judgments
    for place, outcome in zip(longer, complete(engine, list(longer.values()), progress), strict=True):
        first, limit = judgments[place], longer[place].sampling.max_tokens
        if isinstance(outcome, Failure):  # the first reply is still what is known
            why = f"cut off; asked again with {limit} tokens: {outcome.reason}: {outcome.detail}"
            judgments[place] = first._replace(value=Missing("length", why), to_second=None, asked_again=True)
        else:
            judgments[place] = Judgment(first.ask, *read(outcome, prompt), outcome, asked_again=True)
    return judgments


def _was_cut(one: Judgment) -> bool:
    """Cut off at its limit of tokens, so that there is no verdict (one that is read from its first token has one)."""
    missing = isinstance(one.value, Missing) and one.value.reason == "length"
    return missing and isinstance(one.outcome, Completion) and one.outcome.finish == "length"


TRIAL_CALLS = 3


def try_out(engine: Engine, items: Sequence[Item], prompt: JudgePrompt, plan: Plan, where: str) -> None:
    """Ask three of the plan's questions, spread over the items, before the rest is asked. Of three questions or fewer none is a trial.

    Raises:
        ConfigError: none of the replies can be read: the message shows the last part of one. Also where every call failed.

    """
    questions = prepared(items, prompt, plan)
    if len(questions) <= TRIAL_CALLS:
        return
    last = len(questions) - 1
    trials = _judgments(engine, [questions[place] for place in (0, last // 2, last)], prompt, plan)
    failures = [one.outcome for one in trials if isinstance(one.outcome, Failure)]
    ours = any(
        failure.reason == "budget" for failure in failures
    )  # the cap holds for the trial too: nothing about the judge
    if ours or not all(isinstance(one.value, Missing) for one in trials):
        return
    if len(failures) == len(trials):
        raise ConfigError(
            f"the judge answered none of {len(trials)} trial calls ({failures[0].reason}: {failures[0].detail})",
            where=where,
            fix="mend what the server says, and run the same command again",
        )
    one, reply = trials[0], trials[0].outcome
    if failures or not isinstance(reply, Completion):  # a server that fails now and then is no reason to stop
        return
    reason = one.value.reason if isinstance(one.value, Missing) else ""
    raise ConfigError(
        f"none of {len(trials)} trial replies can be read by parser {prompt.parser} ({reason}). One of them ends:\n"
        f"    {_end(reply)}",
        where=where,
        fix="take another judge, or correct the prompt or the parser; --no-check (check: false in a recipe) judges all the same",
    )


def _end(reply: Completion) -> str:
    text = reply.text or (f"(only thinking) {reply.reasoning}" if reply.reasoning else "(empty)")
    return text.strip()[-300:].replace("\n", "\n    ")


# ---- from judgments to outcomes ----------------------------------------------------------------------------------------


def by_question(judgments: Iterable[Judgment]) -> dict[Question, list[Judgment]]:
    """Judgments of every (item, turn), in order of appearance."""
    return grouped(((judgment.ask.item, judgment.ask.turn), judgment) for judgment in judgments)


def both_orders_of(judgments: Sequence[Judgment]) -> BothOrders | None:
    """One question in both orders, each the majority of its samples; None where one order was not asked."""
    sides = _majorities(judgments)
    return BothOrders(sides["original"], sides["swapped"]) if len(sides) == 2 else None


def outcome_of(judgments: Sequence[Judgment]) -> Verdict | Missing:
    """Who wins one question, in models (``first`` is model a).

    Both orders: what they agree on, otherwise a tie; missing where one of them is (`BothOrders`). One order: its majority, turned round
    where b was shown first. No order: the majority. Samples of an order vote; equal votes are a tie, missing ones do not vote.
    """
    if (both := both_orders_of(judgments)) is not None:
        return both.outcome
    ((order, found),) = _majorities(judgments).items()
    return mirrored(found) if order == "swapped" and not isinstance(found, Missing) else found


def outcomes(judgments: Iterable[Judgment]) -> dict[Question, Verdict | Missing]:
    """The outcome of every question, in order of appearance."""
    return {question: outcome_of(found) for question, found in by_question(judgments).items()}


def panel_outcomes(judges: Sequence[Mapping[Question, Verdict | Missing]]) -> Mapping[Question, Verdict | Missing]:
    """The outcomes of one judge, or of a panel the most frequent ones: a tie where two are equally frequent; missing ones do not vote."""
    if len(judges) == 1:
        return judges[0]
    return {question: majority(judge[question] for judge in judges) for question in judges[0]}


def _majorities(judgments: Sequence[Judgment]) -> dict[Order, Verdict | Missing]:
    """By order: ``original`` and ``swapped``, one of them, or ``none``."""
    votes: dict[Order, list[Verdict | Missing]] = {}
    for judgment in judgments:
        if isinstance(judgment.value, float | int):
            raise TypeError("a rating is no verdict: outcomes are of pairs")
        votes.setdefault(judgment.ask.order, []).append(judgment.value)
    return {order: majority(found) for order, found in votes.items()}


# ---- what is written -----------------------------------------------------------------------------------------------


def prompt_digest(prompt: JudgePrompt, plan: Plan) -> str:
    """The first 16 hex digits of sha256 over prompt, parser and criteria: equal digests, equal questions."""
    return digest({"prompt": prompt, "criteria": plan.criteria, "reference": plan.reference})[:16]


def judgment_record(judgment: Judgment, items: Sequence[Item], judge_name: str) -> dict[str, Any]:
    """One line of verdicts.jsonl."""
    ask, item, outcome = judgment.ask, items[judgment.ask.item], judgment.outcome
    missing = judgment.value if isinstance(judgment.value, Missing) else None
    record: dict[str, Any] = {
        "item": item.id,
        "line": item.origin.line,
        "judge": judge_name,
        "model_a": item.model_a,
        "model_b": item.model_b,
        "category": item.category,
        "turn": ask.turn,
        "order": ask.order,
        "sample": ask.sample,
        "emphasis": ask.emphasis,
        "verdict": None if missing else judgment.value,
        "missing": missing.reason if missing else None,
        "detail": missing.detail if missing else None,
    }
    if judgment.asked_again:
        record["asked_again"] = True
    if judgment.to_second is not None:
        record["to_second"] = judgment.to_second
    if isinstance(outcome, Completion):
        record |= {
            "reply": outcome.text,
            "reasoning": outcome.reasoning,
            "finish": outcome.finish,
            "usage": None if outcome.usage is None else outcome.usage._asdict(),
            "cached": outcome.cached,
        }
    elif outcome is not None:
        record |= {"failure": outcome.reason, "attempts": outcome.attempts}
    return record
