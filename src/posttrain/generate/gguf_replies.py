"""Whether llama.cpp says of a GGUF file what the weights say that it was written from: first tokens, and greedy replies in five languages."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.encode.tokens import encode_prompt
from posttrain.generate.decode import decode, without_stop
from posttrain.generate.engine import Completion, Request, Sampling, complete
from posttrain.generate.llamacpp import LlamaCppEngine
from posttrain.model.agreement import all_logits
from posttrain.model.lineage import Lineage
from posttrain.types import Message

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Add 1234 and 5678.",
    "List three colours.",
    "Explain gravity to a child.",
    "Translate into French: Good morning, my friend.",
    "Write a Python function that returns the square of x.",
    "Who wrote Hamlet?",
    "What is 17 * 23? Show each step.",
    "Give me a recipe for pancakes.",
    "Summarise: The quick brown fox jumps over the lazy dog.",
    "Is 97 a prime number?",
    "Was ist der h\u00f6chste Berg Deutschlands?",
    "\u00bfCu\u00e1l es la capital de Espa\u00f1a?",
    "\u8bf7\u7528\u4e00\u53e5\u8bdd\u4ecb\u7ecd\u5317\u4eac\u3002",
    "\u4f60\u597d\uff0c\u4f60\u662f\u8c01\uff1f",
    "\u628a\u8fd9\u53e5\u8bdd\u7ffb\u8bd1\u6210\u82f1\u6587\uff1a\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "1\u523010\u4e4b\u95f4\u6709\u54ea\u4e9b\u8d28\u6570\uff1f",
    "\u5199\u4e00\u9996\u5173\u4e8e\u79cb\u5929\u7684\u77ed\u8bd7\u3002",
    "\u65e5\u672c\u306e\u9996\u90fd\u306f\u3069\u3053\u3067\u3059\u304b\uff1f",
)
"""Twenty, five of them in Chinese."""
REPLY_TOKENS = 24
CONTEXT = 1024
LIKELIEST = 512
"""First tokens whose probabilities are compared, as shares of theirs together: all of a vocabulary take llama.cpp a second to tell."""
TIE = 2**-7
"""Nats between the two likeliest tokens below which neither is the right one: half the distance of 16-bit numbers from 16 to 32, where largest
logits lie. llama.cpp rounds what goes into a 16-bit product, in another order on another processor."""


class Place(NamedTuple):
    """Where a reply may go on otherwise: the text before it and with the second likeliest token, and how far that is behind, in nats."""

    before: str
    second: str
    gap: float


class Spoken(NamedTuple):
    """What a model says to a question, computed in fp32."""

    question: str
    prompt: NDArray[np.int32]
    reply: str
    places: Sequence[Place]
    """One a token."""
    logps_V: Tensor
    """Log-probabilities of the first token."""

    def is_said(self, reply: str | None) -> bool:
        """Whether a reply is the same; where a limit cuts a character, what stands before it counts."""
        return reply is not None and reply.rstrip("\ufffd").strip() == self.reply.rstrip("\ufffd").strip()

    def tie(self, reply: str | None) -> float | None:
        """How far apart the two likeliest tokens are where another reply takes the second; None where it parts otherwise."""
        if reply is None or not (common := [one for one in self.places if reply.startswith(one.before)]):
            return None
        last = common[-1]
        ends = last.second == last.before  # the second likeliest is a stop
        return last.gap if (reply == last.second if ends else reply.startswith(last.second)) else None


@dataclass(frozen=True)
class GgufReplies:
    """A GGUF file in llama.cpp against the weights that it was written from."""

    replies: int
    same: int
    """Greedy replies of `REPLY_TOKENS` tokens that are one text."""
    ties: tuple[float, ...]
    """Of the others those that part at a tie (`TIE`): nats between the two tokens."""
    first_tokens: int
    """That llama.cpp told: none that ends inside a character."""
    same_first_tokens: int
    divergence: float
    """Mean KL divergence of the first token, nats; NaN where none was told."""
    largest_divergence: float

    @property
    def other(self) -> int:
        """Replies that are another text, and not by a tie."""
        return self.replies - self.same - len(self.ties)

    @property
    def first(self) -> str:
        """What is said of first tokens."""
        if not self.first_tokens:
            return "no first token was told"
        apart = f"KL mean {self.divergence:.1e}, largest {self.largest_divergence:.1e}"
        return f"first token: {self.same_first_tokens} of {self.first_tokens} the same, {apart}"

    def __str__(self) -> str:
        same = f"{self.same} of {self.replies} greedy replies of {REPLY_TOKENS} tokens are the same"
        if self.ties:
            gaps = ", ".join(f"{gap:.4f}" for gap in self.ties)
            same += f", {len(self.ties)} part at a tie ({gaps} nats between the two likeliest tokens)"
        return f"{same}; {self.first}"


def missing() -> str | None:
    """Why llama.cpp can't be asked; None where it can."""
    if importlib.util.find_spec("xllamacpp"):
        return None
    return "xllamacpp is not installed: pip install 'posttrain[llamacpp]'"


