"""Evol-Instruct: rows whose instructions are made harder, or others of their kind (Xu et al. 2023, arXiv:2304.12244).

    instruction -> one operation -> new instruction -> eliminated? -> reply -> row, and the start of the next generation

Eliminated as in the paper (section 3.2): no information is gained (a judge finds both requests equal), the reply is a short apology, it says nothing
but punctuation and stop words, or words of the prompt stand in the new instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from posttrain.data.config import Source
from posttrain.data.text import tokens
from posttrain.generate.engine import Sampling
from posttrain.synth.base import Cost, Dropped, Made, Pipeline, Screen, Situation, Thread, ask, whole
from posttrain.synth.prompts import Prompts
from posttrain.types import Message, Row

Operation = Literal["constrain", "deepen", "concretise", "reason", "broaden"]
SHORT_APOLOGY = 80
"""Words below which a reply that says sorry is a refusal."""
FEWEST_WORDS = 3


@dataclass(frozen=True, kw_only=True)
class Evolve(Pipeline):
    """Harder or wider instructions out of rows, with replies (Evol-Instruct)."""

    name: Literal["evolve"]
    data: Source
    """Rows whose first instructions are evolved."""
    operations: Annotated[tuple[Operation, ...], MinLen(1)] = ("constrain", "deepen", "concretise", "reason", "broaden")
    """What is done, one drawn for each generation."""
    generations: Annotated[int, Ge(1)] = 4
    """How often an instruction is evolved; every generation gives a row."""
    check_equal: bool = True
    """Whether the writer is asked if a new instruction asks for the same as the old one."""
    temperature: Annotated[float, Ge(0)] = 1.0
    top_p: Annotated[float, Gt(0), Le(1)] = 0.95
    instruction_tokens: Annotated[int, Ge(1)] = 512
    """Longest new instruction."""
    reply_temperature: Annotated[float, Ge(0)] = 0.7
    reply_tokens: Annotated[int, Ge(1)] = 2048
    """Longest reply."""

    @property
    def rows_a_thread(self) -> float:
        """One a generation."""
        return float(self.generations)

    def threads(self, situation: Situation) -> list[Thread]:
        """The next rows, in their order."""
        rows = situation.rows[situation.begun : situation.begun + situation.size]
        return [self._evolve(situation, (instruction_of(row),), row.id, 1, self._drawn(situation)) for row in rows]

    def costs(self, prompts: Prompts, language: str) -> Sequence[Cost]:
        """An evolution, a comparison and a reply for each row."""
        found = [
            Cost("writer", "new instructions", 1, prompts.texts["evolve.deepen"], self.instruction_tokens, 60),
            Cost("writer", "replies", 1, "", self.reply_tokens, 60),
        ]
        if self.check_equal:
            found.append(Cost("writer", "comparisons", 1, prompts.texts["evolve.equal"], 16, 120))
        return found

    def _drawn(self, situation: Situation) -> tuple[Operation, ...]:
        return tuple(situation.random.choice(self.operations) for _ in range(self.generations))

    def _evolve(
        self,
        situation: Situation,
        line: tuple[str, ...],
        parent: str,
        generation: int,
        drawn: Sequence[Operation],
    ) -> Thread:
        """One generation. ``line``: the instructions before it, from the row's own on."""
        instruction = line[-1]
        prompts, operation = situation.prompts, drawn[generation - 1]
        name = f"evolve.{operation}"
        sampling = Sampling(self.temperature, self.top_p, self.instruction_tokens)
        (answer,) = yield (ask(prompts.fill(name, instruction=instruction), sampling, prompt=name),)
        evolved = answer.text.strip().strip('"')
        fault = whole(answer) or self._instruction_fault(instruction, evolved, prompts.words["evolve.leaks"])
        if fault is not None:
            return [fault]
        similar = yield Screen(evolved, frozenset(line))
        if self.check_equal:
            text = prompts.fill("evolve.equal", first=instruction, second=evolved)
            (verdict,) = yield (ask(text, Sampling(max_tokens=16), prompt="evolve.equal"),)
            if verdict.text.strip().strip("*. ").casefold().startswith(prompts.words["evolve.equals"]):
                return [Dropped("no_information_gained", "found equal to its parent", evolved)]
        replying = Sampling(self.reply_temperature, self.top_p, self.reply_tokens)
        (reply,) = yield (ask(evolved, replying),)
        fault = whole(reply) or _reply_fault(evolved, reply.text, prompts.words["evolve.sorry"])
        if fault is not None:
            return [fault]
        made = Made(
            (Message("user", evolved),),
            (Message("assistant", reply.text.strip()),),
            parents=(parent,),
            topic=operation,
            similar=similar,
            meta={"operation": operation, "generation": generation},
        )
        results: list[Made | Dropped | Thread] = [made]
        if generation < self.generations:
            results.append(self._evolve(situation, (*line, evolved), parent, generation + 1, drawn))
        return results

    def _instruction_fault(self, before: str, evolved: str, leaks: Sequence[str]) -> Dropped | None:
        low, old = evolved.casefold(), before.casefold()
        if len(tokens(evolved)) < FEWEST_WORDS:
            return Dropped("too_short", f"fewer than {FEWEST_WORDS} words", evolved)
        if tokens(evolved) == tokens(before):
            return Dropped("no_information_gained", "the same words as its parent", evolved)
        leaked = next((leak for leak in leaks if leak in low and leak not in old), None)
        return None if leaked is None else Dropped("prompt_leaked", f"has {leaked!r}", evolved)


def _reply_fault(instruction: str, reply: str, sorry: Sequence[str]) -> Dropped | None:
    text, words = f"{instruction}\n\n{reply}", tokens(reply)
    if len(words) < SHORT_APOLOGY and any(word in reply.casefold() for word in sorry):
        return Dropped("short_apology", f"says sorry in {len(words)} words", text)
    return None if words else Dropped("no_words", "nothing but signs", text)


def instruction_of(row: Row) -> str:
    """The first turn of the user."""
    return next((turn.content for turn in row.messages if turn.role == "user"), "")
