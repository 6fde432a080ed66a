"""Load a causal language model from a HF folder, ready for packed training or for generation."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from posttrain.encode.segments import Segments
from posttrain.errors import ModelError
from posttrain.model import attention
from posttrain.model.lengths import fresh_rotary, lengths_of
from posttrain.model.slots import Prefill, Step

NEW_HEAD = "score.weight"
"""The one weight a language model's folder lacks when it becomes a reward model."""
PACKING_TOLERANCE = {torch.float32: 1e-3}
"""Largest relative difference of packed from alone: rounding gives 5e-7 in fp32, 0.013 in bf16; leaks 0.26 and more."""


def check_model_folder(folder: Path) -> None:
    """Raise ModelError where a folder has no readable config.json or no safetensors weights. Fast: nothing is loaded."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            "no config.json here: this is not a HF model folder",
            where=str(folder),
            fix="give a folder with config.json, weights and tokenizer",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = (
            f"convert {pickled[0]} to safetensors first: pickled weights are never loaded"
            if pickled
            else "download the weights (*.safetensors) as well"
        )
        raise ModelError("no weights (*.safetensors) in this model folder", where=str(folder), fix=hint)
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"config.json is no JSON: {error}", where=str(folder / "config.json"), fix="download the folder again"
        ) from error


def load_model(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    head: Literal["tokens", "score"] = "tokens",
    seed: int = 0,
) -> PreTrainedModel:
    """The model of a HF folder in ``dtype`` on ``device``, in eval mode, with attention per packed segment.

    ``head``: ``score`` gives a reward model, with one score in place of the output head (HF's sequence classification), in fp32;
    where the folder has no score head yet, it is drawn from ``seed``. Raises ModelError where the folder has no
    config.json or no weights, or where they do not fit each other.
    """
    check_model_folder(folder)
    kind, options = (
        (AutoModelForCausalLM, {}) if head == "tokens" else (AutoModelForSequenceClassification, {"num_labels": 1})
    )
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, **options)
            model: PreTrainedModel
            model, report = kind.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention.IMPLEMENTATION,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        if attention.IMPLEMENTATION in str(error):
            raise ModelError(
                "this architecture brings attention code of its own, which can't keep packed sequences apart",
                where=str(folder),
                fix="choose a model whose attention transformers lets be replaced (most since 2024)",
            ) from error
        raise ModelError(f"the model can't be loaded: {str(error).splitlines()[0]}", where=str(folder)) from error
    except Exception as error:  # safetensors raises its own type for damaged files
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise ModelError(f"damaged weights: {error}", where=str(folder), fix="download the folder again") from error
        raise
    missing = sorted(key for key in report["missing_keys"] if key != NEW_HEAD)
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing from this folder, the first: {missing[0]}",
            where=str(folder),
            fix="download the folder again",
        )
    if head == "score":
        model.score.float()
        if NEW_HEAD in report["missing_keys"]:
            _draw(model.score.weight, seed)
    model = model.to(device).eval()
    _prove_packing(model, folder)
    return model


@torch.no_grad()
def _draw(head_1D: Tensor, seed: int) -> None:
    """Scores of a fresh head start near 0 whatever the size of the hidden states (Stiennon et al. 2020, arXiv:2009.01325, C.1)."""
    drawn = torch.randn(head_1D.shape, generator=torch.Generator().manual_seed(seed))
    head_1D.copy_(drawn / (head_1D.shape[-1] + 1) ** 0.5)


@torch.no_grad()
def _prove_packing(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a model whose packed computation is not its own: a short sequence behind others, its prefix shared, and alone.

    Layers that mix neighbours without attention (convolutions, recurrences) let sequences leak into each other, and
    models with position biases inside their own attention lose them in ours. Nothing would tell but worse results.
    """
    segments = Segments([5, 6, 3, 7], parents=[-1, -1, 1, 1])
    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    ids_T = torch.arange(sum(segments.lengths), device=device) % embedding.num_embeddings
    probed = torch.cat([torch.arange(start, end, device=device) for start, end in segments.spans(3)])
    try:
        packed_TD = final_hidden(model, ids_T, segments)[probed].float()
        model.set_attn_implementation("eager")
        own_TD = model.get_decoder()(input_ids=ids_T[None, probed], use_cache=False).last_hidden_state[0].float()
    except (TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"the code of this model ({type(model).__name__}) can't compute packed sequences: {error}",
            where=str(folder),
        ) from error
    finally:
        model.set_attn_implementation(attention.IMPLEMENTATION)
    difference = float((packed_TD - own_TD).norm() / own_TD.norm())
    if difference > PACKING_TOLERANCE.get(model.dtype, 0.15):  # a NaN is the weights' fault and told by the training
        raise ModelError(
            f"{type(model).__name__} computes something else when sequences are packed (relative difference "
            f"{difference:.2g}): it has layers besides attention that mix neighbours, or position biases",
            where=str(folder),
            fix="choose a model whose layers mix tokens by attention only",
        )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice out of our output."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def causal_lm(model: torch.nn.Module) -> PreTrainedModel:
    """The HF model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "base_model", None)
    return inner.model if inner is not None and hasattr(inner, "peft_config") else model


def final_hidden(model: torch.nn.Module, ids_T: Tensor, segments: Segments) -> Tensor:
    """Final hidden states [T, D] of packed sequences; logits are never formed here. ids_T: int64 on the model's device.

    Raises ModelError for a model with another attention than ours: the segments would see each other.
    """
    decoder = causal_lm(model).get_decoder()
    if decoder.config._attn_implementation != attention.IMPLEMENTATION:
        raise ModelError(
            f"packed sequences need attention per segment, but this model has {decoder.config._attn_implementation!r}",
            fix="load it with posttrain.model.load.load_model",
        )
    output = decoder(
        input_ids=ids_T[None],
        position_ids=torch.from_numpy(segments.positions).to(ids_T.device)[None],
        use_cache=False,
        segments=segments,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def output_head(model: torch.nn.Module) -> tuple[Tensor, float | None]:
    """The output head [V, D] and the final logit soft-cap (None for most models).

    Raises ModelError for heads that are more than one matrix.
    """
    inner = causal_lm(model)
    head = inner.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        raise ModelError(f"the output head is a {type(head).__name__}, not a plain matrix: not supported")
    config: Any = inner.config.get_text_config()
    if getattr(config, "logit_scale", None) not in (None, 1.0) or getattr(config, "logits_scaling", None) not in (
        None,
        1.0,
    ):
        raise ModelError("this model scales its logits after the output head, which is not supported")
    return head.weight, getattr(config, "final_logit_softcapping", None)


@torch.no_grad()
def next_logits(model: torch.nn.Module, ids_T: Tensor, positions_T: Tensor, slots: Prefill | Step) -> Tensor:
    """Logits [B, V] in fp32 after the last token of each of B sequences: new ones side by side, or one more token of each live one.

    Whatever the model does to its logits (caps, scales) is done. Keys and values go to the cache of ``slots``. All sequences of a pass
    must be rotated by the same factors (`posttrain.model.lengths.Lengths.factors`).
    """
    lengths = slots.new if isinstance(slots, Prefill) else [1] * len(ids_T)
    inner = causal_lm(model)
    if lengths_of(inner.config).dynamic:
        fresh_rotary(inner)
    output = inner(
        input_ids=ids_T[None],
        position_ids=positions_T[None],
        use_cache=False,
        segments=Segments(lengths),
        slots=slots,
        logits_to_keep=torch.tensor(lengths, device=ids_T.device).cumsum(0) - 1,
    )
    slots.finish()
    logits: Tensor = output.logits[0].float()
    return logits
