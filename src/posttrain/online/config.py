"""The settings of learning from one's own replies. No torch here: recipes are parsed without it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import Discriminator

from posttrain.config import Problem
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives.online_dpo import OnlineDpo
from posttrain.objectives.policy_gradient import Dapo, DrGrpo, Grpo, Gspo, PolicyGradient, Ppo, Rloo
from posttrain.online.scores import AnyScore, LengthScore, TaskScore
from posttrain.tasks.base import ScoresReplies
from posttrain.train.config import StepSettings
from posttrain.train.protocols import Schedule

if TYPE_CHECKING:
    from posttrain.generate.openai import Endpoint


@dataclass(frozen=True, kw_only=True)
class OwnSampler:
    """The live weights write the replies, in this process."""

    name: Literal["local"] = "local"

    def check(self) -> None:
        """There is nothing to be found out."""


@dataclass(frozen=True, kw_only=True)
class ServerSampler:
    """An OpenAI-compatible server that takes and tells token ids and changes LoRA adapters while it runs (vLLM) writes the replies."""

    name: Literal["server"]
    url: str
    """Base URL, as ``http://127.0.0.1:8000/v1``. The server has the weights that the policy's adapter lies on."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null = none is sent."""
    adapter_folder: str | None = None
    """Where the adapter is written for the server at every step: a folder that both see under this path; null = a folder of the stage."""
    concurrency: Annotated[int, Ge(1)] = 64
    """At most this many requests at once."""
    request_timeout: Annotated[float, Gt(0)] = 300.0
    """Seconds from sending one request to its whole answer."""

    def check(self) -> None:
        """The address is one and the key is there. Raises ConfigError where they are not; the server is not asked."""
        self.endpoint("")

    def endpoint(self, model: str) -> Endpoint:
        """The server with a model that it knows."""
        from posttrain.generate.openai import Endpoint, secret_of

        secret_of(self.api_key_env)
        return Endpoint(
            url=self.url,
            model=model,
            api_key_env=self.api_key_env,
            concurrency=self.concurrency,
            request_timeout=self.request_timeout,
        )


Method = Annotated[Rloo | Grpo | DrGrpo | Dapo | Gspo | Ppo | OnlineDpo, Discriminator("name")]
"""What ``method`` may be, told apart by ``name``. The policy gradients are one objective with other settings."""


@dataclass(frozen=True, kw_only=True)
class _Learned:
    """What is learned from which replies (a base of its own: its keys come first)."""

    method: Method = field(default_factory=Rloo)
    """What is learned from the scores (docs/online.md)."""
    scores: Annotated[tuple[AnyScore, ...], MinLen(1)]
    """What a reply is worth: one, or several weighed and added up."""
    suffix: str = ""
    """Stands behind every prompt, on a line of its own: the demand that a check looks for."""
    steps: Annotated[int, Ge(1)] = 100
    """Rounds of replies."""
    prompts: Annotated[int, Ge(1)] = 8
    """Prompts a step."""
    replies: Annotated[int, Ge(1)] = 4
    """Replies to each of them: a group."""
    max_new_tokens: Annotated[int, Ge(1)] = 256
    """Longest reply."""
    max_prompt_tokens: Annotated[int, Ge(1)] = 512
    """Longer prompts are dropped and counted in the ledger, never cut."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Of sampling, and of every log-probability that is trained on. top_p is 1: a law that is cut can't be trained on."""
    sampler: Annotated[OwnSampler | ServerSampler, Discriminator("name")] = field(default_factory=OwnSampler)
    """Who writes the replies: ``{name: local}``, or a server (docs/online.md)."""
    cut_replies: Literal["score", "drop"] | float = 0.0
    """What becomes of replies that reach ``max_new_tokens``: a number is their score whatever they say (it should be below all others),
    ``score`` takes them as they stand, ``drop`` leaves them out of the step. All are counted."""
    passes: Annotated[int, Ge(1)] = 1
    """How often the replies of a step are gone through."""
    minibatches: Annotated[int, Ge(1)] = 1
    """Optimizer steps a pass, each on a part of the prompts."""
    adapter: Annotated[LoraAdapter | FullWeights, Discriminator("name")] = field(default_factory=LoraAdapter)
    micro_batch_tokens: Annotated[int, Ge(1)] = 2048
    """Tokens that are computed at once while learning; the replies of a prompt stand together and share it."""


