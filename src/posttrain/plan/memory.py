"""How much memory a training step takes, by part and by phase, as closed formulas: instant, without torch.

What is kept for the backward pass follows from the code of the step: the hot path with hand-written gradients (``model.fused``), packed
attention in blocks (``model.attention``), the chunked output head (``model.logprobs``). The peak is the largest phase, never the sum of
all: gradients grow while activations go. docs/planner.md has the formulas with their sources; tests hold them against traced steps.

Letters: h hidden size, q width of all queries, k of all keys, a heads, f inner width of the MLP, r rank, T tokens computed at once,
S supervised ones, V vocabulary, e bytes of the compute type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.plan.shape import ModelShape, adapted, adapted_in, adapter_parameters

NF4_BYTES = 0.515873
"""Bytes a 4-bit parameter with its doubly quantised scales: 4.127 bits (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""
QUERY_BLOCK, KEPT_KEYS = 128, 512
"""Of ``model.attention``: queries at once, and the most keys whose probabilities are kept."""
CHUNK, STRIP = 512, 64
"""Of ``model.logprobs``: rows of logits at once, and of these in fp32."""
BEFORE_STEPS = ("load", "reference")
"""Phases before the first step."""
STEP_PARTS = ("gradients", "activations", "output head", "working memory")
"""Of these what comes and goes with a step."""
RUNTIME = {"cpu": 30e6, "cuda": 0.6e9}
"""Bytes that a process takes besides tensors: code that is loaded late; context and workspaces of a GPU."""
HELD_SHARE, HELD_CHUNKS, HELD_AGAIN = 0.12, 2, 2
"""What the C library holds in holes on a CPU, fitted to measurements (docs/planner.md): a share of what a step takes, and some of the largest
blocks, which glibc before 2.38 does not reuse for a block of the same size; with checkpointing more of them."""


@dataclass(frozen=True)
class Layout:
    """Segments of a micro-batch: tokens of each, and how many precede it in its sequence; ``supervised``: tokens whose logits are formed."""

    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    supervised: int

    @cached_property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(self.lengths)

    @cached_property
    def kept_pairs(self) -> int:
        """Pairs of query and key whose probability is kept, a head."""
        return sum(times * _kept_pairs(n, d) for (n, d), times in self._segments.items())

    @cached_property
    def all_pairs(self) -> int:
        """Pairs of query and key of all segments, those after the query too."""
        return sum(times * n * (d + n) for (n, d), times in self._segments.items())

    @cached_property
    def _segments(self) -> Counter[tuple[int, int]]:
        """(length, depth) -> how many: there are few kinds, and a million of them."""
        return Counter(zip(self.lengths, self.depths, strict=True))


@lru_cache(maxsize=4096)
def _kept_pairs(length: int, depth: int) -> int:
    """Of one segment; asked for every layer of every plan."""
    total = 0
    for begin in range(0, length, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, length)
        keys = depth + end
        total += (end - begin) * keys if keys <= KEPT_KEYS else 0
    return total


def filled(
    tokens: int, length: int, supervised_share: float = 0.6, prompt: int = 0, replies: int | None = None
) -> Layout:
    """A micro-batch of ``tokens`` made of sequences of ``length``; with ``prompt``, of pairs that share so many tokens.

    ``replies``: so many share them in place of two, and their lengths vary, so that shorter ones fill what is left.
    """
    length = max(1, min(length, tokens))
    if not prompt:
        whole, rest = divmod(tokens, length)
        lengths = (length,) * whole + ((rest,) if rest else ())
        return Layout(lengths, (0,) * len(lengths), round(tokens * supervised_share))
    reply, sides = max(1, length - prompt), replies or 2
    count = max(1, tokens // (prompt + sides * reply))
    left = max(0, (tokens - count * (prompt + sides * reply) - prompt) // sides) if replies is not None else 0
    lengths, depths = (prompt, *(reply,) * sides) * count, (0, *(prompt,) * sides) * count
    if left:
        lengths, depths = (*lengths, prompt, *(left,) * sides), (*depths, 0, *(prompt,) * sides)
    return Layout(lengths, depths, sides * (count * reply + left))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnReplies:
    """What learning from one's own replies needs besides: the sampler's cache, and the roles beside the policy."""

    slots: int
    """Replies that are continued at once."""
    length: int
    """Tokens of the longest prompt with the longest reply."""
    scored_tokens: int
    """That a reward model computes at once."""
    critic: bool = False
    """Whether an adapter of the policy's size and a head say what is to be expected."""
    copied_start: bool = False
    """Whether the reference is a copy of what trains, as it is of all weights; otherwise the adapter is switched off."""
    reward_adapter: int = 0
    """Numbers of reward models on the policy's base, their heads included."""
    reward_model: int = 0
    """Numbers of reward models that are models of their own."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained, and how: all of a run that decides its memory, but for the rows."""

    shape: ModelShape
    adapter: LoraAdapter | FullWeights = field(default_factory=LoraAdapter)
    quantized: bool = False
    """Whether the adapter lies on weights in 4 bit (NF4 with doubly quantised scales)."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Compute type."""
    device: Literal["cpu", "cuda"] = "cuda"
    checkpointing: bool = False
    accumulates: bool = True
    """Whether a step has several micro-batches, so that gradients are there from the second one's beginning on."""
    scores: bool = False
    """Whether the model ends in a score in place of the output head."""
    reference_tokens: int = 0
    """Supervised tokens whose log-probabilities under the reference are kept."""
    other_reference: bool = False
    """Whether the reference is another model than the start, which is loaded for itself before training."""
    own_replies: OwnReplies | None = None
    """Where they are learned from."""
    held_out: bool = True
    saves: bool = True
    """Whether weights are written, and read back to be held against memory."""

    @property
    def lora(self) -> LoraAdapter | None:
        """The adapter; None where all weights train."""
        return self.adapter if isinstance(self.adapter, LoraAdapter) else None

    @property
    def method(self) -> str:
        """``full``, ``lora`` or ``qlora``."""
        return "full" if self.lora is None else "qlora" if self.quantized else "lora"

    @property
    def width(self) -> int:
        """e: bytes of the compute type."""
        return 2 if self.dtype == "bf16" else 4

    @property
    def mixed(self) -> bool:
        """Whether weights are fp32 and products narrower (autocast)."""
        return self.lora is None and self.dtype == "bf16"

    @property
    def trained(self) -> int:
        """Numbers that are trained, all in fp32."""
        if self.lora is None:
            return self.shape.parameters - (self.shape.ends - self.shape.embedding if self.scores else 0)
        shape, lora = self.shape, self.lora
        count = adapter_parameters(shape, lora.rank, lora.targets) + (shape.hidden if self.scores else 0)
        layers = adapted(shape, lora.targets)
        return count + (sum(one.outputs for layer in layers for one in layer) if lora.dora else 0)

    @property
    def weight_bytes(self) -> float:
        """Of the model itself, without an adapter."""
        shape = self.shape
        count = shape.parameters - (shape.ends - shape.embedding if self.scores else 0)
        if self.lora is None:
            return 4.0 * count
        if not self.quantized:
            return float(self.width * count)
        return NF4_BYTES * shape.linear_weights + self.width * (count - shape.linear_weights)


@dataclass(frozen=True, slots=True)
class Phase:
    """A time of a run and what memory is for then, in bytes."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """All phases of a training run."""

    phases: tuple[Phase, ...]

    @cached_property
    def peak(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def step_bytes(self) -> float:
        """The most that a forward and backward pass takes besides weights, optimizer and what else is always there."""
        return max(
            sum(size for part, size in phase.parts.items() if part in STEP_PARTS)
            for phase in self.phases
            if phase.name.startswith(("forward", "backward"))
        )

    @property
    def held_bytes(self) -> float:
        """What the allocator of a CPU holds beside it."""
        return max(phase.parts.get("allocator", 0.0) for phase in self.phases)


def memory_plan(setup: Setup, layout: Layout) -> MemoryPlan:
    """The memory of a training run whose largest micro-batch is ``layout``, by phase, in bytes."""
    kept, head = kept_activations(setup, layout), _head(setup, layout)
    working = setup.width * layout.tokens * _working(setup)
    trained, weights = 4.0 * setup.trained, setup.weight_bytes
    base = {"weights": weights, "runtime": RUNTIME[setup.device]}
    if setup.lora is not None:
        base["adapter"] = trained
    if setup.reference_tokens:
        base["reference"] = 4.0 * setup.reference_tokens
    training = base | {"optimizer": 2 * trained}
    standing = training | ({"gradients": trained} if setup.accumulates else {})
    casts = 0.0
    if setup.checkpointing:
        residual = 4 if setup.mixed else setup.width
        working += layout.tokens * (layer_bytes(setup, 0) - setup.shape.hidden * residual) + _pair_bytes(setup, layout)
        casts = _casts(setup)  # they are made for the forward pass, and gone with it
    forward = standing | {"activations": kept + casts, "output head": head.kept + head.forward}
    backward = standing | {"activations": kept, "output head": head.kept + head.backward}
    deep = standing | {"activations": kept, "output head": head.kept + head.waiting, "working memory": working}
    end = training | {"gradients": trained, "output head": head.end, "working memory": 0.0 if head.end else working}
    phases = [
        Phase("load", base | {"second copy": _load_copy(setup)}),
        Phase("forward", forward),
        Phase("backward, output head", backward),
        Phase("backward, last layer", deep),
        Phase("backward, first layer", end),
        Phase("optimizer step", training | {"gradients": trained}),
    ]
    if setup.held_out or setup.reference_tokens:
        phases.append(Phase("evaluation", training | {"working memory": working, "output head": head.alone}))
    if setup.other_reference:
        second = float(setup.width * setup.shape.parameters)  # the other model, in the compute type
        phases.append(Phase("reference", base | {"second copy": second, "working memory": working}))
    if setup.saves and setup.lora is None and setup.device == "cpu":
        phases.append(Phase("writing", training | {"second copy": weights}))
    if setup.own_replies is not None:
        phases = _with_roles(setup, setup.own_replies, training, phases)
    return MemoryPlan(tuple(_with_held(setup, layout, phases)))


def _with_roles(setup: Setup, own: OwnReplies, training: Mapping[str, float], phases: Sequence[Phase]) -> list[Phase]:
    """The phases of learning with what stands beside the policy, and those of sampling and scoring."""
    trained, e, shape = 4.0 * setup.trained, setup.width, setup.shape
    beside = {"reward model": float(e * (own.reward_adapter + own.reward_model))}
    beside["critic"] = (
        3 * trained if own.critic else 0.0
    )  # its states included; its gradient comes when the policy's is gone
    copy = trained if own.copied_start or setup.lora is None else 0.0
    beside["reference"] = copy
    generation = generation_memory(shape, setup.dtype, setup.device, own.slots, own.length).parts
    if setup.lora is not None:  # frozen weights in the order of a product of few rows, from the first reply on
        beside["second copy"] = generation.get("second copy", 0.0)
    drawing = (4.0 + 2 * e) * own.slots * shape.vocabulary
    standing = {**training, **beside}
    sampling = {name: generation[name] for name in ("cache of keys and values", "working memory")}
    sampling["working memory"] += drawing
    scoring = {"working memory": float(e * own.scored_tokens * _working(setup))}
    policy = {
        "second copy": standing.get("second copy", 0.0) + copy
    }  # what trains, while the start stands in its place
    reference = [phase for phase in phases if phase.name == "evaluation"]
    return [
        *(Phase(phase.name, {**phase.parts, **(beside if phase.name not in BEFORE_STEPS else {})}) for phase in phases),
        Phase("sampling", {**standing, **sampling}),
        *([Phase("scoring", {**standing, **scoring})] if beside["reward model"] else []),
        *(Phase("reference of replies", {**phase.parts, **beside, **policy}) for phase in reference),
    ]


def _with_held(setup: Setup, layout: Layout, phases: Sequence[Phase]) -> list[Phase]:
    """The phases with what the allocator of a CPU holds from the first step on. A GPU's is left out: what is allocated is counted there."""
    step = MemoryPlan(tuple(phases)).step_bytes
    blocks = min(CHUNK, layout.supervised) * setup.width * setup.shape.vocabulary
    held = HELD_SHARE * step + blocks * (HELD_CHUNKS + (HELD_AGAIN if setup.checkpointing else 0))
    held += 0.0 if setup.lora is not None else 8.0 * setup.shape.embedding
    if setup.own_replies is not None and setup.dtype == "bf16":
        sampling = next(phase.parts for phase in phases if phase.name == "sampling")
        # a process that samples and learns in turn comes to hold both; fitted to runs of 12 steps and more, over which the heap grows
        held += sampling["cache of keys and values"] + sampling["working memory"]
    if setup.device == "cuda":
        held = 0.0
    return [
        phase if phase.name in BEFORE_STEPS else Phase(phase.name, {**phase.parts, "allocator": held})
        for phase in phases
    ]


def kept_bytes(setup: Setup, layout: Layout) -> float:
    """What the forward pass of a micro-batch leaves for its backward pass."""
    return kept_activations(setup, layout) + _head(setup, layout).kept


# ---- activations ---------------------------------------------------------------------------------------------------


def kept_activations(setup: Setup, layout: Layout) -> float:
    """Bytes kept for the backward pass, output head apart; with checkpointing the inputs of all layers."""
    shape, tokens = setup.shape, layout.tokens
    residual = 4 if setup.mixed else setup.width
    ends = tokens * shape.hidden * residual * (2 if setup.lora is None else 1)  # the final norm
    ends += tokens * 2 * shape.head_dim * residual  # rotary factors
    if setup.checkpointing:
        return float(ends + len(shape.layers) * tokens * shape.hidden * residual)
    kept = sum(tokens * layer_bytes(setup, number) + _pair_bytes(setup, layout) for number in range(len(shape.layers)))
    # nothing before the first adapter needs a gradient
    first = tokens * shape.hidden * residual if setup.lora is not None and shape.layers else 0
    return ends + kept - first + _casts(setup)


def _casts(setup: Setup) -> float:
    """Weights in the compute type that autocast keeps."""
    return 2.0 * sum(layer.active for layer in setup.shape.layers) if setup.mixed else 0.0


def layer_bytes(setup: Setup, number: int) -> float:
    """Bytes a token that a layer keeps, probabilities of attention apart."""
    return _norm_bytes(setup) + _attention_bytes(setup, number) + _mlp_bytes(setup, number)


def _plain(setup: Setup) -> bool:
    """Whether adapters take the hot path."""
    return setup.lora is not None and not setup.lora.dora and setup.lora.dropout == 0


def _norm_bytes(setup: Setup) -> float:
    """Of the norms of the hidden size: their input, and what their own code keeps beside it."""
    shape, count = setup.shape, setup.shape.family.norms
    if setup.lora is not None and not shape.family.own_norm:
        return float(count * shape.hidden * setup.width)
    if setup.lora is None:
        return float(count * 4 * (2 * shape.hidden + 1))  # input, normed, 1 / rms; fp32 whatever the products
    wide = 4 * (shape.hidden + 1) + (shape.hidden * setup.width if setup.width < 4 else 0)
    return float(count * wide)


def _attention_bytes(setup: Setup, number: int) -> float:
    shape, e = setup.shape, setup.width
    h, q, k = shape.hidden, shape.query, shape.key
    layer = shape.layers[number]
    names = _trained_names(setup, number)
    inputs = [one for one in layer.linears if one.name.startswith("self_attn.") and one.name != "self_attn.o_proj"]
    found = float(_input_copies(setup, [one.name for one in inputs], names) * h * e)
    found += e * (q + 2 * k)  # rotated queries and keys, values
    if shape.family.joined:
        found += e * (q + k)  # values are a view of all three
    found += e * q if "self_attn.o_proj" in names else 0  # what the output projection multiplies
    if shape.family.head_norms or shape.family.wide_norms:
        found += _head_norm_bytes(setup)
    if setup.device == "cuda":
        found += 4 * shape.heads + e * q  # sums of the softmax, and every segment's own output
    return found + _rank_bytes(setup, number, "self_attn.")


def _head_norm_bytes(setup: Setup) -> float:
    shape, e = setup.shape, setup.width
    wide, count = shape.query + shape.key, shape.heads + shape.kv_heads
    if setup.lora is not None and not shape.family.own_norm:
        return float(wide * e)
    if setup.mixed:
        return float(wide * (4 + 2) + 4 * count + (4 * wide if shape.family.own_norm else 0))
    return float(wide * (2 if setup.lora is None else 1) * 4 + 4 * count + (wide * e if e < 4 else 0))


def _mlp_bytes(setup: Setup, number: int) -> float:
    shape, e, layer = setup.shape, setup.width, setup.shape.layers[number]
    names = _trained_names(setup, number)
    own = [one.name for one in layer.linears if one.name.startswith("mlp.")]
    ups = [name for name in own if not name.endswith("down_proj")]
    fused = _plain(setup) and shape.silu and not shape.family.joined and not layer.experts and {*own} <= {*names}
    down = setup.lora is None or any(name.endswith("down_proj") for name in names)
    found = float(_input_copies(setup, ups, names) * shape.hidden * e)
    found += e * layer.inner * (2 if fused else 4 if down else 3)
    if layer.experts:
        found += e * shape.hidden * layer.active_experts / max(1, 3 * shape.hidden * layer.inner) * 2
    return found + _rank_bytes(setup, number, "mlp.")


def _trained_names(setup: Setup, number: int) -> tuple[str, ...]:
    """The layer's matrices whose products keep their input: adapted ones, or all."""
    if setup.lora is None:
        return tuple(one.name for one in setup.shape.layers[number].linears)
    return tuple(one.name for one in adapted_in(setup.shape, number, setup.lora.targets))


def _input_copies(setup: Setup, names: Sequence[str], trained: Sequence[str]) -> int:
    """How often the common input of some matrices is kept: once, but by autocast and by PEFT's own layers once each."""
    count = len({*names} & {*trained})
    return count if setup.mixed or (setup.lora is not None and not _plain(setup)) else min(1, count)


def _rank_bytes(setup: Setup, number: int, under: str) -> float:
    lora, found = setup.lora, 0.0
    if lora is None:
        return found
    for one in adapted_in(setup.shape, number, lora.targets):
        if one.name.startswith(under):
            found += setup.width * lora.rank
            found += (setup.width + 1) * one.inputs if lora.dropout else 0  # what is left of the input, and the mask
            found += 2 * setup.width * one.outputs if lora.dora else 0
    return found


def _pair_bytes(setup: Setup, layout: Layout) -> float:
    """Of the probabilities of attention that a layer keeps."""
    if setup.shape.model_type == "gemma2":  # scores are capped: the plain way, every step of it kept
        return float(setup.shape.heads * layout.all_pairs * (4 * 2 + setup.width))
    return float(setup.width * setup.shape.heads * layout.kept_pairs) if setup.device == "cpu" else 0.0


def _working(setup: Setup) -> float:
    """Numbers a token that the backward pass of a layer needs at once; the MLP's products are widest."""
    widest = max((layer.inner for layer in setup.shape.layers), default=0)
    return (1.0 if setup.lora is None else 3.0) * widest + setup.shape.hidden


# ---- the ends ------------------------------------------------------------------------------------------------------


class _HeadBytes(NamedTuple):
    """Of the output head: what is kept, and what is there besides while it is computed forwards, backwards, and without gradient (``alone``).

    ``waiting``: a trained tied head's gradient, until the embedding has its own. ``end``: gradients of a trained embedding before they are added up.
    """

    kept: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    waiting: float = 0.0
    end: float = 0.0
    alone: float = 0.0


def _head(setup: Setup, layout: Layout) -> _HeadBytes:
    shape, e, s = setup.shape, setup.width, layout.supervised
    if setup.scores:
        return _HeadBytes()
    hidden = float(e * shape.hidden * s)
    chunk = float(min(CHUNK, s) * e * shape.vocabulary)
    strips = 2.0 * STRIP * 4 * shape.vocabulary if e < 4 else 0.0
    tiles = 3 * 1024 * 2048 * 4.0
    if setup.lora is not None:
        return _HeadBytes(hidden, chunk + strips + hidden, 2 * hidden, alone=tiles)
    matrix = float(shape.embedding)
    return _HeadBytes(
        hidden + (2 * matrix if setup.mixed else 0.0),  # the head in the compute type
        chunk + strips,
        chunk + hidden + (4 + e) * matrix,
        4 * matrix if shape.tied else 0.0,
        (12 if shape.tied else 4) * matrix,
        tiles,
    )


def _load_copy(setup: Setup) -> float:
    """What is in memory besides the weights while they are read: those that 4 bits are made of, until the gap is measured."""
    return float(setup.width * setup.shape.linear_weights) if setup.quantized and setup.device == "cpu" else 0.0


# ---- generation ----------------------------------------------------------------------------------------------------


def cache_bytes_a_token(shape: ModelShape, width: int) -> int:
    """Keys and values of one token, all layers: 2 L k e."""
    return 2 * len(shape.layers) * shape.key * width


def generation_memory(
    shape: ModelShape, dtype: Literal["bf16", "fp32"], device: Literal["cpu", "cuda"], slots: int, length: int
) -> Phase:
    """The memory of a model that continues ``slots`` sequences of ``length`` tokens at once."""
    e = 2 if dtype == "bf16" else 4
    inner = max(layer.inner for layer in shape.layers)
    parts = {
        "weights": float(e * shape.parameters),
        "cache of keys and values": float(cache_bytes_a_token(shape, e) * -(-length // 64) * 64 * slots),
        "working memory": 8.0 * slots * shape.vocabulary + 3 * e * 1024 * inner,
        "runtime": RUNTIME[device],
    }
    if device == "cpu" and dtype == "fp32":  # weights in the order of a product of few rows (model.prepacked_weights)
        parts["second copy"] = 4.0 * (shape.linear_weights + shape.embedding)
    return Phase("generation", parts)
