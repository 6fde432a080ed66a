"""A trained reward model as a judge of pairs: the higher score wins. It sees one reply at a time: no order, no samples, no prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ModelError
from posttrain.generate.engine import Fingerprint, Progress
from posttrain.judge.config import JudgeSource, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import Judgment, asks_of
from posttrain.judge.verdicts import Missing, Verdict
from posttrain.parallel.peers import ALONE, Peers
from posttrain.types import Message, SftRow

if TYPE_CHECKING:
    import torch
    from torch import nn

    from posttrain.model.second_adapter import InMemory
    from posttrain.model.shared import SharedModel
    from posttrain.types import Tokens

BATCH_TOKENS = 4096
REWARDS = "rewards"
"""Kind of an order for `rewards_of`."""


@dataclass(frozen=True)
class RewardJudge:
    """A reward model in memory."""

    model: Any
    head: Any
    """Its score head, from the final hidden states."""
    template: Any
    room: int
    """Tokens of its context."""
    pad_id: int | None
    dtype: torch.dtype
    fingerprint: Fingerprint
    playing: Callable[[], AbstractContextManager[object]] = nullcontext
    """Inside, ``model`` computes the reward model's hidden states: it may be another one whose base it shares."""
    apart: str = ""
    """Why it shares none, where it could have."""
    shared: SharedModel | None = None
    """Where other processes hold it as well: then each scores a part of the conversations."""

    def judge(self, items: Sequence[Item], plan: Plan, progress: Progress | None = None) -> list[Judgment]:
        """Pairs: the higher score wins, equal scores are a tie. Of the plan only ``turns`` means something.

        A reply whose conversation the template refuses, or that is longer than the model's context, leaves its pair without a verdict.
        """
        asks = asks_of(items, replace(plan, orders="original", samples=1, emphasis="no"), "pair")
        conversations = [_conversation(items[ask.item], ask.turn, second) for ask in asks for second in (False, True)]
        rewards = self.rewards(conversations, progress)
        judgments = []
        for ask, a, b in zip(asks, rewards[0::2], rewards[1::2], strict=True):
            ask = ask._replace(order="none")
            if isinstance(a, Missing) or isinstance(b, Missing):
                judgments.append(Judgment(ask, a if isinstance(a, Missing) else b))
                continue
            won: Verdict = "tie" if a == b else "first" if a > b else "second"
            judgments.append(Judgment(ask, won))
        return judgments

    def rewards(self, conversations: Sequence[SftRow], progress: Progress | None = None) -> list[float | Missing]:
        """The score of the last reply of every conversation, or why there is none."""
        encoded = _scored(conversations, self.template, self.room, self.pad_id)
        sequences = {place: tokens for place, tokens in enumerate(encoded) if not isinstance(tokens, Missing)}
        places, found = list(sequences), dict[int, float]()
        for pack_of in self._packs(list(sequences.values())):
            found |= {places[index]: reward for index, reward in pack_of}
            if progress is not None:
                progress(len(found), len(sequences))
        return [tokens if isinstance(tokens, Missing) else found[place] for place, tokens in enumerate(encoded)]

    def _packs(self, sequences: Sequence[Tokens]) -> Iterator[list[tuple[int, float]]]:
        """The rewards of sequences, computed here or by several processes."""
        from posttrain.model.shared import share_out, written

        if self.shared is None or len(sequences) < 2:
            yield from _reward_packs(self.model, self.head, sequences, self.dtype, self.playing)
            return
        items, settings = list(map(written, sequences)), {"dtype": str(self.dtype).removeprefix("torch.")}
        for one in share_out(self.shared, self.model, REWARDS, rewards_of, items, list(map(len, sequences)), settings):
            yield [one]


