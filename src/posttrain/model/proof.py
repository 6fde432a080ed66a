"""What is proven of a model when it is loaded: how sequences may go through it (`posttrain.model.forward.Path`).

Nothing here knows a model by name. The model's own code computes a few short sequences one at a time; packed into one pass they must
come out the same. A configuration may switch to another computation at some length (a window closes, a chunk ends, rotary
factors change): the probe crosses every such length, and where one is long it is made short for the time of the proof.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from itertools import product
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.encode.segments import Segments
from posttrain.errors import ConfigError, ModelError
from posttrain.model.attention import IMPLEMENTATION
from posttrain.model.forward import LogitForm, Path, causal_lm, computing_in, final_hidden, set_path
from posttrain.model.lengths import follow_lengths, is_by_length, limits_of
from posttrain.model.own import proven

TOLERANCE = 1e-3
"""Largest relative difference of packed from alone: in fp32 rounding gives 5e-7, leaks 0.03 and more."""
COARSE_TOLERANCE = 0.15
"""The same where a model can't compute in fp32, because its weights are quantised: rounding gives 0.013 in bf16."""
_SWITCHES = (
    "sliding_window",
    "attention_chunk_size",
    "attention_window_size",
    "window_size",
    "original_max_position_embeddings",
)
"""Names, of configurations and of modules, whose value is a length at which something else is computed."""
_SWITCHES_BY_LENGTH = ("max_position_embeddings", "original_max_seq_len", "max_seq_len_cached")
"""The same, where rotary positions depend on the length; elsewhere these are limits and sizes of tables."""
CROSSED = 128
"""A switch up to this many tokens is crossed as it is; a longer one is made `_SHORT` for the time of the proof."""
_SHORT = 16
_TAIL = 4
"""Tokens of the probe that continue its longest sequence."""
_SCALES: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("logit_scale", lambda x: x),
    ("logits_scaling", lambda x: 1 / x),
    ("logits_scaling", lambda x: x),
    ("lm_head_multiplier", lambda x: x),
)
"""Names under which configurations scale logits, and how; which of them a model means is measured."""
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_LOUD = 30.0
"""Logits are made this large before they reach what follows the head: a cap does nothing to small ones."""


@torch.no_grad()
def prove(model: PreTrainedModel, folder: Folder) -> Path:
    """Find out how sequences go through a model in eval mode, leave that on the model, and return it.

    Raises ModelError where its own code can't compute a sequence, or looks at later tokens.
    """
    by_length = follow_lengths(model)
    return proven(model, partial(_prove, model, folder, by_length), TOLERANCE, COARSE_TOLERANCE)


