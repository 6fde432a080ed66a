"""Adapters: PEFT defines, saves and loads them, in the ecosystem's format.

Master weights are fp32 whatever the base is computed in. A is drawn Kaiming-uniform, B is zero (Hu et al. 2021,
arXiv:2106.09685, section 4.1), from the given seed, so a fresh adapter leaves the model unchanged.
"""

from __future__ import annotations

import contextlib
import copy
import json
import operator
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.artifacts import write_json
from posttrain.encode.segments import Segments
from posttrain.errors import ConfigError, ModelError
from posttrain.model import fused, quantise
from posttrain.model.companions import read_object
from posttrain.model.config import LoraAdapter
from posttrain.model.folder import in_a_line, scores_only
from posttrain.model.forward import beside_text, causal_lm, final_hidden
from posttrain.model.load import check_read_back, load_model, quiet_transformers
from posttrain.model.peft_parts import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    convert_peft_config_for_transformers,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

BASE_RECORD = "base_weights.json"
"""The file of an adapter that says how the weights under it were kept, where that was not as they are."""
_ROUTERS = {"router", "gate", "shared_expert_gate"}
"""What transformers calls the layers beside experts that decide which of them a token goes to."""
_READ_PAST = {"dt_proj", "out_proj"}
"""What it calls the layers of a state-space block whose weights are read without calling them."""


def attached_nowhere(model: nn.Module) -> tuple[str, ...]:
    """Full names of linear layers that ``all-linear`` leaves alone: routers, the projections of a state-space scan that are read past it,
    towers for images and sound, and layers in groups, which are linear by name only.

    An adapted router would send tokens elsewhere and unlearn its balance. The weights of the time steps' and the last projection are
    read by fused kernels (and by Mamba's own code), which never call the layer: an adapter there would count once it is merged only.
    """
    towers = tuple(f"{name}." for name in beside_text(model))
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = [name for name, m in linear if f"{name}.".startswith(towers) or _computes_otherwise(m)]
    for name, block in model.named_modules():
        children = dict(block.named_children())
        if {"conv1d", "out_proj"} <= children.keys() and isinstance(getattr(block, "D", None), nn.Parameter):
            found += [f"{name}.{child}" for child in sorted(_READ_PAST & children.keys())]
        if any(_holds_experts(child, part) for child, part in children.items()):
            routers = [(child, children[child]) for child in _ROUTERS & children.keys()]
            parts = [(child, n) for child, r in routers for n, m in r.named_modules() if isinstance(m, nn.Linear)]
            found += [".".join(filter(None, (name, *part))) for part in parts]
    return tuple(sorted(found))


def not_reached(model: nn.Module) -> tuple[str, ...]:
    """What of an adapted model has no adapter though it is a linear layer or an expert; ``*`` stands for the layer's number.

    Experts whose weights are stacked in one tensor have no linear layer to adapt. Output heads and routers are left alone on purpose.
    """
    alone, head = set(attached_nowhere(causal_lm(model))), causal_lm(model).get_output_embeddings()
    found = set()
    for name, module in causal_lm(model).named_modules():
        if re.search(r"lora_|base_layer|^score(\.|$)", name):
            continue
        own_name = name.rpartition(".")[2]
        wanted = name not in alone or own_name in _READ_PAST
        if isinstance(module, nn.Linear) and module is not head and wanted:
            found.add(name)
        if _holds_experts(own_name, module) and not any(isinstance(m, nn.Linear) for m in module.modules()):
            found |= {f"{name}.{n}" for n, p in module.named_parameters() if p.dim() > 1 and "bias" not in n}
    return tuple(sorted({re.sub(r"\.\d+\.", ".*.", name) for name in found}))


@torch.no_grad()
def _computes_otherwise(layer: nn.Linear) -> bool:
    """Whether a model's own code makes something else of a linear layer than a product; an adapter would add one to it."""
    if type(layer).forward is nn.Linear.forward or not type(layer).__module__.startswith("transformers.models."):
        return False
    probe = layer.weight[:1].detach()
    try:
        own = layer(probe)
    except Exception:  # it wants another shape
        return True
    product = nn.functional.linear(probe, layer.weight, layer.bias)
    alike = isinstance(own, Tensor) and own.shape == product.shape  # a router gives more than one
    return not (alike and torch.allclose(own, product, rtol=1e-2, atol=1e-3))


def _holds_experts(name: str, module: nn.Module) -> bool:
    return name == "experts" or "Experts" in type(module).__name__