@torch.no_grad()
def spoken(model: nn.Module, lineage: Lineage, questions: Sequence[str]) -> list[Spoken]:
    """What a model in fp32 says to questions."""
    template, stops = lineage.template, lineage.stops
    prompts = [encode_prompt([Message("user", question)], template) for question in questions]
    firsts = [logits_TV[-1].log_softmax(-1) for logits_TV in all_logits(model, prompts)]

    def text(ids: list[int]) -> str:
        return str(template.tokenizer.decode(ids, skip_special_tokens=True))

    ids: list[list[int]] = [[] for _ in prompts]
    places: list[list[Place]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    sampling = Sampling(max_tokens=REPLY_TOKENS, logprobs=2)
    for new in decode(model, prompts, stops, [sampling] * len(prompts)):
        said = ids[new.prompt]
        if new.likely is not None and len(new.likely.top) > 1:
            (_, best), (second, next_best) = new.likely.top
            places[new.prompt].append(Place(text(said), text([*said, second]), best - next_best))
        said.append(new.token)
        ended[new.prompt] |= new.finish == "stop"
    kept = [without_stop(one, stops) if end else one for one, end in zip(ids, ended, strict=True)]
    found = zip(questions, prompts, map(text, kept), places, firsts, strict=True)
    return [Spoken(*one) for one in found]


def replies(path: Path, expected: Sequence[Spoken]) -> GgufReplies:
    """Ask llama.cpp, with keys and values in fp32; it renders and cuts the questions itself."""
    first, divergence = [], []
    with LlamaCppEngine(path, CONTEXT, 1, torch.get_num_threads(), exact=True) as engine:
        for one in expected:
            told = engine.next_logprobs(one.prompt.tolist(), min(LIKELIEST, len(one.logps_V)))
            if told is not None:
                first.append(max(told, key=told.__getitem__) == int(one.logps_V.argmax()))
                ours, theirs = one.logps_V[list(told)].double(), torch.tensor(list(told.values())).double()
                ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
                divergence.append(float((ours.exp() * (ours - theirs)).sum()))
        requests = [Request((Message("user", one.question),), Sampling(max_tokens=REPLY_TOKENS)) for one in expected]
        texts = [one.text if isinstance(one, Completion) else None for one in complete(engine, requests)]
    pairs = list(zip(expected, texts, strict=True))
    ties = [one.tie(text) for one, text in pairs if not one.is_said(text)]
    return GgufReplies(
        replies=len(expected),
        same=sum(one.is_said(text) for one, text in pairs),
        ties=tuple(gap for gap in ties if gap is not None and gap < TIE),
        first_tokens=len(first),
        same_first_tokens=sum(first),
        divergence=float(np.mean(divergence)) if divergence else float("nan"),
        largest_divergence=max(divergence, default=float("nan")),
    )