@dataclass(frozen=True, kw_only=True)
class OnlineSettings(StepSettings, _Learned):
    """One training run on replies of the policy's own. ``prompts`` x ``replies`` are a step; ``micro_batch_tokens`` only moves memory."""

    schedule: Schedule = "constant"
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the steps during which the rate rises linearly from 0."""
    evaluate_every: Annotated[int, Ge(1)] | None = None
    """Replies to the held-out prompts are scored every so many steps; null = before the first and after the last step only."""
    evaluation_prompts: Annotated[int, Ge(1)] = 128
    """Held-out prompts that are answered, the first so many."""
    largest_gap: Annotated[float, Gt(0)] = 0.01
    """How far sampler and trainer may lie apart before the first step (a server: at every step), as KL a token (k3); beyond it nothing is learned."""
    checkpoint_every: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Steps between checkpoints; ``auto`` = every step while writing costs at most 5% of the time."""

    @property
    def objective(self) -> PolicyGradient | OnlineDpo:
        """What the training loop calls the method."""
        return self.method

    @property
    def peak_learning_rate(self) -> float:
        """The highest rate, whether it is written here or the method's own."""
        return self.method.default_learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def updates(self) -> int:
        """Optimizer steps on the replies of a step."""
        return self.passes * self.minibatches

    @property
    def task_score(self) -> TaskScore | None:
        """The benchmark whose prompts are answered; None where the prompts come from rows."""
        return next((one for one in self.scores if isinstance(one, TaskScore)), None)


def settings_problems(settings: OnlineSettings) -> Iterable[Problem]:
    """What can't work."""
    compares_all = isinstance(settings.method, PolicyGradient) and settings.method.compares_all
    if settings.replies < 2 and not compares_all:
        yield Problem(("replies",), "a group of one reply has nothing to be compared with: at least 2")
    pairwise = [place for place, one in enumerate(settings.scores) if one.compares]
    if settings.replies < 2 and pairwise:
        yield Problem(
            ("scores", pairwise[0]), "one reply to a prompt has nothing to be compared with: replies: 2 or more"
        )
    if settings.minibatches > settings.prompts:
        yield Problem(("minibatches",), f"{settings.prompts} prompts a step can't be parted into more")
    if isinstance(settings.method, Ppo) and not isinstance(settings.adapter, LoraAdapter):
        yield Problem(
            ("adapter",), "the value head of ppo is a small adapter beside the policy's: adapter: {name: lora}"
        )
    if isinstance(settings.sampler, ServerSampler):
        if not isinstance(settings.adapter, LoraAdapter):
            fix = "a server takes adapters, not all weights: adapter: {name: lora}, or sampler: {name: local}"
            yield Problem(("sampler",), fix)
        elif settings.adapter.dora:
            yield Problem(("sampler",), "vLLM knows no DoRA: leave adapter.dora away, or sampler: {name: local}")
    tasks = [(place, one) for place, one in enumerate(settings.scores) if isinstance(one, TaskScore)]
    for place, one in tasks:
        if not isinstance(one.task, ScoresReplies):
            yield Problem(("scores", place, "task"), f"{one.task.name} can't score one reply by itself")
    for place, _ in tasks[1:]:
        yield Problem(("scores", place), "only one of the scores can be a task: its prompts are the prompts")
    nears = any(isinstance(one, LengthScore) for one in settings.scores)
    if nears and not isinstance(settings.cut_replies, str) and settings.cut_replies >= 0:
        fix = "a length score is never above 0, so a cut reply would be the best: cut_replies: score, or a number below"
        yield Problem(("cut_replies",), fix)


def settings_warnings(settings: OnlineSettings) -> Iterator[str]:
    """What is known to be wrong with settings together, though it works."""
    yield from settings.method.warnings()
    if (
        isinstance(settings.method, PolicyGradient)
        and settings.method.advantage == "group_std"
        and settings.replies == 2
    ):
        yield "group_std of two replies is +0.7 or -0.7 whatever they scored: only the order of the scores counts"
