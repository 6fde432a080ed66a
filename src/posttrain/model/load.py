"""Load a causal language model from a HF folder, ready for packed training or for generation."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from posttrain.encode.segments import Segments
from posttrain.errors import ModelError
from posttrain.model import attention
from posttrain.model.folder import (
    check_loaded,
    check_model_folder,
    check_numbers,
    left_out,
    loading_error,
    scores_only,
    unused_names,
)
from posttrain.model.forward import causal_lm
from posttrain.model.hardware import to_device
from posttrain.model.kv_cache import Prefill, Step
from posttrain.model.proof import prove

NEW_HEAD = "score.weight"
"""The one weight a language model's folder lacks when it becomes a reward model."""
OLD_HEADS = ("lm_head.", "embed_out.")
"""What it has besides."""


def load_model(
    folder: Path,
    dtype: torch.dtype | Literal["auto"],
    device: torch.device,
    *,
    head: Literal["tokens", "score"] = "tokens",
    seed: int = 0,
) -> PreTrainedModel:
    """The model of a HF folder in ``dtype`` (``auto``: that of its file) on ``device``, in eval mode; `posttrain.model.forward.path_of` says how it computes.

    ``head``: ``score`` gives a reward model, with one score in place of the output head (HF's sequence classification), in fp32;
    where the folder has no score head yet, it is drawn from ``seed``. Raises ModelError where the folder has no
    config.json or no weights, where they do not fit each other, or where the model's code can't compute a sequence.
    Warns of tensors that its computation has no use for.
    """
    check_model_folder(folder)
    options = {} if head == "tokens" else {"num_labels": 1}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
            model: PreTrainedModel
            model, report = _read(_kind(config, head, folder), folder, config, dtype)
    except Exception as error:  # foreign code: whatever it raises is what it says of this folder
        raise loading_error(error, folder) from error
    check_numbers(model, folder)
    unused = unused_names(folder, model._keys_to_ignore_on_load_unexpected or ())
    if head == "tokens" and NEW_HEAD in report["unexpected_keys"]:
        raise scores_only(folder)
    check_loaded(report, folder, unused, *((NEW_HEAD, OLD_HEADS) if head == "score" else ()))
    if left := left_out(folder, unused):
        warnings.warn(
            f"{folder}: {len(left)} tensors are not part of what the model computes ({left[0]}, ...): neither trained nor written",
            stacklevel=2,
        )
    if head == "score":
        model.score.float()
        if NEW_HEAD in report["missing_keys"]:
            _draw(model.score.weight, seed)
    model = model.to(device).eval()
    try:
        with quiet_transformers():
            prove(model, folder)
    except Exception as error:  # odd values of a configuration show only when the model computes
        raise loading_error(error, folder) from error
    return model


def _kind(config: PretrainedConfig, head: Literal["tokens", "score"], folder: Path) -> Any:
    """The class that reads a folder: with towers for images and sound where it has some, so that they are written again."""
    kinds = (
        (AutoModelForSequenceClassification,) if head == "score" else (AutoModelForMultimodalLM, AutoModelForCausalLM)
    )
    found = next((kind for kind in kinds if type(config) in kind._model_mapping), None)
    if found is not None:
        return found
    kind = f"transformers has no {'reward model' if head == 'score' else 'language model'} of the type {config.model_type!r}"
    if head == "score":
        raise ModelError(
            f"{kind} (a sequence classification), so nothing else could load it",
            where=str(folder),
            fix="train the reward model from another model, or use an objective that trains no reward model",
        )
    raise ModelError(kind, where=str(folder), fix="choose a model that continues text")


def _read(
    kind: Any, folder: Path, config: Any, dtype: torch.dtype | Literal["auto"]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and transformers' report on its weights: with our attention, or its own where it takes no other."""
    options = {
        "config": config,
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # `check_loaded` reports them, with their names
    }
    try:
        model, report = kind.from_pretrained(
            folder, attn_implementation=attention.IMPLEMENTATION, output_loading_info=True, **options
        )
        model.set_attn_implementation("eager")
        if model.config._attn_implementation == "eager":
            model.set_attn_implementation(attention.IMPLEMENTATION)
            return model, report
    except (ValueError, KeyError) as error:
        if attention.IMPLEMENTATION not in str(error):
            raise
    # as transformers itself would load it: of its other attention codes one may be wrong (ALiBi counts twice in Falcon's plain code)
    return kind.from_pretrained(folder, output_loading_info=True, **options)  # type: ignore[no-any-return]


@torch.no_grad()
def _draw(head_1D: Tensor, seed: int) -> None:
    """Scores of a fresh head start near 0 whatever the size of the hidden states (Stiennon et al. 2020, arXiv:2009.01325, C.1)."""
    drawn = torch.randn(head_1D.shape, generator=torch.Generator().manual_seed(seed))
    head_1D.copy_(drawn / (head_1D.shape[-1] + 1) ** 0.5)


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


def check_read_back(
    what: str,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    odd: set[str],
    fix: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise ModelError where tensors that were written, as ``dtype``, are not bit for bit those in memory; ``odd``: others that differ."""
    different = odd | (ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        if not torch.equal(*(tensor.to(device="cpu", dtype=dtype) for tensor in (ours[name], theirs[name]))):
            different.add(name)
    if different:
        problem = f"read back, {len(different)} of its {len(ours)} tensors differ, the first: {min(different)}"
        raise ModelError(f"{what} can't be written: {problem}", fix=fix)


@torch.no_grad()
def next_logits(model: torch.nn.Module, ids_T: Tensor, positions_T: Tensor, kv_cache: Prefill | Step) -> Tensor:
    """Logits [B, V] in fp32 after the last token of each of B sequences: new ones side by side, or one more token of each live one.

    Whatever the model does to its logits (caps, scales) is done. Keys and values go to the cache of ``kv_cache``. All sequences of a pass
    must be rotated by the same factors (`posttrain.model.lengths.Lengths.factors`).
    """
    lengths = kv_cache.new if isinstance(kv_cache, Prefill) else [1] * len(ids_T)
    output = causal_lm(model)(
        input_ids=ids_T[None],
        position_ids=positions_T[None],
        use_cache=False,
        segments=Segments(lengths),
        kv_cache=kv_cache,
        logits_to_keep=to_device(np.cumsum(lengths) - 1, ids_T.device),
    )
    kv_cache.finish()
    logits: Tensor = output.logits[0].float()
    return logits
