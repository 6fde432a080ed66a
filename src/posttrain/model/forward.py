"""How sequences go through a loaded model: many in one packed pass, or one at a time by the model's own code.

`posttrain.model.proof` finds out at loading which of the two is right and leaves it on the model as one value, a `Path`. Everything
that needs hidden states or log-probabilities asks here, so training, reference, evaluation and verification are the same code on
both paths.

Shapes: T packed tokens, S supervised ones, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.encode.collate import Batch
from posttrain.encode.segments import Segments
from posttrain.errors import ModelError
from posttrain.model.hardware import to_device
from posttrain.parallel.peers import Peers

_PATH = "posttrain_path"
_SHELL = "posttrain_shell"


class LogitForm(NamedTuple):
    """What a model does to the products of its output head: logits = cap * tanh(scale * z / cap); no cap: scale * z."""

    scale: float = 1.0
    cap: float | None = None


PLAIN = LogitForm()


@dataclass(frozen=True)
class Path:
    """How sequences go through a model, proven when it was loaded."""

    kind: Literal["packed", "alone"]
    """``packed``: side by side in one pass, attention per segment. ``alone``: one at a time, by the model's own code."""
    why: str = ""
    """What stands in the way of packing; empty where nothing does."""
    shares: bool = False
    """Whether a prefix may be computed once for several sequences: not where a sequence's length decides what it is."""
    logits: LogitForm | None = PLAIN
    """How logits come from the output head; None where only the model's own code can tell."""


@dataclass(frozen=True)
class Shell:
    """What stands around a model whose weights are divided among processes (`posttrain.model.sharded`)."""

    root: Any
    """Does a piece of work while the weights outside the layers are whole; an FSDPModule."""
    peers: Peers
    reduces_at_end: bool
    """Whether gradients are reduced after the last micro-batch of a step only."""


class Head(NamedTuple):
    """The output head: logits = form(hidden weight^T + bias)."""

    weight_VD: Tensor
    bias_V: Tensor | None
    form: LogitForm


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The HF model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "base_model", None)
    return inner.model if inner is not None and inner is not model and hasattr(inner, "peft_config") else model


def path_of(model: nn.Module) -> Path:
    """How sequences go through this model. Raises ModelError for a model that was not loaded by `load_model`."""
    path = getattr(causal_lm(model), _PATH, None)
    if not isinstance(path, Path):
        raise ModelError(
            "how sequences go through this model was never proven", fix="load it with posttrain.model.load.load_model"
        )
    return path


def set_path(model: nn.Module, path: Path) -> None:
    """Leave the path on a model; for the proof at loading."""
    setattr(causal_lm(model), _PATH, path)


def set_shell(model: nn.Module, shell: Shell) -> None:
    """Leave the shell on a model that was divided."""
    setattr(causal_lm(model), _SHELL, shell)


def shell_of(model: nn.Module) -> Shell | None:
    """What stands around a model whose weights are divided; None where this process has them whole."""
    found: Shell | None = getattr(causal_lm(model), _SHELL, None)
    return found


def through(model: nn.Module, work: Callable[[], Tensor]) -> Tensor:
    """What a forward pass gives, with all weights at hand that it reads."""
    shell = shell_of(model)
    if shell is None:
        return work()
    found: Tensor = shell.root(work)
    if not torch.is_grad_enabled():
        shell.root.reshard()  # no backward pass will
    return found


def rounds(model: nn.Module, own: int) -> int:
    """How many forward passes to make for ``own`` of them: as many as the process with most where weights are divided, for each gathers them.

    Collective, so asked before the first of them.
    """
    shell = shell_of(model)
    return own if shell is None else max(shell.peers.gather(own))


def body(model: nn.Module) -> nn.Module:
    """The part of a model that ends in the final hidden states."""
    inner: Any = causal_lm(model)
    parts = (inner.get_decoder(), inner.base_model, getattr(inner, "model", None))
    # ModernBERT calls its output head a decoder
    found = next(p for p in parts if isinstance(p, nn.Module) and not isinstance(p, nn.Linear) and p is not inner)
    ends = isinstance(found, PreTrainedModel) and found.get_output_embeddings() is not None
    return body(found) if ends else found  # a language model within a model of several senses


def beside_text(model: nn.Module) -> tuple[str, ...]:
    """The outermost parts of a model that no text goes through, by name: towers for images and sound, and what joins them to it."""
    inner: Any = causal_lm(model)
    if inner.config.get_text_config() is inner.config:
        return ()
    ends = (inner.get_output_embeddings(), inner.get_input_embeddings(), getattr(inner, "score", None))
    inside = {id(p) for part in (body(inner), *ends) if part is not None for p in part.parameters()}

    def outermost(module: nn.Module, name: str) -> Iterator[str]:
        parameters = [id(p) in inside for p in module.parameters()]
        if parameters and not any(parameters):
            yield name
        elif not all(parameters):
            before = f"{name}." if name else ""
            yield from (before + own for own, p in module.named_parameters(recurse=False) if id(p) not in inside)
            for child, part in module.named_children():
                yield from outermost(part, before + child)

    return tuple(outermost(inner, ""))


