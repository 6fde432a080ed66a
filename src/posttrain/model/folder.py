"""A HF model folder is held against what it claims before and after it is loaded: every file whole, every tensor known, nothing left over.

Foreign code says what is wrong in its own words and its own exception types; here it becomes one ModelError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from posttrain.errors import ModelError
from posttrain.model.companions import AGAIN, end_ids, read_object

INDEX = "model.safetensors.index.json"
_PREDICTORS = re.compile(r"(nextn|mtp).*layers$")
"""How configurations call the number of layers, behind the others, that guess further tokens ahead (multi-token prediction)."""
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""How configurations call the number of layers."""
_TABLES = re.compile(r"(inv_freq|masked_bias|attn\.bias|attention\.bias)$")
"""Tensors of old folders that are computed anew: nothing is lost with them."""


def check_model_folder(folder: Path) -> None:
    """Raise ModelError where a folder has no readable config.json, or no whole safetensors weights. Fast: nothing is loaded."""
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise ModelError(
            "this is an adapter, which is no model without its base",
            where=str(folder),
            fix="name its base as model, and the adapter as start_from of a train stage; or merge it: posttrain export --to hf",
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            "no config.json here: this is not a HF model folder",
            where=str(folder),
            fix="give a folder with config.json, weights and tokenizer",
        )
    config = read_object(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = (
            f"convert {pickled[0]} to safetensors first: pickled weights are never loaded"
            if pickled
            else "download the weights (*.safetensors) as well"
        )
        raise ModelError("no weights (*.safetensors) in this model folder", where=str(folder), fix=hint)
    if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        _check_index(folder)
    tensors = 0
    for file in files:
        try:
            with safe_open(file, "np") as opened:
                tensors += len(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"damaged weights: {error}", where=str(file), fix=AGAIN) from error
    _check_depth(folder, config, tensors)
    _check_ends(folder, config)


def stored_numbers(folder: Path) -> int:
    """How many numbers the weights of a folder are. Raises ModelError where they are damaged."""
    found = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "np") as opened:
                found += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise ModelError(f"damaged weights: {error}", where=str(file), fix=AGAIN) from error
    return found


