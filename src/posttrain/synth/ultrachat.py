"""UltraChat's way: two models, or two roles of one, talk about a topic for several rounds (Ding et al. 2023, arXiv:2305.14233).

Three sectors: questions about the world, creation and writing, help with given material. The user is told that it is the user, and what it says
must stay in character: over-polite closings, roles that flip and repetitions end a conversation, or drop it where nothing whole stands before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from annotated_types import Ge, Gt, Le, MinLen

from posttrain.config import Problem, read_yaml
from posttrain.data.text import tokens
from posttrain.errors import ConfigError
from posttrain.generate.engine import Sampling
from posttrain.generate.source import ModelSource
from posttrain.references import NamesFile
from posttrain.synth.base import Cost, Dropped, Made, Pipeline, Screen, Situation, Thread, ask, whole
from posttrain.synth.pool import rouge_l
from posttrain.synth.prompts import Prompts
from posttrain.types import Message

HERE = Path(__file__).parent
Sector = Literal["world", "writing", "material"]
REPEATED = 0.7
"""ROUGE-L with an earlier turn of the same speaker from which a turn repeats it."""


class Topic(NamedTuple):
    """A leaf of the tree."""

    sector: Sector
    theme: str
    topic: str
    """Of ``material`` the passage."""

    @property
    def name(self) -> str:
        """As rows carry it."""
        return f"{self.sector} / {self.theme}" + ("" if self.sector == "material" else f" / {self.topic}")


@dataclass(frozen=True, kw_only=True)
class UltraChat(Pipeline):
    """Conversations of several rounds between a user and an assistant over a tree of topics (UltraChat)."""

    name: Literal["ultrachat"]
    topics: Annotated[str, NamesFile(builtin="synth/topics.en.yaml")] = "builtin"
    """The tree: a YAML file with ``world``, ``writing`` and ``material``, or ``builtin`` (posttrain's own of the stage's language)."""
    sectors: Annotated[tuple[Sector, ...], MinLen(1)] = ("world", "writing", "material")
    """Which of them."""
    user: ModelSource | None = None
    """Who plays the user; null = the writer."""
    min_rounds: Annotated[int, Ge(1)] = 2
    """Fewest rounds of a conversation that is kept."""
    max_rounds: Annotated[int, Ge(1), Le(16)] = 7
    """Most rounds; each conversation draws its own number."""
    temperature: Annotated[float, Ge(0)] = 1.0
    """Of the user."""
    top_p: Annotated[float, Gt(0), Le(1)] = 0.95
    """Of the user."""
    user_tokens: Annotated[int, Ge(1)] = 256
    """Longest turn of the user."""
    reply_temperature: Annotated[float, Ge(0)] = 0.7
    reply_tokens: Annotated[int, Ge(1)] = 512
    """Longest reply."""
    min_user_words: Annotated[int, Ge(1)] = 3
    """Shortest turn of the user in words; a CJK character counts as one."""
    max_user_words: Annotated[int, Ge(1)] = 200
    """Longest turn of the user in words."""
    min_reply_words: Annotated[int, Ge(1)] = 5
    """Shortest reply in words."""

    def __post_init__(self) -> None:
        if self.min_rounds > self.max_rounds:
            raise ValueError(f"min_rounds {self.min_rounds} is above max_rounds {self.max_rounds}")

    @property
    def roles(self) -> Mapping[str, ModelSource | None]:
        """The assistant writes, somebody plays the user."""
        return {"writer": None, "user": self.user}

    def seeds(self, language: str) -> Sequence[tuple[str, str]]:
        """Nothing; the tree is read, so that what is wrong with it is told at once."""
        read_topics(self.topics, language)
        return ()

    def threads(self, situation: Situation) -> list[Thread]:
        """Conversations about leaves of the tree, every leaf once before any comes again."""
        leaves = [leaf for leaf in read_topics(self.topics, situation.language) if leaf.sector in self.sectors]
        found = []
        for place in range(situation.begun, situation.begun + situation.size):
            turn, at = divmod(place, len(leaves))
            order = _shuffled(len(leaves), turn)
            found.append(
                self._talk(situation, leaves[order[at]], situation.random.randint(self.min_rounds, self.max_rounds))
            )
        return found

    def costs(self, prompts: Prompts, language: str) -> Sequence[Cost]:
        """A turn of each side a round; both read what was said before."""
        rounds = (self.min_rounds + self.max_rounds) / 2
        before = round((rounds - 1) / 2 * (self.user_tokens + self.reply_tokens))
        return (
            Cost("user", "turns of the user", rounds, prompts.texts["ultrachat.user"], self.user_tokens, before),
            Cost("writer", "replies", rounds, "", self.reply_tokens, before + self.user_tokens),
        )

    def _talk(self, situation: Situation, leaf: Topic, rounds: int) -> Thread:
        prompts = situation.prompts
        saying = Sampling(self.temperature, self.top_p, self.user_tokens)
        replying = Sampling(self.reply_temperature, self.top_p, self.reply_tokens)
        name = f"ultrachat.opener_{leaf.sector}"
        text = prompts.fill(name, topic=leaf.topic.strip(), theme=leaf.theme)
        (said,) = yield (ask(text, saying, role="user", prompt=name),)
        talk: list[Message] = []
        similar: Sequence[Any] = ()
        ended = "rounds"
        while True:
            turn = said.text.strip().strip('"\u201c\u201d')
            fault = whole(said) or self._user_fault(turn, talk, prompts)
            if fault is None and not talk:
                similar = yield Screen(turn)
            if fault is None:
                content = turn
                if leaf.sector == "material" and not talk:
                    content = prompts.fill("ultrachat.material", request=turn, passage=leaf.topic.strip())
                before = (*talk, Message("user", content))
                (reply,) = yield (ask(content, replying, before=talk),)
                fault = whole(reply) or self._reply_fault(reply.text.strip(), talk)
                if fault is None:
                    talk = [*before, Message("assistant", reply.text.strip())]
            if fault is not None:
                if len(talk) < 2 * self.min_rounds:
                    return [fault]
                ended = fault.reason
                break
            if len(talk) >= 2 * rounds:
                break
            flipped = [Message("assistant" if one.role == "user" else "user", one.content) for one in talk[:-1]]
            task = prompts.fill("ultrachat.user", topic=leaf.topic if leaf.sector != "material" else leaf.theme)
            opening = [Message("user", task), *flipped] if flipped[0].role == "assistant" else flipped
            text = prompts.fill("ultrachat.next", reply=talk[-1].content)
            (said,) = yield (ask(text, saying, role="user", prompt="ultrachat.user", before=opening),)
        return [
            Made(
                tuple(talk[:-1]),
                (talk[-1],),
                topic=leaf.name,
                similar=similar,
                meta={"rounds": len(talk) // 2, "rounds_drawn": rounds, "ended_by": ended},
            )
        ]

    def _user_fault(self, turn: str, talk: Sequence[Message], prompts: Prompts) -> Dropped | None:
        """Why a turn of the user is not one."""
        words, low = len(tokens(turn)), turn.casefold()
        if not self.min_user_words <= words <= self.max_user_words:
            limits = f"{self.min_user_words} to {self.max_user_words}"
            return Dropped("user_length", f"{words} words, {limits} are wanted", turn)
        for reason, name in (("polite_closing", "ultrachat.closings"), ("flipped_role", "ultrachat.flips")):
            if (found := next((word for word in prompts.words[name] if word in low), None)) is not None:
                return Dropped(reason, f"has {found!r}", turn)
        return _repeats(turn, [one.content for one in talk if one.role == "user"])

    def _reply_fault(self, reply: str, talk: Sequence[Message]) -> Dropped | None:
        words = len(tokens(reply))
        if words < self.min_reply_words:
            return Dropped("reply_length", f"{words} words, at least {self.min_reply_words} are wanted", reply)
        return _repeats(reply, [one.content for one in talk if one.role == "assistant"])


def _repeats(text: str, earlier: Sequence[str]) -> Dropped | None:
    score = max((rouge_l(text, one) for one in earlier), default=0.0)
    return Dropped("repeats_itself", f"ROUGE-L {score:.2f} with an earlier turn", text) if score > REPEATED else None


@cache
def _shuffled(count: int, turn: int) -> tuple[int, ...]:
    import random

    order = list(range(count))
    random.Random(f"topics:{turn}").shuffle(order)
    return tuple(order)


@cache
def read_topics(file: str, language: str) -> tuple[Topic, ...]:
    """The leaves of a tree. Raises ConfigError with file, line and key of what is wrong in it."""
    document = read_yaml(HERE / f"topics.{language}.yaml" if file == "builtin" else file)
    value = document.value
    problems: list[Problem] = []
    found: list[Topic] = []
    known = get_args(Sector)
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(
            "not a tree of topics", where=file, fix="give world, writing and material: theme: [topic, ...]"
        )
    for sector, themes in value.items():
        if sector not in known:
            problems.append(Problem((sector,), f"unknown sector; known: {', '.join(known)}"))
            continue
        if not isinstance(themes, Mapping):
            problems.append(Problem((sector,), "themes by name are wanted"))
            continue
        for theme, topics in themes.items():
            leaves = [topics] if isinstance(topics, str) else topics
            if not isinstance(leaves, list) or not all(isinstance(leaf, str) and leaf.strip() for leaf in leaves):
                problems.append(Problem((sector, theme), "a list of texts is wanted, or of material a text"))
                continue
            found += [Topic(sector, str(theme), leaf) for leaf in leaves]
    if problems:
        raise document.error(problems)
    if not found:
        raise ConfigError("no topic in it", where=file, fix="give world, writing or material: theme: [topic, ...]")
    return tuple(found)