@torch.no_grad()
def prove_products(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Raise ConfigError where a model's code can't compute with weights in one type and products in another."""
    if compute_dtype == torch.float32:
        return
    ids_T = torch.arange(_TAIL, device=next(model.parameters()).device)
    try:
        with computing_in(model, compute_dtype):
            final_hidden(model, ids_T, Segments([_TAIL]))
    except RuntimeError as error:
        raise ConfigError(
            f"the code of this model ({type(causal_lm(model)).__name__}) can't compute in bf16 with weights in fp32: {_line(error)}",
            where="dtype",
            fix="set dtype: fp32, or train an adapter (adapter: {name: lora})",
        ) from error


def _prove(model: PreTrainedModel, folder: Folder, by_length: bool, tolerance: float) -> Path:
    with switches_crossed(model) as longest:
        last = limits_of(model).positions  # no switch lies beyond it
        segments = _probe(longest if last is None else min(longest, last - _TAIL), shared=not by_length)
        vocabulary = model.get_input_embeddings().weight
        ids_T = (torch.arange(sum(segments.lengths), device=vocabulary.device) * 7 + 3) % len(vocabulary)
        packs = model.config._attn_implementation == IMPLEMENTATION
        own_TD = _own_hidden(model, ids_T, segments, folder, tolerance)
        why = "it brings attention code of its own"
        if packs:
            why = _packing_fault(model, ids_T, segments, own_TD, tolerance, shares=not by_length)
        if why:
            _use_faster_attention(model, ids_T, segments, own_TD, tolerance)
    path = Path("alone", why) if why else Path("packed", shares=not by_length)
    set_path(model, path)
    if model.get_output_embeddings() is not None:
        path = Path(path.kind, path.why, path.shares, _logit_form(model, ids_T[:5], folder, tolerance))
        set_path(model, path)
    return path


def _probe(longest: int, *, shared: bool) -> Segments:
    """Sequences of few tokens and one of ``longest``; where prefixes are shared, two more that continue the second."""
    lengths = [5, 6, 3, 7, longest, _TAIL] if longest > 0 else [5, 6, 3, 7]
    return Segments(lengths, [-1, -1, 1, 1, -1, 4][: len(lengths)] if shared else None)


def _own_hidden(model: PreTrainedModel, ids_T: Tensor, segments: Segments, folder: Folder, tolerance: float) -> Tensor:
    """Hidden states by the model's own code and transformers' plainest attention, one sequence at a time."""
    set_path(model, Path("alone"))
    try:
        model.set_attn_implementation("eager")
        own_TD = final_hidden(model, ids_T, segments)
        first = segments.lengths[0]
        prefix_TD = final_hidden(model, ids_T[: first - 2], Segments([first - 2]))
    except Exception as error:  # whatever a model's code raises: nothing can be computed with it
        raise ModelError(
            f"the code of this model ({type(model).__name__}) can't compute a sequence: {_line(error)}",
            where=str(folder),
        ) from error
    _check_finite(own_TD, model, folder)
    if _difference(prefix_TD, own_TD[: first - 2]) > tolerance:
        raise ModelError(
            f"{type(model).__name__} looks at later tokens: it is not a causal language model",
            where=str(folder),
            fix="choose a model that was trained to predict the next token",
        )
    return own_TD


def _packing_fault(
    model: PreTrainedModel, ids_T: Tensor, segments: Segments, own_TD: Tensor, tolerance: float, *, shares: bool
) -> str:
    """Why this model can't be packed; empty where packed sequences come out as they do alone.

    Layers that mix neighbours without attention (convolutions, recurrences) let sequences leak into each other, and
    models with position biases or chunks inside their own attention lose them in ours.
    """
    set_path(model, Path("packed", shares=shares))
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        difference = _difference(final_hidden(model, ids_T, segments), own_TD)
    except Exception as error:  # whatever a model's code raises at arguments it does not know
        return f"its code takes no packed sequences ({_line(error)})"
    if difference > tolerance:  # a NaN is the weights' fault, and training reports it
        return (
            f"packed it computes something else (relative difference {difference:.2g}): layers besides attention mix "
            "neighbours, or its attention has rules of its own"
        )
    return ""


def _use_faster_attention(
    model: PreTrainedModel, ids_T: Tensor, segments: Segments, own_TD: Tensor, tolerance: float
) -> None:
    """torch's attention kernels where they give what the plain code gives, else the plain code."""
    set_path(model, Path("alone"))
    try:
        model.set_attn_implementation("sdpa")
        difference = _difference(final_hidden(model, ids_T, segments), own_TD)
    except Exception:  # not every model takes them
        difference = math.inf
    if not difference <= tolerance:
        model.set_attn_implementation("eager")


@contextlib.contextmanager
def switches_crossed(model: PreTrainedModel) -> Iterator[int]:
    """Inside, no switch of the model is at more than `CROSSED` tokens; yields a length beyond all of them, 0 without any.

    Windows, chunks and ranges are read from configurations and modules while a model computes, so they can be changed there.
    """
    places: list[MutableMapping[str, Any]] = []
    for module in model.modules():
        places.append(vars(module))
        if hasattr(getattr(module, "config", None), "to_dict"):
            places += _nested(vars(module.config))
    places = list({id(place): place for place in places}.values())
    by_length = any(is_by_length(place.get("rope_type", "")) for place in places)
    names = _SWITCHES + (_SWITCHES_BY_LENGTH if by_length else ())
    found = [(place, name, place[name]) for place in places for name in names if type(place.get(name)) is int]
    try:
        for place, name, value in found:
            place[name] = value if value <= CROSSED else _SHORT
        yield 2 * max((place[name] for place, name, _ in found), default=-4) + 9 if found else 0
    finally:
        for place, name, value in found:
            place[name] = value


def _nested(place: MutableMapping[str, Any]) -> list[MutableMapping[str, Any]]:
    """A mapping and all mappings in it."""
    inner = [value for value in place.values() if isinstance(value, dict)]
    return [place, *(deeper for value in inner for deeper in _nested(value))]


def _logit_form(model: PreTrainedModel, ids_T: Tensor, folder: Folder, tolerance: float) -> LogitForm | None:
    """What the model does to the products of its head, of all that its configuration may mean; None where it is none of these."""
    head: Any = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return None
    segments = Segments([len(ids_T)])
    hidden_TD = final_hidden(model, ids_T, segments)
    bias_V = None if head.bias is None else head.bias.to(hidden_TD.dtype)
    z_TV = torch.nn.functional.linear(hidden_TD, head.weight.to(hidden_TD.dtype), bias_V).float()
    gain = _LOUD / float(z_TV.std().clamp(min=1e-6))
    options = {"segments": segments} if model.config._attn_implementation == IMPLEMENTATION else {}
    louder = head.register_forward_hook(lambda module, inputs, output: output * gain)
    try:
        own_TV = model(input_ids=ids_T[None], use_cache=False, **options).logits[0].float()
    except Exception:  # then its logits can't be ours either
        return None
    finally:
        louder.remove()
    _check_finite(own_TV, model, folder)
    config = model.config.get_text_config()
    scales = {1.0, *(form(float(x)) for name, form in _SCALES if (x := getattr(config, name, None)))}
    caps = {None, *(getattr(config, name, None) for name in _CAPS)}
    differences = {}
    for scale, cap in product(scales, caps):
        ours_TV = z_TV * gain * scale
        ours_TV = ours_TV if cap is None else torch.tanh(ours_TV / cap) * cap
        if ours_TV.shape == own_TV.shape:
            differences[LogitForm(scale, cap)] = _difference(ours_TV, own_TV)
    best = min(differences, key=lambda form: differences[form], default=None)
    return best if best is not None and not differences[best] > tolerance else None


def _check_finite(values: Tensor, model: PreTrainedModel, folder: Folder) -> None:
    if not values.isfinite().all():
        raise ModelError(
            f"{type(model).__name__} computes NaN or infinity from these weights and this config.json",
            where=str(folder),
            fix="download the folder again",
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    """2-norm of the difference relative to the 2-norm."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