def _check_depth(folder: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Every layer has a tensor at least; more layers than tensors are an error here, for building millions of them would take hours."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    depths = [part.get(name) for part in parts for name in _DEPTHS] + [n for p in parts for n in predictors(p).values()]
    deepest = max((depth for depth in depths if type(depth) is int), default=0)
    if deepest > tensors:
        raise ModelError(
            f"config.json says {deepest:,} layers, but the folder holds only {tensors} tensors",
            where=str(folder),
            fix="put the config.json there that belongs to the weights",
        )


def _check_index(folder: Path) -> None:
    index = read_object(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or {type(name) for name in places.values()} != {str}:
        raise ModelError("this index of weights names no files", where=str(folder / INDEX), fix=AGAIN)
    missing = sorted({name for name in places.values() if not (folder / name).is_file()})
    if missing:
        others = f" and {len(missing) - 1} other files" if len(missing) > 1 else ""
        raise ModelError(
            f"the index names {missing[0]}{others}, but this folder does not have it",
            where=str(folder / INDEX),
            fix="download the missing files",
        )
    if not isinstance(index.get("metadata"), dict):  # transformers reads it
        raise ModelError("this index of weights has no metadata", where=str(folder / INDEX), fix=AGAIN)


def _check_ends(folder: Path, config: Mapping[str, Any]) -> None:
    text = config.get("text_config")
    ids = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    beyond = [one for one in end_ids(folder) if one >= ids] if isinstance(ids, int) else []
    if beyond:
        raise ModelError(
            f"eos_token_id is {beyond[0]}, but the model has {ids:,} ids (vocab_size): a reply could never end",
            where=str(folder),
            fix="set eos_token_id in generation_config.json and config.json to the token that ends a reply",
        )


def unused_names(folder: Path, patterns: Iterable[str]) -> re.Pattern[str]:
    """What tensors are called that are by a folder's own word no part of the model: layers that guess further tokens ahead.

    patterns: those of the names that the model's code has no use for.
    """
    config = read_object(folder / "config.json")
    text = config.get("text_config") or config
    first, ahead = text.get("num_hidden_layers"), max(predictors(text).values(), default=0)
    behind = [rf"(^|\.)layers\.{first + k}\." for k in range(ahead)] if isinstance(first, int) else []
    return re.compile("|".join([*patterns, *behind]) or "$.")


def left_out(folder: Path, unused: re.Pattern[str]) -> list[str]:
    """The tensors of a folder that are called so, in order; not those that are computed anew."""
    names = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            names |= {name for name in opened.keys() if unused.search(name)}  # noqa: SIM118  # it is no mapping
    return sorted(name for name in names if not _TABLES.search(name))


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a folder by name; their values are not read."""
    found: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
    return found


def predictors(config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of layers for multi-token prediction that a configuration names."""
    return {key: value for key, value in config.items() if _PREDICTORS.search(key) and type(value) is int}


def check_loaded(
    report: Mapping[str, Any],
    folder: Path,
    unused: re.Pattern[str],
    may_lack: str = "",
    may_have: tuple[str, ...] = (),
) -> None:
    """Raise ModelError where tensors of a folder and of its model differ. report: transformers' loading info.

    unused: see `unused_names`. may_lack: the tensor that the folder need not have; may_have: beginnings of names it may have besides (a head
    that is replaced).
    """
    missing = sorted(key for key in report["missing_keys"] if key != may_lack)
    if missing:
        problem = (
            f"{len(missing)} weights that config.json asks for are missing from this folder, the first: {missing[0]}"
        )
        fix = f"{AGAIN}, or put the config.json there that belongs to the weights"
        raise ModelError(problem, where=str(folder), fix=fix)
    shapes = sorted(report["mismatched_keys"])
    if shapes:
        _, found, wanted = shapes[0]
        raise ModelError(
            f"{_some([name for name, *_ in shapes])} of another shape than config.json says: {tuple(found)}, not {tuple(wanted)}",
            where=str(folder),
            fix="put the config.json there that belongs to the weights",
        )
    unknown = sorted(
        key for key in report["unexpected_keys"] if not (key.startswith(may_have or "/") or unused.search(key))
    )
    if unknown:
        raise ModelError(
            f"{_some(unknown)} in this folder are unknown to the model of its config.json, which would ignore them",
            where=str(folder),
            fix="put the config.json there that belongs to the weights (number of layers, biases, quantization_config)",
        )
    if report["error_msgs"]:
        raise ModelError(f"the weights don't fit the model: {report['error_msgs'][0]}", where=str(folder), fix=AGAIN)


def scores_only(folder: Path) -> ModelError:
    """What is said where a language model is needed and a reward model is given."""
    return ModelError(
        "this is a reward model: it scores replies and can't write any",
        where=str(folder),
        fix="give the language model that it was made from (a judge takes this one as reward: ...)",
    )


def check_numbers(model: Any, folder: Path) -> None:
    """Raise ModelError where a folder holds whole numbers for weights that are fractions: quantised ones, read without their scales."""
    if getattr(model, "is_quantized", False):
        return
    fractions = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            whole = [n for n in sorted(fractions & set(opened.keys())) if "F" not in opened.get_slice(n).get_dtype()]
        if whole:
            raise ModelError(
                f"{_some(whole)} hold integers, and config.json has no quantization_config with their scale",
                where=str(file),
                fix="download the weights in bf16, or the config.json that belongs to these",
            )


def _some(names: list[str]) -> str:
    return f"1 of the tensors ({names[0]}) is" if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...) are"


def in_a_line(error: Exception) -> str:
    """What an exception of foreign code says first; its type where it says nothing."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first


def loading_error(error: Exception, folder: Path) -> ModelError:
    """What an exception of transformers, safetensors or a model's own code says about a folder."""
    if isinstance(error, ModelError):
        return error
    problem = in_a_line(error)
    if isinstance(error, ImportError):
        return ModelError(
            f"a package is missing that this model needs: {problem}",
            where=str(folder),
            fix="install it, or choose another model",
        )
    if isinstance(error, SafetensorError):
        return ModelError(f"damaged weights: {problem}", where=str(folder), fix=AGAIN)
    if "trust_remote_code" in str(error):
        return ModelError(
            "this model needs Python code from its folder, which is never run",
            where=str(folder),
            fix="choose a model that transformers knows by itself",
        )
    return ModelError(
        f"the model can't be loaded: {type(error).__name__}: {problem}",
        where=str(folder),
        fix="compare its config.json with the one the model was published with",
    )