def score_head(model: nn.Module) -> nn.Module | None:
    """The score head of a reward model, in HF's sequence-classification form; None for a language model."""
    head = getattr(causal_lm(model), "score", None)
    return head if isinstance(head, nn.Module) else None


def computing_in(model: nn.Module, compute_dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Inside, matrix products are of this type: autocast where the weights are fp32 and it is narrower."""
    weight = causal_lm(model).get_input_embeddings().weight
    mixed = weight.dtype == torch.float32 and compute_dtype != torch.float32
    return torch.autocast(weight.device.type, compute_dtype) if mixed else contextlib.nullcontext()


def final_hidden(model: nn.Module, ids_T: Tensor, segments: Segments) -> Tensor:
    """Final hidden states [T, D] of packed sequences; logits are never formed here. ids_T: int64 on the model's device."""
    path, decoder = path_of(model), body(model)
    if path.kind == "packed" and (path.shares or not segments.shared):
        positions_T = to_device(segments.positions, ids_T.device)
        output = decoder(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, segments=segments)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden
    return torch.cat(
        [
            decoder(input_ids=ids, use_cache=False, **options).last_hidden_state[0, -length:]
            for _, length, ids, options in _one_by_one(path, ids_T, segments)
        ]
    )


def _one_by_one(path: Path, ids_T: Tensor, segments: Segments) -> Iterator[tuple[int, int, Tensor, dict[str, Any]]]:
    """For each segment: where it starts, its length, the ids [1, n] of the sequence that ends with it, and how it is passed."""
    for index, (start, length) in enumerate(zip(segments.starts, segments.lengths, strict=True)):
        ids = torch.cat([ids_T[begin:end] for begin, end in segments.spans(index)])[None]
        options = {"segments": Segments([ids.shape[1]])} if path.kind == "packed" else {}
        yield start, length, ids, options


def output_head(model: nn.Module) -> Head | None:
    """The output head as a matrix, its bias, and what follows; None where only the model's own code can form logits."""
    head, form = causal_lm(model).get_output_embeddings(), path_of(model).logits
    if type(head) is not nn.Linear or form is None:  # with an adapter on it, for example
        return None
    return Head(head.weight, head.bias, form)


def own_logps(
    model: nn.Module,
    ids_T: Tensor,
    segments: Segments,
    predict_S: Tensor,
    targets_S: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """fp32 log p [S] of the targets from the model's own logits, one sequence at a time: for heads that are no plain matrix."""
    parts, order = [], []
    for start, length, ids, options in _one_by_one(path_of(model), ids_T, segments):
        here = ((predict_S >= start) & (predict_S < start + length)).nonzero()[:, 0]
        kept = predict_S[here] - start + ids.shape[1] - length
        logits_CV = causal_lm(model)(input_ids=ids, use_cache=False, **options).logits[0, kept]
        parts.append((logits_CV.float() / temperature).log_softmax(-1).gather(1, targets_S[here, None])[:, 0])
        order.append(here)
    logps_S: Tensor = torch.cat(parts)[torch.cat(order).argsort()]
    return logps_S


def step_flops(model: nn.Module, batch: Batch) -> float:
    """Floating-point operations of one micro-batch's forward and backward pass.

    Counted are the necessary matrix products only: linear layers (2 per weight and token forward, 2 backward to the
    activations, 2 more where the weight itself trains), causal attention (one product for every query and key at or before it, forward once and backward
    twice), and the output head at supervised tokens. Recomputation is not counted: it is not progress.
    """
    segments, supervised = batch.segments, len(batch.predict_S)
    tokens, trunk = sum(segments.lengths), body(model)
    per_token = 0.0
    for module in trunk.modules():
        if isinstance(module, nn.Linear):
            per_token += module.in_features * module.out_features * (6 if module.weight.requires_grad else 4)
    config = causal_lm(model).config.get_text_config()
    heads, layers = _number(config, "num_attention_heads"), _number(config, "num_hidden_layers")
    width = heads * (_number(config, "head_dim") or _number(config, "hidden_size") / max(heads, 1))
    pairs = sum(n * (d + n / 2) for n, d in zip(segments.lengths, segments.depths, strict=True))
    attention = 12.0 * layers * width * pairs
    # A score head is a few hundred numbers.
    weight = getattr(causal_lm(model).get_output_embeddings(), "weight", None) if score_head(model) is None else None
    head = 0.0 if weight is None else supervised * weight.numel() * (6.0 if weight.requires_grad else 4.0)
    return float(tokens * per_token + attention + head)


def _number(config: object, name: str) -> float:
    """A number of a configuration; 0 where there is none: this count is for display, so it is never an error.

    A configuration may raise what it likes where a number is one for each layer (Gemma 4).
    """
    try:
        value = getattr(config, name, None)
    except Exception:
        return 0.0
    return float(value) if isinstance(value, int | float) else 0.0