def load_base(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Literal["nf4"] | None,
    *,
    head: Literal["tokens", "score"] = "tokens",
    seed: int = 0,
    keep_originals: bool = False,
) -> PreTrainedModel:
    """The model that an adapter lies on. In 4 bits, if so: every linear layer that ``all-linear`` names; the others as ``dtype``.

    ``keep_originals``: see `posttrain.model.quantise.originals`. The 4 bits are made from the weights as the file holds them, so they are the same whatever is computed in.
    """
    if quantize is None:
        return load_model(folder, dtype, device, head=head, seed=seed)
    quantise.check_installed()
    model = load_model(folder, "auto", torch.device("cpu"), head=head, seed=seed)
    alone, output = set(attached_nowhere(model)), model.get_output_embeddings()
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output]
    quantise.quantise(model, [name for name in layers if name not in alone and name != "score"], dtype, device)
    if not keep_originals:
        quantise.forget_originals(model)
    problem = "" if quantise.layers(model) else "it has no linear layers of the usual kind"
    with torch.no_grad():
        try:
            final_hidden(model, torch.arange(4, device=device), Segments([4]))
        except Exception as error:  # foreign code that reads weights past the layers they belong to
            problem = in_a_line(error)
    if problem:
        fix = "leave out adapter.quantize"
        raise ModelError(f"{type(model).__name__} can't be kept in 4 bits: {problem}", where=str(folder), fix=fix)
    return model


def quantised_base(adapter: Path | None) -> Literal["nf4"] | None:
    """How the weights under a saved adapter were kept when it was trained: PEFT's own files do not say."""
    if adapter is None or not (adapter / BASE_RECORD).is_file():
        return None
    found = read_object(adapter / BASE_RECORD).get("quantize")
    if found != "nf4":
        raise ModelError(
            f"quantize {found!r} is not known", where=str(adapter / BASE_RECORD), fix="nf4, or remove the file"
        )
    return "nf4"


def attach_lora(model: PreTrainedModel, adapter: LoraAdapter, seed: int) -> PeftModel:
    """The model with a fresh adapter; everything else frozen, but for the score head of a reward model, which trains in fp32.

    Raises ConfigError where a target matches no layer, or the rank is above the width of the model.
    """
    width = model.get_input_embeddings().weight.shape[-1]
    if adapter.rank > width:
        raise ConfigError(
            f"the model is {width} wide: an update of rank {adapter.rank} is not of low rank, and is larger than the weights",
            where="adapter.rank",
            fix="8 to 64 is usual; adapter: {name: full} trains all weights",
        )
    scoring = hasattr(model, "score")
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        task_type="SEQ_CLS" if scoring else "CAUSAL_LM",
        modules_to_save=["score"] if scoring else None,
    )
    if targets == "all-linear":
        config.exclude_modules = list(attached_nowhere(model)) or None
        # PEFT reads the weights of some families' experts, and their router's, for layers; see it before it is applied.
        convert_peft_config_for_transformers(config, model, None)
        reached = {name for name in config.target_parameters or () if name.split(".")[0] not in _ROUTERS}
        config.target_parameters = sorted(reached) or None
    with torch.random.fork_rng(), _quiet_peft():
        torch.manual_seed(seed)
        try:
            wrapped: PeftModel = get_peft_model(model, config)
        except ValueError as error:
            linear = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
            dropout = adapter.dropout > 0 and "dropout" in str(error)  # PEFT can't drop what goes into stacked experts
            raise ConfigError(
                f"adapter.targets {targets!r} can't be used: {in_a_line(error)}",
                fix="set adapter.dropout to 0" if dropout else f"linear layers of this model: {', '.join(linear)}",
            ) from error
    return wrapped.eval()


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """The model with the adapter of a PEFT folder. Raises ModelError for a missing, damaged or foreign adapter, one of other layers included.

    A reward model takes a language model's adapter as well; its own score head stays and trains beside it.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError("no adapter_config.json here: this is not a PEFT adapter", where=str(folder))
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError("no adapter_model.safetensors here (pickled weights are never loaded)", where=str(folder))
    read = _reward_adapter if hasattr(model, "score") else _plain_adapter
    try:
        with _quiet_peft():
            wrapped, odd = read(model, folder, trainable)
    except Exception as error:  # PEFT, safetensors and torch each raise their own types here
        raise misfit(folder, in_a_line(error)) from error
    if "base_model.model.score.weight" in odd:
        raise scores_only(folder)
    if odd:
        missing = f"{len(odd)} of its tensors are missing, or belong to layers that the model does not have"
        raise misfit(folder, f"{missing}, the first: {min(odd)}")
    return wrapped.eval()


def misfit(folder: Path, why: str) -> ModelError:
    """What is said where an adapter lies on a model that it was not trained on."""
    sizes = re.search(r"size mismatch for (\S+): .*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)", why)
    if sizes is not None:
        why = f"{sizes[1].replace('.default', '')} is {sizes[2]}, where this model needs {sizes[3]}"
    fix = "give the adapter the model it was trained on"
    return ModelError(f"the adapter does not fit this model: {why}", where=str(folder), fix=fix)


def _plain_adapter(model: PreTrainedModel, folder: Path, trainable: bool) -> tuple[PeftModel, set[str]]:
    """The model with a saved adapter, and the names in which adapter and model differ; PEFT itself tells them on a second reading only."""
    wrapped: PeftModel = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    found = wrapped.load_adapter(str(folder), "default", is_trainable=trainable)
    return wrapped, {name.replace(".default.", ".") for name in (*found.missing_keys, *found.unexpected_keys)}


def _reward_adapter(model: PreTrainedModel, folder: Path, trainable: bool) -> tuple[PeftModel, set[str]]:
    """The same for a reward model; PEFT itself would ask a language model's adapter for a score head."""
    config = PeftConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", ["score"], not trainable
    state = {"base_model.model.score.weight": model.score.weight.detach().clone()}
    wrapped: PeftModel = get_peft_model(model, config)
    found = set_peft_model_state_dict(wrapped, state | load_file(folder / "adapter_model.safetensors"))
    return wrapped, {*(name for name in found.missing_keys if "lora_" in name), *found.unexpected_keys}


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter in PEFT's format (adapter_config.json, adapter_model.safetensors) into an existing folder, and read it back.

    Raises ModelError where plain PEFT reads something else than what is in memory (see `check_written_adapter`).
    """
    with _quiet_peft():
        model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's generic model card says nothing true of this run
    # PEFT writes sets of names in the order of this process's hashes; equal runs shall give equal files.
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for name in ("target_modules", "target_parameters", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name].sort()
    write_json(folder / "adapter_config.json", config)
    if quantise.layers(model):
        write_json(folder / BASE_RECORD, {"quantize": "nf4"})
    check_written_adapter(model, folder)


@torch.no_grad()
def check_written_adapter(model: PeftModel, folder: Path) -> None:
    """Hold a written adapter against memory, tensor by tensor and bit for bit, as plain PEFT would load it.

    It is laid on the model's outline, whose weights are never touched, so this needs the room of the adapter once more. Raises ModelError.
    """
    inner = causal_lm(model)
    with quiet_transformers(), torch.device("meta"):
        outline = type(inner)(copy.deepcopy(inner.config))
    with _quiet_peft():
        read, odd = _plain_adapter(outline.to_empty(device="cpu"), folder, trainable=False)
        ours, theirs = get_peft_model_state_dict(model), get_peft_model_state_dict(read)
    check_read_back("this adapter", ours, theirs, odd, "choose other adapter.targets")


def adapter_mismatch(folder: Path, adapter: LoraAdapter) -> str | None:
    """Why a saved adapter can't be continued with this configuration, or None where it can."""
    saved = saved_settings(folder)
    for name in ("rank", "alpha", "rslora", "dora", "quantize"):
        if (old := getattr(saved, name)) != (new := getattr(adapter, name)):
            return f"adapter.{name} is {new}, but the adapter to continue has {old}"
    listed = not isinstance(adapter.targets, str) and not isinstance(saved.targets, str)
    if listed and {*adapter.targets} != {*saved.targets}:
        return f"adapter.targets is {sorted(adapter.targets)}, but the adapter to continue has {sorted(saved.targets)}"
    return None


