"""MAGPIE: a chat model writes the user's turn itself, then answers it (Xu et al. 2024, arXiv:2406.08464).

What the model is given is its own template up to the user's words, with the system turn that the template writes by default
(`posttrain.encode.user_turn`): no list of model families, no seeds.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen

from posttrain.config import Problem
from posttrain.data.text import tokens
from posttrain.errors import DataError
from posttrain.generate.engine import Completion, Request, Sampling
from posttrain.generate.source import ModelSource
from posttrain.references import NamesFile
from posttrain.synth.base import (
    Ask,
    Cost,
    Dropped,
    Made,
    Pipeline,
    Rate,
    RewardModel,
    Screen,
    Situation,
    Thread,
    ask,
    whole,
)
from posttrain.synth.prompts import Prompts
from posttrain.synth.reading import check_words, instruction_fault, json_objects
from posttrain.types import Message

HERE = Path(__file__).parent
LABELS = ("quality", "difficulty")
LABEL_TOKENS = 256
_LABEL = {
    "quality": re.compile(r"(?:quality|\u8d28\u91cf)\W{0,6}([1-5])\b", re.IGNORECASE),
    "difficulty": re.compile(r"(?:difficulty|\u96be\u5ea6)\W{0,6}([1-5])\b", re.IGNORECASE),
    "category": re.compile(r"(?:category|\u7c7b\u522b)\s*[:\uff1a]\s*\**\s*([^\n*]{1,40})", re.IGNORECASE),
}


@dataclass(frozen=True, kw_only=True)
class Magpie(Pipeline):
    """Instructions out of nothing: a local chat model writes the user's turn, then the reply (MAGPIE)."""

    plays_user: ClassVar[bool] = True

    name: Literal["magpie"]
    systems: Annotated[str, NamesFile(builtin="synth/system_prompts.en.txt", words=("builtin",))] | None = "builtin"
    """System prompts that steer what is asked, one a line: a text file, ``builtin`` (posttrain's own of the stage's language), or null for none."""
    system_share: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of the threads that are given one of them; the others have the template's own system turn."""
    temperatures: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (0.7, 0.8, 0.9, 1.0)
    """Of the user's turn, in turn: low ones give sound but alike requests, high ones varied but broken ones."""
    top_p: Annotated[float, Gt(0), Le(1)] = 0.95
    """Of the user's turn."""
    instruction_tokens: Annotated[int, Ge(1)] = 128
    """Longest turn of the user; a longer one is dropped."""
    reply_tokens: Annotated[int, Ge(1)] = 384
    """Longest reply; a longer one is dropped."""
    reply_temperature: Annotated[float, Ge(0)] = 0.0
    turns: Annotated[int, Ge(1)] = 1
    """Turns of the user in a row; later ones are written after the reply before them."""
    min_words: Annotated[int, Ge(1)] = 4
    """Shortest turn of the user in words; a CJK character counts as one."""
    max_words: Annotated[int, Ge(1)] = 150
    """Longest turn of the user in words."""
    keep_system: bool = False
    """Whether rows keep the system prompt that steered them."""
    labeller: ModelSource | None = None
    """Who labels quality, difficulty and category of every row; null = nobody."""
    reward: RewardModel | None = None
    """A reward model that scores every first reply; null = none."""
    rival: ModelSource | None = None
    """Who answers as well, so that the reward of a reply stands beside that of another model's (the reward margin); null = nobody."""
    min_reward_margin: float | None = None
    """Rows whose reply scores less than the rival's by so much are dropped; null = none is."""
    min_quality: Annotated[int, Ge(1), Le(5)] = 3
    """Rows labelled below are dropped; a label that can't be read drops none."""

    @property
    def roles(self) -> Mapping[str, ModelSource | None]:
        """The model, and who labels."""
        others = {"labeller": self.labeller, "rival": self.rival}
        return {"writer": None} | {role: source for role, source in others.items() if source is not None}

    def __post_init__(self) -> None:
        check_words(self.min_words, self.max_words)
        if self.reward is None and (self.rival is not None or self.min_reward_margin is not None):
            raise ValueError("a rival and a margin need a reward model: give reward")
        if self.min_reward_margin is not None and self.rival is None:
            raise ValueError("a margin is one over somebody: give rival")

    @property
    def reward_model(self) -> RewardModel | None:
        """The one that scores replies."""
        return self.reward

    def problems(self, writer: ModelSource) -> Iterable[Problem]:
        """Only a local model can be given the user's turn to write."""
        if writer.kind != "local":
            yield Problem(
                ("writer",),
                f"magpie needs a local model, which it gives its own template to; this is {writer.kind}: give a local one (local: MODEL)",
            )

    def seeds(self, language: str) -> Sequence[tuple[str, str]]:
        """Nothing; the system prompts are read."""
        _ = self.systems is not None and _systems(self.systems, language)
        return ()

    def threads(self, situation: Situation) -> list[Thread]:
        """Threads over temperatures and system prompts."""
        chance = situation.random
        systems = _systems(self.systems, situation.language) if self.systems is not None else ()
        found = []
        for place in range(situation.size):
            system = chance.choice(systems) if systems and chance.random() < self.system_share else None
            temperature = self.temperatures[(situation.begun + place) % len(self.temperatures)]
            found.append(self._talk(situation, system, temperature))
        return found

    def costs(self, prompts: Prompts, language: str) -> Sequence[Cost]:
        """A turn of the user and a reply, and a label where somebody labels."""
        before = (self.turns - 1) // 2 * (self.instruction_tokens + self.reply_tokens)
        found = [
            Cost("writer", "turns of the user", self.turns, "", self.instruction_tokens, before + 30),
            Cost("writer", "replies", self.turns, "", self.reply_tokens, before + self.instruction_tokens),
        ]
        if self.labeller is not None:
            said = self.instruction_tokens + self.reply_tokens
            found.append(Cost("labeller", "labels", 1, prompts.texts["magpie.label"], LABEL_TOKENS, said))
        return found

    def _talk(self, situation: Situation, system: str | None, temperature: float) -> Thread:
        talk: list[Message] = [] if system is None else [Message("system", system)]
        opened = len(talk)
        similar: Sequence[object] = ()
        for turn in range(self.turns):
            sampling = Sampling(temperature, self.top_p, self.instruction_tokens)
            (said,) = yield (Ask(Request(tuple(talk), sampling, speaks="user")),)
            instruction = _sanitised(said.text, situation.prompts.words["magpie.prefixes"])
            fault = whole(said) or instruction_fault(instruction, least=self.min_words, most=self.max_words)
            if fault is None and turn == 0:
                similar = yield Screen(instruction)
            reply: Completion | None = None
            if fault is None:
                asking = Sampling(self.reply_temperature, 1.0, self.reply_tokens)
                (reply,) = yield (Ask(Request((*talk, Message("user", instruction)), asking)),)
                fault = whole(reply) or _reply_fault(instruction, reply.text)
            if fault is not None:
                if turn == 0:
                    return [fault]
                break  # what was said before it is a whole conversation
            assert reply is not None
            talk += [Message("user", instruction), Message("assistant", reply.text.strip())]
        kept = talk if self.keep_system else talk[opened:]
        scores: dict[str, float] = {}
        meta: dict[str, object] = {"temperature": temperature, "system": system}
        verdicts: tuple[dict[str, object], ...] = ()
        if self.labeller is not None:
            text = situation.prompts.fill(
                "magpie.label", instruction=talk[opened].content, reply=talk[opened + 1].content
            )
            (verdict,) = yield (ask(text, Sampling(max_tokens=LABEL_TOKENS), role="labeller", prompt="magpie.label"),)
            scores, category = read_labels(verdict.text)
            meta |= {"category": category, "labels_read": len(scores)}
            quality = scores.get("quality")
            if quality is not None:
                passed = quality >= self.min_quality
                verdicts = (
                    {"check": "quality", "value": quality, "limit": f">= {self.min_quality}", "passed": passed},
                )
                if not passed:
                    return [
                        Dropped("low_quality", f"{quality:g} of 5, at least {self.min_quality}", talk[opened].content)
                    ]
        if self.reward is not None:
            rewards = yield from self._rewards(talk[: opened + 1], talk[opened + 1].content)
            scores = {**scores, **rewards}
            margin = rewards.get("reward_margin")
            if margin is not None and self.min_reward_margin is not None:
                limit = self.min_reward_margin
                verdicts += (
                    {"check": "reward_margin", "value": margin, "limit": f">= {limit:g}", "passed": margin >= limit},
                )
                if margin < limit:
                    return [Dropped("low_reward_margin", f"{margin:.2f}, at least {limit:g}", talk[opened].content)]
        return [
            Made(
                tuple(kept[:-1]),
                (kept[-1],),
                topic=system,
                similar=similar,  # type: ignore[arg-type]
                scores=scores,
                verdicts=verdicts,
                meta=meta,
            )
        ]

    def _rewards(self, prompt: Sequence[Message], reply: str) -> Generator[Any, Any, dict[str, float]]:
        """Reward of the reply and, where there is a rival, by how much it is above that of the rival's."""
        replies = [reply]
        if self.rival is not None:
            (other,) = yield (Ask(Request(tuple(prompt), Sampling(max_tokens=self.reply_tokens)), "rival"),)
            replies.append(other.text.strip())
        values = yield Rate(tuple(prompt), tuple(replies), "")
        found = {} if values[0] is None else {"reward": values[0]}
        if len(values) > 1 and None not in values:
            found["reward_margin"] = values[0] - values[1]
        return found


