"""A second device that is pretended: what would be on the wrong device, or make a GPU wait for the host, is found without one.

`device()` registers a device called ``second`` with torch (once a process, and for good: use it in a process of its own). Inside `pretended()`
tensors may be made on it or moved to it. Each holds a tensor of the CPU; every operation is that of the CPU, so numbers are equal to the bit, but

- an operation between devices is an error, as on a GPU (numbers without dimensions may be on the CPU);
- what would stop the host until the device has done its work is counted in `Waits`: values read back, copies that are not from pinned memory
  or not asynchronous, operations whose result's shape depends on values.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.library import Library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}
"""Operations whose result on the host, or whose shape, depends on values."""
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
_LIBRARIES: list[Library] = []
PINNED = "pinned_for_the_second_device"


def tree_map(change: Callable[[Any], Any], given: Any) -> Any:
    """The same, with everything changed that stands in its tuples, lists and dictionaries; torch's own takes most of an operation's time."""
    if isinstance(given, tuple):
        return tuple(tree_map(change, one) for one in given)
    if isinstance(given, list):
        return [tree_map(change, one) for one in given]
    if isinstance(given, dict):
        return {key: tree_map(change, one) for key, one in given.items()}
    return change(given)


def tree_leaves(given: Any) -> Iterator[Any]:
    """Everything that stands in tuples, lists and dictionaries."""
    if isinstance(given, dict):
        given = given.values()
    elif not isinstance(given, list | tuple):
        yield given
        return
    for one in given:
        yield from tree_leaves(one)


@dataclass
class Waits:
    """Operations that made the host wait, since the last `clear`."""

    found: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.found.clear()


waits = Waits()


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)  # it draws from the CPU's

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


@cache
def device() -> torch.device:
    """The pretended device."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    _register_autocast()
    made = Library("aten", "IMPL")
    made.impl("empty_strided", _empty_strided, "PrivateUse1")
    made.impl("_copy_from", _copy_from, "PrivateUse1")
    _LIBRARIES.append(made)
    torch.__future__.set_swap_module_params_on_conversion(True)  # tied weights stay tied when a model moves
    return torch.device(NAME, 0)


def _register_autocast() -> None:
    """Inside autocast products are computed in its type, and everything else as it comes."""
    key = "AutocastPrivateUse1"
    everything, products = Library("_", "IMPL"), Library("aten", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, key)
    _LIBRARIES.extend((everything, products))
    without = torch._C.DispatchKeySet(torch._C._parse_dispatch_key(key))

    def narrow(op: Any) -> Callable[..., Tensor]:
        def computed(*args: Any, **kwargs: Any) -> Tensor:
            dtype = torch.get_autocast_dtype(NAME)
            args, kwargs = tree_map(lambda x: x.to(dtype) if _wide(x) else x, (args, kwargs))
            with torch._C._ExcludeDispatchKeyGuard(without):
                return op(*args, **kwargs)  # type: ignore[no-any-return]

        return computed

    for name in ("linear", "mm", "bmm", "addmm", "matmul", "scaled_dot_product_attention"):
        products.impl(name, narrow(getattr(aten, name)), key)


def _wide(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float32


class Held(Tensor):
    """A tensor of the second device: ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device(),
        )
        made.held = held
        return made

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"second({self.held})"

    def __deepcopy__(self, memo: Any) -> Any:
        copied = Held(self.held.clone())
        memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch's own takes no subclass

    def storage(self) -> Any:
        return self.held.storage()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **options: Any) -> Tensor:
    """For ``torch.tensor(..., device=...)``, which lets no one look on."""
    return Held(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, into: Held, non_blocking: bool = False) -> Tensor:
    waits.found.append(f"torch.tensor of values on the host ({_caller()})")
    into.held.copy_(source)
    return into


class _Mode(TorchDispatchMode):
    """Sees what has no tensor of the device among its arguments: tensors made or pinned."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.is_pinned.default:
            return getattr(args[0], PINNED, False)
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            setattr(pinned, PINNED, True)
            return pinned
        ours = _asked(kwargs) or any(isinstance(x, Held) for x in tree_leaves((args, kwargs)))
        return _run(func, args, kwargs) if ours else func(*args, **kwargs)


@contextlib.contextmanager
def pretended() -> Iterator[Waits]:
    """Inside, the second device is there."""
    device()
    waits.clear()
    data = property(lambda tensor: _DATA.__get__(tensor), _set_data)
    with _Mode(), mock.patch("torch.accelerator.synchronize"), mock.patch.object(Tensor, "data", data):
        yield waits


_DATA: Any = torch._C.TensorBase.data


def _set_data(tensor: Tensor, value: Tensor) -> None:
    """``tensor.data = value``, also from one device to the other."""
    if isinstance(tensor, Held) != isinstance(value, Held):
        parameter = isinstance(tensor, nn.Parameter)
        torch.utils.swap_tensors(tensor, nn.Parameter(value, tensor.requires_grad) if parameter else value)
        return
    _DATA.__set__(tensor, value)
    if isinstance(tensor, Held) and isinstance(value, Held):
        tensor.held = value.held


def _asked(kwargs: dict[str, Any]) -> bool:
    """Whether the result is asked for on the second device."""
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    held = [x for x in tensors if isinstance(x, Held)]
    foreign = [x for x in tensors if not isinstance(x, Held) and x.dim() > 0]
    indexes = func in INDEXED and isinstance(args[0], Held)
    copies = func in (aten._to_copy.default, aten.copy_.default)
    if held and foreign and not (copies or (indexes and all(any(x is i for i in args[1]) for x in foreign))):
        raise RuntimeError(
            f"{func}: tensors on the second device beside {[tuple(x.shape) for x in foreign]} on the CPU"
        )
    reason = _wait(func, args, kwargs, bool(foreign))
    if reason:
        waits.found.append(f"{func}{reason} ({_caller()})")
    inner_args, inner_kwargs = tree_map(lambda x: x.held if isinstance(x, Held) else x, (args, kwargs))
    if _asked(kwargs):
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    if func is aten.histc.default:  # a GPU's takes integers
        inner_args = (inner_args[0].float(), *inner_args[1:])
    found = func(*inner_args, **inner_kwargs)
    names = [a.name for a in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if written:
        return given[written[0]] if isinstance(found, Tensor) else found
    to_host = kwargs.get("device") is not None and not _asked(kwargs)
    return found if to_host else tree_map(lambda x: Held(x) if isinstance(x, Tensor) else x, found)


def _caller() -> str:
    """The innermost line of posttrain that is being run."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        _, inside, file = frame.f_code.co_filename.rpartition("/posttrain/")
        if inside:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "a gradient"


def _wait(func: Any, args: Any, kwargs: dict[str, Any], foreign: bool) -> str:
    """Why this operation would make the host wait; empty where it would not."""
    if func in READS:
        return " reads values"
    if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        return " without output_size reads values"
    if func in INDEXED:
        indices = [x for x in args[1] if isinstance(x, Tensor)]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            return " by a mask reads values"
        return " by indices on the CPU" if foreign else ""
    if func is aten._to_copy.default:
        from_host, to_host = not isinstance(args[0], Held), isinstance(args[0], Held) and "device" in kwargs
        to_host = to_host and not _asked(kwargs)
        smooth = kwargs.get("non_blocking") and getattr(args[0], PINNED, False)
        return " to the host" if to_host else " of memory that is not pinned" if from_host and not smooth else ""
    if func is aten.copy_.default and isinstance(args[0], Held) != isinstance(args[1], Held):
        return " between devices" if args[1].dim() or isinstance(args[1], Held) else ""
    return ""