def saved_settings(folder: Path) -> LoraAdapter:
    """The settings a saved adapter was trained with, but for its dropout; its targets where they are a plain list of names."""
    try:
        saved = PeftConfig.from_pretrained(str(folder))
        plain = isinstance(saved.target_modules, set) and not saved.target_parameters
        targets = tuple(sorted(saved.target_modules)) if plain else "all-linear"
        rank, alpha = operator.index(saved.r), float(saved.lora_alpha)
    except Exception as error:  # PEFT and json each raise their own types here
        raise ModelError(f"these LoRA settings can't be read: {in_a_line(error)}", where=str(folder)) from error
    return LoraAdapter(
        rank=rank,
        alpha=alpha,
        targets=targets,
        rslora=saved.use_rslora,
        dora=saved.use_dora,
        quantize=quantised_base(folder),
    )


def saved_model(
    folder: Path,
    adapter: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    head: Literal["tokens", "score"] = "tokens",
    seed: int = 0,
) -> nn.Module:
    """A model as it was left: with its adapter where it has one, on weights kept as they were under it. Nothing of it trains; eval mode."""
    base: nn.Module = load_base(folder, dtype, device, quantised_base(adapter), head=head, seed=seed)
    base.requires_grad_(False)
    return base if adapter is None else load_adapter(base, adapter, trainable=False)


def frozen_model(folder: Path, adapter: Path | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A model that nothing trains, with its adapter where it has one; eval mode.

    All take the hot path, so that a comparison shows their weights and not two ways of rounding.
    """
    model = saved_model(folder, adapter, dtype, device)
    fused.fuse(model)
    return model


@contextlib.contextmanager
def fresh_adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, a LoRA adapter that is still fresh (every B zero) is switched off: the same values for less work.

    An adapter that has learned anything, DoRA and models without an adapter stay as they are.
    """
    zero = [not bool(p.any()) for name, p in model.named_parameters() if "lora_B" in name]
    scaled = any("lora_magnitude_vector" in name for name, _ in model.named_parameters())
    with contextlib.ExitStack() as off:
        if isinstance(model, PeftModel) and zero and all(zero) and not scaled:
            off.enter_context(model.disable_adapter())
        yield


def adapter_off(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Inside, an adapted model is what its adapter lies on."""
    assert isinstance(model, PeftModel), "asked for where an adapter is trained only"
    return model.disable_adapter()  # type: ignore[no-any-return]


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter for everything that is trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """PEFT probes deprecated transformers attributes; its warnings are not the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