def read_labels(text: str) -> tuple[dict[str, float], str | None]:
    """(quality and difficulty as far as they can be read, category) of a labeller's answer: lines, or a JSON object with prose around it."""
    for record in json_objects(text):
        keys = {str(key).casefold(): value for key, value in record.items()}
        scores = {name: float(keys[name]) for name in LABELS if keys.get(name) in (1, 2, 3, 4, 5)}
        if scores:
            return scores, str(keys["category"]) if "category" in keys else None
    matches = {name: pattern.search(text) for name, pattern in _LABEL.items()}
    scores = {name: float(found[1]) for name in LABELS if (found := matches[name]) is not None}
    category = matches["category"]
    return scores, category[1].strip() if category is not None else None


def _sanitised(text: str, prefixes: Sequence[str]) -> str:
    """A user's turn without quotes around it or a label before it."""
    kept = text.strip()
    if len(kept) > 2 and kept[0] == kept[-1] == '"':
        kept = kept[1:-1].strip()
    label = next((prefix for prefix in prefixes if kept.casefold().startswith(prefix.casefold())), "")
    return kept[len(label) :].strip()


def _reply_fault(instruction: str, reply: str) -> Dropped | None:
    text = f"{instruction}\n\n{reply}"
    if tokens(reply) == tokens(instruction):
        return Dropped("reply_is_instruction", "", text)
    if reply.rstrip().endswith((":", "\uff1a")):
        return Dropped("ends_with_colon", "", text)
    return None


@cache
def _systems(file: str, language: str) -> tuple[str, ...]:
    path = HERE / f"system_prompts.{language}.txt" if file == "builtin" else Path(file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"can't read these system prompts: {error}", where=file, fix="a text file, one a line"
        ) from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise DataError("no system prompts in it", where=file, fix="one a line, or systems: null")
    return found