def _reward_packs(
    model: nn.Module,
    head: nn.Module,
    sequences: Sequence[Tokens],
    dtype: torch.dtype,
    playing: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[list[tuple[int, float]]]:
    """Rewards pack by pack, each with the place of its sequence; see `RewardJudge.playing`."""
    import torch

    from posttrain.encode.packing import pack
    from posttrain.model.score import batch_values, lay_out

    for indices in pack([len(tokens) for tokens in sequences], BATCH_TOKENS):
        with torch.no_grad(), playing():
            batch = lay_out(model, [sequences[index] for index in indices])
            rewards = batch_values(model, batch, head, dtype).cpu().numpy()
        yield [(index, float(reward)) for index, reward in zip(indices, rewards, strict=True)]


def rewards_of(model: nn.Module, items: Sequence[Any], settings: Mapping[str, Any]) -> Iterator[tuple[int, Any] | None]:
    """Sequences -> their rewards. A `posttrain.model.shared.Work`."""
    import torch

    from posttrain.model.forward import score_head
    from posttrain.model.shared import read

    head = score_head(model)
    assert head is not None, "it was loaded with one"
    for pack_of in _reward_packs(model, head, list(map(read, items)), getattr(torch, settings["dtype"])):
        yield from pack_of


def open_reward_judge(source: JudgeSource, beside: InMemory | None = None, peers: Peers = ALONE) -> RewardJudge:
    """Load the model of ``source.reward``; its adapter and head alone where it was trained on the base of the model ``beside``.

    peers: who shares the work of one that stands by itself.

    Raises:
        ModelError: the target has no trained score head.

    """
    from posttrain.model import hardware
    from posttrain.model.adapters import saved_model
    from posttrain.model.forward import causal_lm, score_head
    from posttrain.model.second_adapter import SecondAdapter, second_adapter
    from posttrain.model.shared import shared_model
    from posttrain.model.targets import resolve_target

    assert source.reward is not None, "the caller chose a reward model"
    target = resolve_target(source.reward, source.base)
    check_score_head(target.adapter or target.folder, source.reward)
    device = hardware.resolve_device("auto") if beside is None else beside.device
    dtype = hardware.choose_dtype("auto", device) if beside is None else beside.dtype
    shared = None if beside is None else second_adapter(beside, target.folder, target.adapter)
    playing: Callable[[], AbstractContextManager[object]] = nullcontext
    model: Any
    head: Any
    if isinstance(shared, SecondAdapter):
        model, head, playing = shared.model, shared.head, shared.playing
    else:
        model = saved_model(target.folder, target.adapter, dtype, device, head="score")
        head = score_head(model)
    text_config = causal_lm(model).config.get_text_config()
    return RewardJudge(
        model,
        head,
        target.template,
        room=getattr(text_config, "max_position_embeddings", None) or 1 << 30,
        pad_id=text_config.pad_token_id,
        dtype=dtype,
        fingerprint=Fingerprint("reward", f"{source.reward}@{target.identity[:16]}", options=str(dtype)),
        playing=playing,
        apart="" if shared is None or isinstance(shared, SecondAdapter) else shared.why,
        shared=shared_model(peers, target.folder, target.adapter, dtype, device, head="score")
        if beside is None
        else None,
    )


def check_score_head(folder: Path, target: str) -> None:
    """Raise ModelError where the weights of a folder have no trained score head."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            if any(key.endswith("score.weight") for key in weights.keys()):  # noqa: SIM118 - no mapping
                return
    raise ModelError(
        "this model has no trained score head: it is no reward model",
        where=target,
        fix="train one with the objective reward, or let it judge in words with --local",
    )


def _conversation(item: Item, turn: int, second: bool) -> SftRow:
    replies = item.replies_b if second else item.replies_a
    messages: list[Message] = []
    for number in range(turn):
        messages.append(Message("user", item.turns[number]))
        messages.append(Message("assistant", replies[number], weight=None if number == turn - 1 else 0.0))
    return SftRow(tuple(messages), item.origin, "judge")


def _scored(rows: Sequence[SftRow], template: Any, room: int, pad_id: int | None) -> list[Tokens | Missing]:
    """Every conversation as a reward model scores it, or why it can't be."""
    from posttrain.encode.preferences import scored_at_end
    from posttrain.encode.template import RowRejected
    from posttrain.encode.tokens import encode_batch

    found: list[Tokens | Missing] = []
    for result in encode_batch(rows, template, room, "drop"):
        if len(result.examples) != 1:
            dropped = (
                result.dropped[0] if result.dropped else RowRejected("reply_rewritten", "the template rewrites it")
            )
            found.append(Missing("transport", f"invalid_request: {dropped.reason}: {dropped.detail}"))
        else:
            found.append(scored_at_end(result.examples[0], pad_id))
    return found
