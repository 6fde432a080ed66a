"""What a judge's YAML file, a panel's YAML file and a stage's judge may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, MinLen

from posttrain.generate.source import ModelSource, check_prices
from posttrain.references import NamesStage

JudgeTask = Literal["pair", "single", "label"]
"""What a judge says: a verdict on two replies, a rating of one, or a label of one."""

JUDGES = (*ModelSource.KINDS, "reward")
"""Keys of a `JudgeSource` that say who judges."""


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """A judge's prompt and how its replies are read.

    Places ``{{name}}`` in the texts are filled in one pass, so a reply that holds ``{{...}}`` itself is not touched. All prompts: ``question``
    (the user's turn that is judged), ``reference``, ``emphasis``, ``criteria``. Pairs: ``reply_a``, ``reply_b``, ``conversation_a``,
    ``conversation_b``. Single replies: ``reply``, ``conversation``. A line that is one empty place is left out.
    """

    task: JudgeTask
    """Which of two replies is better, how good one is, or which of ``labels`` fits it."""
    parser: str
    """Name of the parser (docs/judges.md lists them)."""
    prompt: Annotated[str, MinLen(1)]
    """The user message for the first turn."""
    later_turn_prompt: str | None = None
    """The user message for later turns; null = ``prompt`` again, which must then show a conversation."""
    system: str = ""
    """The system message; empty = none."""
    reference: str | None = None
    """What ``{{reference}}`` stands for where a reference answer is shown, with the answer in its own ``{{reference}}``; null = the bare answer."""
    emphasis: str | None = None
    """What ``{{emphasis}}`` stands for in the emphasised variant; null = there is no such variant."""
    user_heading: str = "User"
    """Stands before every user turn in a conversation."""
    assistant_heading: str = "Assistant"
    """Stands before every reply in a conversation."""
    lowest: float = 1.0
    """Worst rating of the scale (ratings only)."""
    highest: float = 10.0
    """Best rating of the scale (ratings only)."""
    labels: tuple[Annotated[str, MinLen(1)], ...] = ()
    """What may stand in double brackets (``label`` only); the value is its place, from 0."""
    max_tokens: Annotated[int, Ge(1)] = 2048
    """Longest reply of the judge in tokens, thinking included."""


@dataclass(frozen=True, kw_only=True)
class JudgePrompts:
    """The prompts that posttrain brings in one language."""

    pair: JudgePrompt
    """MT-Bench style: reasons, then names the better reply."""
    single: JudgePrompt
    """MT-Bench style: reasons, then rates from 1 to 10."""
    binary: JudgePrompt
    """AlpacaEval style: one token, weighted by its probability."""
    five: JudgePrompt
    """Arena-Hard style: answers itself, then says which reply is better and by how much."""
    rubric: JudgePrompt
    """Rates from 1 to 5 by your own criteria."""
    refusal: JudgePrompt
    """Says whether a reply complies, refuses, or does both, in the order of `posttrain.judge.refusal.LABELS`."""


@dataclass(frozen=True, kw_only=True)
class JudgeSource(ModelSource):
    """Who judges: a server's model, a local model, a GGUF file, or a trained reward model. Exactly one of them is named."""

    KINDS: ClassVar[tuple[str, ...]] = JUDGES

    reward: Annotated[str, NamesStage("reward_model", or_outside="model")] | None = None
    """A trained reward model: a run's train stage or a folder. It judges pairs."""


@dataclass(frozen=True, kw_only=True)
class PanelFile:
    """Several judges whose majority decides."""

    judges: Annotated[tuple[JudgeSource, ...], MinLen(2)]
    """Who votes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How often and in which form a judge is asked."""

    orders: Literal["both", "original", "swapped"] = "both"
    """Pairs: a first and b first, or one of them."""
    samples: Annotated[int, Ge(1)] = 1
    """Draws of every question; the majority decides pairs, the mean ratings."""
    temperature: Annotated[float, Ge(0)] | None = None
    """null = 0 for one draw and 1 for several."""
    emphasis: Literal["no", "yes", "both"] = "no"
    """Ask with the emphasised prompt; ``both`` asks with and without it, and the result is that without."""
    turns: Literal["each", "last"] = "each"
    """Judge every turn of a conversation, or its last only."""
    reference: Literal["needed", "always", "never"] = "needed"
    """Show reference answers: for maths, reasoning, coding and items without a category, wherever there is one, or nowhere."""
    criteria: str = ""
    """What ``{{criteria}}`` stands for."""
    max_tokens: Annotated[int, Ge(1)] | None = None
    """Longest reply of the judge; null = what its prompt says."""
    retry_cut: Annotated[int, Ge(1)] = 4
    """A reply that is cut off at its limit is asked for once more, with this many times the tokens (up to 32,768); 1 = not again."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges, how they are asked, and what may be spent on it."""

    judges: Annotated[tuple[JudgeSource, ...], MinLen(1)]
    """One judge, or a panel whose majority decides (of ratings the mean)."""
    language: Literal["en", "zh"] = "en"
    """Language of posttrain's own judge prompts."""
    plan: Plan = Plan()
    """How often and in which form they are asked."""
    max_calls: Annotated[int, Ge(0)] | None = None
    """At most this many requests are sent to servers, retries included; null = no cap."""
    max_money: Annotated[float, Ge(0)] | None = None
    """At most this much money, in the currency of the prices; null = no cap."""
    prompt_price: Annotated[float, Ge(0)] | None = None
    """Price of a million tokens read."""
    completion_price: Annotated[float, Ge(0)] | None = None
    """Price of a million tokens written."""
    shared_budget: str | None = None
    """A file in which other runs and processes of this machine count what they spend as well: together they keep below these caps."""
    check: bool = True
    """Try every judge on a server on three calls before the rest is paid for, and stop where none of them can be read."""

    def __post_init__(self) -> None:
        prices = (self.prompt_price, self.completion_price)
        spending = (*prices, self.max_calls, self.max_money)
        if any(value is not None for value in spending) and all(one.endpoint is None for one in self.judges):
            raise ValueError("caps and prices are for servers: leave max_calls, max_money and the prices away")
        check_prices(*prices, self.max_money, "calls")
        if self.shared_budget is not None and self.max_calls is None and self.max_money is None:
            raise ValueError("a shared budget without a cap limits nothing: give max_calls or max_money")
