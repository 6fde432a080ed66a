"""From one call to a judge to a value: the table of parsers a judge's file chooses from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from posttrain.generate.engine import Failure, Outcome
from posttrain.judge import verdicts
from posttrain.judge.config import JudgePrompt, JudgeTask
from posttrain.judge.verdicts import Missing, Verdict
from posttrain.stats.length_controlled import preference_from_logprobs
from posttrain.table import Table

TOP_LOGPROBS = 5
"""How many likely tokens a weighted verdict looks at (AlpacaEval's number)."""


class Read(NamedTuple):
    """What one call says."""

    value: Verdict | float | Missing
    """A verdict in positions, a rating, or the place of a label among the prompt's."""
    to_second: float | None = None
    """Probability of the reply shown second, where the judge gives one."""


@dataclass(frozen=True, slots=True)
class Parser:
    """How replies are read: the text by ``parse``; or, without it, the log-probabilities of the first token (`weighted`)."""

    task: JudgeTask
    parse: Callable[[str, JudgePrompt], Verdict | float | Missing] | None = None

    @property
    def logprobs(self) -> bool:
        """Whether it needs log-probabilities."""
        return self.parse is None

    def read(self, outcome: Outcome, prompt: JudgePrompt) -> Read:
        """What a call says."""
        if (parse := self.parse) is None:
            return weighted(outcome)
        return Read(verdicts.read(outcome, lambda text: parse(text, prompt)))


def weighted(outcome: Outcome) -> Read:
    """AlpacaEval's weighted verdict from the first token: ``m`` for the reply shown first, ``M`` for the second.

    The token limit is one, so a reply that was cut there is whole. Spaces around a token do not count. Exactly 1/2 is a tie.
    """
    if isinstance(outcome, Failure):
        return Read(Missing("transport", f"{outcome.reason}: {outcome.detail}"))
    if outcome.finish == "content_filter":
        return Read(Missing("refused", "stopped by a content filter"))
    if not outcome.logprobs:
        return Read(Missing("parse", "the judge gave no log-probabilities"))
    likely = sorted(outcome.logprobs[0].top, key=lambda found: -found[1])
    preference = preference_from_logprobs([(token.strip(), value) for token, value in likely], swapped=False)
    if math.isnan(preference):
        return Read(Missing("parse", f"neither m nor M among {[token for token, _ in likely]}"))
    to_second = preference - 1
    return Read("tie" if to_second == 0.5 else "first" if to_second < 0.5 else "second", to_second)


def _scores(text: str) -> Verdict | Missing:
    found = verdicts.two_scores(text)
    return found if isinstance(found, Missing) else verdicts.verdict_of_scores(*found)


def _five(text: str) -> Verdict | Missing:
    found = verdicts.five_verdict(text)
    return found if isinstance(found, Missing) else verdicts.side(found)


PARSERS: Table[Parser] = Table(
    "parser",
    {
        "pair_letter": Parser("pair", lambda text, _: verdicts.pair_verdict(text)),
        "pair_mt_bench": Parser("pair", lambda text, _: verdicts.mt_bench_pair(text)),
        "pair_scores": Parser("pair", lambda text, _: _scores(text)),
        "pair_five": Parser("pair", lambda text, _: _five(text)),
        "pair_logprob": Parser("pair"),
        "rating": Parser("single", lambda text, prompt: verdicts.rating(text, prompt.lowest, prompt.highest)),
        "rating_mt_bench": Parser("single", lambda text, _: verdicts.mt_bench_rating(text)),
        "label": Parser("label", lambda text, prompt: verdicts.label(text, prompt.labels)),
    },
)
"""``pair_letter``: the last line with ``[[A]]``, ``[[B]]`` or ``[[C]]``. ``pair_mt_bench``: MT-Bench's own rule. ``pair_scores``: two ratings
``[[8, 6]]``, a difference up to 0.1 is a tie. ``pair_five``: Arena-Hard's labels ``[[A>>B]]``, without their strength. ``pair_logprob``: ``m`` and ``M``
by probability. ``rating``: one ``[[7]]`` on the prompt's scale. ``rating_mt_bench``: MT-Bench's own rule, no check of the scale.
``label``: the last line with one of the prompt's labels, ``[[refuses]]``."""
