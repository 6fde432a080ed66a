"""The values that travel through posttrain. Everything here is frozen and free of torch.

Shape legend used in names across the project: ``B`` rows, ``T`` tokens of one packed micro-batch,
``S`` supervised tokens, ``V`` vocabulary, ``D`` hidden size. ``ids_T`` is an array of shape [T].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
RowKind = Literal["conversations", "pairs", "feedback", "prompts"]
"""What a row says: imitate this, prefer one of these two, this one was found good (or bad), or answer this."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One function call made by the assistant. ``arguments`` is the JSON text of the argument object."""

    name: str
    arguments: str
    id: str | None = None
    """What a result refers to, where the source gave one."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``reasoning`` is the thinking text kept apart from the answer, where the source had it apart."""

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    weight: float | None = None
    """Loss weight of an assistant turn when the source gave one (None = 1.0; 0.0 = context only)."""
    name: str | None = None
    """Who speaks, where the source says it: of a tool result the function that was called."""
    tool_call_id: str | None = None
    """Of a tool result: the id of the call it answers, where the source gave one."""


class Origin(NamedTuple):
    """Where a row was read: file name as the user wrote it, and its 1-based line or row number."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class SftRow:
    """One conversation to imitate. At least one assistant turn."""

    messages: tuple[Message, ...]
    origin: Origin
    source: str
    """Name of the source in the recipe (for mixing, per-source numbers)."""
    tools: tuple[Mapping[str, Any], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Stable content id: the first 16 hex digits of sha256 over the canonical messages and tools."""
        return content_id(self.messages, self.tools)


@dataclass(frozen=True, slots=True)
class PairRow:
    """A prompt with a preferred and a dispreferred continuation. A pair is one value, never two list entries."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    origin: Origin
    source: str
    tools: tuple[Mapping[str, Any], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Stable content id, as of :class:`SftRow`, over the prompt, both sides and the tools."""
        return _digest(*map(_turns, (self.prompt, self.chosen, self.rejected)), _canonical(list(self.tools)))

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that steps for conversations look at: the prompt with the chosen side."""
        return self.prompt + self.chosen


@dataclass(frozen=True, slots=True)
class UnpairedRow:
    """A prompt and a continuation labelled desirable (True) or not."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    origin: Origin
    source: str
    tools: tuple[Mapping[str, Any], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Stable content id, as of :class:`SftRow`, over the prompt, the completion, its label and the tools."""
        judged = _canonical(self.desirable), _canonical(list(self.tools))
        return _digest(_turns(self.prompt), _turns(self.completion), *judged)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that steps for conversations look at: the prompt with the completion."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt that waits for its reply: for generation, synthesis, judging and online training."""

    prompt: tuple[Message, ...]
    origin: Origin
    source: str
    tools: tuple[Mapping[str, Any], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Stable content id, as of :class:`SftRow`, over the prompt and the tools."""
        return content_id(self.prompt, self.tools)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that steps look at: the prompt."""
        return self.prompt


Row = SftRow | PairRow | UnpairedRow | PromptRow


@dataclass(frozen=True, slots=True)
class Tokens:
    """One encoded training example.

    ``ids_T`` int32 [T]; ``weights_T`` float32 [T]: the loss weight of *predicting* ``ids_T[t]`` from the
    tokens before it (0 = context). ``weights_T[0]`` is always 0: the first token is never predicted.
    ``row_id`` names the row it came from; ``part`` counts the examples one row was expanded into.
    """

    ids_T: NDArray[np.int32]
    weights_T: NDArray[np.float32]
    row_id: str
    part: int = 0

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def supervised(self) -> int:
        """Number of tokens with a non-zero weight."""
        return int(np.count_nonzero(self.weights_T))


LOGP_ROUNDING = 1e-5
"""By how many nats a token two computations of one log-probability may differ and still be taken for equal.

A log-probability is a logit less the logarithm of a sum, numbers of some ten nats, which fp32 resolves to 1e-6. Measured:
docs/preferences.md."""

Numbers = TypeVar("Numbers", float, NDArray[np.float64], "Tensor")


def resolved(differences: Numbers, rounding: Numbers | float) -> Numbers:
    """The differences of log-probabilities, 0 where they are within rounding: no more than that can be told of them.

    ``rounding``: of each difference, LOGP_ROUNDING times the tokens it is summed over. A model that was not changed gains
    nothing by this measure, however its batches are cut.
    """
    return differences * (abs(differences) > rounding)


def message_dict(message: Message) -> dict[str, Any]:
    """The OpenAI-style dict of a message, without empty fields; the inverse lives in data/formats."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [
            {
                **({"id": call.id} if call.id is not None else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    for key in ("name", "tool_call_id"):
        if (value := getattr(message, key)) is not None:
            out[key] = value
    return out


_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def content_id(messages: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...] = ()) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of messages and tools (weights included)."""
    return _digest(_turns(messages), _canonical(list(tools)) if tools else "[]")


def _turns(messages: tuple[Message, ...]) -> str:
    """Messages in canonical JSON."""
    return f"[{','.join([_turn(message) for message in messages])}]"


def _turn(message: Message) -> str:
    if (message.reasoning, message.tool_calls, message.weight, message.name, message.tool_call_id) == _NO_MORE:
        return (
            f'["{message.role}",{encode_basestring(message.content)},null,[],null]'  # in half the time of what follows
        )
    fields = spoken(message)
    return _canonical([*fields[:4], message.weight, *fields[4:]])


_NO_MORE = (None, (), None, None, None)


def spoken(message: Message) -> list[Any]:
    """What a message says to a model, as plain values for digests; ids and names stand there only where there are any."""
    calls = [[c.name, c.arguments, *([c.id] if c.id is not None else [])] for c in message.tool_calls]
    named = message.name is not None or message.tool_call_id is not None
    fields = [message.role, message.content, message.reasoning, calls]
    return [*fields, message.name, message.tool_call_id] if named else fields


def _digest(*parts: str) -> str:
    """Of a list of these values, each in canonical JSON."""
    return hashlib.sha256(f"[{','.join(parts)}]".encode("utf-8", "surrogatepass")).hexdigest()[:16]


# ---- work in progress ----------------------------------------------------------------------------------------------


class Display(Protocol):
    """Where a running job says what it does; `posttrain.report.live` is that of a terminal."""

    def note(self, text: str) -> None:
        """A sentence that stays."""

    def tick(self, label: str, done: int, total: int) -> None:
        """How far a piece of work is; ``total`` 0 = not known."""

    def record(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
