"""What a synthesis will ask for, before anything is asked: requests, tokens and money by role, for several yields."""

from __future__ import annotations

import math
from dataclasses import dataclass

from posttrain.data.text import tokens
from posttrain.generate.cost import TRILLION, Prices
from posttrain.generate.engine import Usage
from posttrain.report.values import Cell, Number, Section, Table, Text
from posttrain.synth.config import SynthSettings
from posttrain.synth.prompts import load_prompts

YIELDS = (1.0, 0.5, 0.25)
"""Share of what could be a row that is kept."""
TOKENS_A_WORD = 1.4
"""Of usual tokenizers, where a CJK character is a word; chat templates included."""


@dataclass(frozen=True)
class Line:
    """One kind of request, for all rows that are wanted at a yield of 1. Tokens of completions are upper bounds."""

    role: str
    what: str
    requests: float
    prompt_tokens: float
    completion_tokens: float


def estimate(settings: SynthSettings) -> list[Line]:
    """The requests for ``rows_wanted`` rows where every answer gives all the rows it can."""
    prompts = load_prompts(settings.language, settings.prompts)
    found = []
    for cost in settings.pipeline.costs(prompts, settings.language):
        requests = cost.a_row * settings.rows_wanted
        read = TOKENS_A_WORD * len(tokens(cost.prompt)) + cost.more_prompt_tokens
        found.append(Line(cost.role, cost.what, requests, requests * read, requests * cost.completion_tokens))
    return found


def money(lines: list[Line], prices: Prices) -> float:
    """The most that they cost, in the currency of the prices."""
    usage = Usage(round(sum(one.prompt_tokens for one in lines)), round(sum(one.completion_tokens for one in lines)))
    return prices.of(usage) / TRILLION


def estimate_section(settings: SynthSettings) -> Section:
    """The estimate for the terminal."""
    lines = estimate(settings)
    prices = settings.budget.prices
    columns = ["role", "what", "requests", "tokens read", "tokens written, at most"]
    rows: list[tuple[Cell, ...]] = [
        (one.role, one.what, *(_count(value) for value in (one.requests, one.prompt_tokens, one.completion_tokens)))
        for one in lines
    ]
    totals: list[tuple[Cell, ...]] = []
    for share in YIELDS:
        scaled = [
            Line(one.role, one.what, one.requests / share, one.prompt_tokens / share, one.completion_tokens / share)
            for one in lines
        ]
        total = (sum(one.requests for one in scaled), sum(one.prompt_tokens + one.completion_tokens for one in scaled))
        cost: tuple[Cell, ...] = (Number(money(scaled, prices), digits=2),) if prices is not None else ()
        totals.append((Number(share, "share"), *(_count(value) for value in total), *cost))
    heads = ("kept of what is made", "requests", "tokens", *(("money",) if prices is not None else ()))
    caps = {"requests": settings.budget.requests, "tokens": settings.budget.tokens, "money": settings.budget.money}
    said = ", ".join(f"{value:,g} {name}" for name, value in caps.items() if value is not None)
    return Section(
        f"{settings.pipeline.name}: {settings.rows_wanted:,} rows",
        "estimate",
        (
            Table("Requests where every answer is kept", tuple(columns), tuple(rows)),
            Table("In all", heads, tuple(totals)),
            Text(f"It ends at {said}." if said else "No budget is set: it ends when the rows are there.", "aside"),
        ),
    )


def _count(value: float) -> Number:
    return Number(math.ceil(value), "count")
