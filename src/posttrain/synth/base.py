"""What a pipeline is: threads of requests whose answers become rows.

A thread is a generator. It yields what it needs, is sent what came of it, and returns what it made:

    answers = yield (Ask(...), Ask(...))     completions, in their order; a request that fails ends the thread with its reason, unless it is optional
    similar = yield Screen(text)             the texts of the pool most like it; one that is too similar ends the thread
    values = yield Rate(prompt, replies)     what a reward model says of replies, None where it can't
    return [Made(...), Dropped(...), thread] rows, answers that gave none with the reason, threads that go on from here

`loop.py` drives many threads side by side; nothing here knows an engine, a cache or a file. So what a pipeline says depends on its seed, the
pool and the answers, never on the order in which answers come.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

from posttrain.config import Problem
from posttrain.generate.engine import Completion, Request, Sampling
from posttrain.generate.source import ModelSource
from posttrain.references import NamesModel, NamesStage
from posttrain.synth.pool import Pool, Similar
from posttrain.synth.prompts import Prompts
from posttrain.types import Message, Row


class Ask(NamedTuple):
    """One request and who answers it."""

    request: Request
    role: str = "writer"
    """A key of the pipeline's `Pipeline.roles`."""
    prompt: str = ""
    """Name of the prompt file's entry it was made of, for the lineage."""
    optional: bool = False
    """Whether the thread can do without an answer: it is then sent a `Dropped` in its place."""


class Screen(NamedTuple):
    """A text that must not be like any in the pool; it stands in the pool from then on."""

    text: str
    but: frozenset[str] = frozenset()
    """Texts it may be like: those it was made of."""


class Rate(NamedTuple):
    """Replies to one prompt whose worth is wanted."""

    prompt: tuple[Message, ...]
    replies: tuple[str, ...]
    row_id: str
    """Of the prompt's row."""


@dataclass(frozen=True)
class Made:
    """A row: a conversation, a pair, or a judged reply."""

    prompt: tuple[Message, ...]
    replies: tuple[Message, ...]
    """What follows the prompt: the chosen side of a pair."""
    rejected: tuple[Message, ...] | None = None
    desirable: bool | None = None
    parents: tuple[str, ...] = ()
    """Ids of the seeds or rows it was made from."""
    topic: str | None = None
    similar: Sequence[Similar] = ()
    """What in the pool is most like it."""
    verdicts: tuple[Mapping[str, Any], ...] = ()
    """Measurements with value and limit: ``{check, value, limit, passed}``."""
    scores: Mapping[str, float] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


class Dropped(NamedTuple):
    """An answer that gave no row: a short fixed reason, the detail of this case, and the text."""

    reason: str
    detail: str = ""
    text: str = ""


Need = tuple[Ask, ...] | Screen | Rate
Thread = Generator[Need, Any, "Sequence[Made | Dropped | Thread]"]


class Situation(NamedTuple):
    """What a pipeline may look at when it begins threads."""

    pool: Pool
    number: int
    """Of the round, from 0."""
    begun: int
    """Threads of earlier rounds."""
    size: int
    """Threads wanted."""
    random: random.Random
    """Seeded by the stage's seed and the number of the round."""
    prompts: Prompts
    language: str
    rows: Sequence[Row] = ()
    """Those of the pipeline's ``data``, where it has one."""


class Cost(NamedTuple):
    """What one kind of request comes to, before anything is asked."""

    role: str
    what: str
    a_row: float
    """Requests of it for a row, where every answer gives all the rows it can."""
    prompt: str
    """A prompt of the usual length."""
    completion_tokens: int
    """At most."""
    more_prompt_tokens: int = 0
    """What stands in the prompt besides: earlier turns, replies that are rated."""


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A trained reward model."""

    model: Annotated[str, NamesStage("reward_model", or_outside="model")]
    """A train stage with the objective reward, or a folder."""
    base: Annotated[str, NamesModel()] | None = None
    """Base model of an adapter folder, where it is not the one it names."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The configuration of a pipeline; every one says what concerns it."""

    plays_user: ClassVar[bool] = False
    """Whether the writer writes turns of the user itself, for which its template must have a place."""

    name: str
    """The tag in recipes."""

    @property
    def roles(self) -> Mapping[str, ModelSource | None]:
        """Who is asked, by role; None = the stage's writer."""
        return {"writer": None}

    @property
    def rows_a_thread(self) -> float:
        """Rows that a thread gives where nothing is dropped."""
        return 1.0

    @property
    def reward_model(self) -> RewardModel | None:
        """Who answers `Rate`; None where nothing is rated."""
        return None

    def problems(self, writer: ModelSource) -> Iterable[Problem]:
        """Who is asked can't do what is asked; paths begin at the stage."""
        return ()

    def seeds(self, language: str) -> Sequence[tuple[str, str]]:
        """(id, text) of what stands in the pool before anything is made; files that it needs are read, so that what is wrong is told at once."""
        return ()

    def threads(self, situation: Situation) -> list[Thread]:
        """The threads of a round; none where there is nothing more to ask."""
        raise NotImplementedError

    def costs(self, prompts: Prompts, language: str) -> Sequence[Cost]:
        """What a row costs where nothing is dropped."""
        raise NotImplementedError


def ask(
    text: str,
    sampling: Sampling,
    *,
    system: str = "",
    role: str = "writer",
    prompt: str = "",
    before: Sequence[Message] = (),
    sample: int = 0,
    optional: bool = False,
) -> Ask:
    """A request of one user turn behind ``before``."""
    first = (Message("system", system),) if system else ()
    return Ask(Request((*first, *before, Message("user", text)), sampling, sample), role, prompt, optional)


def whole(answer: Completion) -> Dropped | None:
    """Why an answer can't be used whatever it says: it was cut at its limit, or says nothing."""
    if answer.finish == "length":
        return Dropped("cut", "the answer reached the limit of tokens", answer.text)
    if answer.finish != "stop":
        return Dropped("not_finished", f"the answer ended by {answer.finish}", answer.text)
    return None if answer.text.strip() else Dropped("empty", "the answer is empty", answer.text)


_NUMBERED = re.compile(
    r"^\s*(?:#+\s*|\*+\s*)?(?:\d+|[一二三四五六七八九十]+)\s*[.:\uff0e\uff1a\u3001)\uff09](?!\d)\s*", re.MULTILINE
)


def numbered(text: str) -> list[str]:
    r"""The entries of a numbered list, without their numbers; what stands before the first number is left out.

    >>> numbered("Here you are:\n1. Write a poem\n2) Sing it")
    ['Write a poem', 'Sing it']
    """
    starts = list(_NUMBERED.finditer(text))
    ends = [*(found.start() for found in starts[1:]), len(text)][: len(starts)]
    parts = [text[found.end() : end].strip() for found, end in zip(starts, ends, strict=True)]
    return [part.strip().strip("*").strip() for part in parts if part.strip()]
