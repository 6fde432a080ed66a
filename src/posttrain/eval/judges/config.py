"""What a judge's YAML file and a panel's YAML file may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """A judge's prompt and how its replies are read.

    Places ``{{name}}`` in the texts are filled in one pass, so a reply that holds ``{{...}}`` itself is not touched. All prompts: ``question``
    (the user's turn that is judged), ``reference``, ``emphasis``, ``criteria``. Pairs: ``reply_a``, ``reply_b``, ``conversation_a``,
    ``conversation_b``. Single replies: ``reply``, ``conversation``. A line that is one empty place is left out.
    """

    task: Literal["pair", "single"]
    """Which of two replies is better, or how good one is."""
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
    rubric: JudgePrompt
    """Rates from 1 to 5 by your own criteria."""


@dataclass(frozen=True, kw_only=True)
class JudgeSource:
    """Who judges: a server's model, a local model, or a trained reward model."""

    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server."""
    model: str | None = None
    """Name of the model as the server knows it."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null = none is sent."""
    concurrency: Annotated[int, Ge(1)] = 16
    """At most this many requests at once (servers)."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the limit in a request; OpenAI's reasoning models want ``max_completion_tokens``."""
    local: str | None = None
    """A run's train stage, a model folder, an adapter, an asset or a hub name."""
    reward: str | None = None
    """A trained reward model: a run's train stage or a folder. It judges pairs."""
    base: str | None = None
    """Base model of an adapter folder, where it is not the one it names (``local`` and ``reward``)."""


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
    temperature: float | None = None
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
