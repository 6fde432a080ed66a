"""Kernels of accelerators, without one: what they are called with, against one call a segment, and which of them is taken.

torch's variable-length kernel runs on GPUs only. `varlen.documented` stands in its place: what torch's documentation says it computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.encode.segments import Segments
from posttrain.model import packed_kernels
from posttrain.model.packed_kernels import KERNELS, Kernel, Request, by_segment, chosen, difference, tried
from varlen import documented

CPU = torch.device("cpu")
TREES = [
    Segments((1,)),
    Segments((31, 1, 257)),
    Segments((20, 5, 7), (-1, 0, 0)),
    Segments((1, 1, 1), (-1, 0, 1)),
    Segments((150, 9, 2, 140, 4, 30), (-1, 0, 1, 0, -1, 4)),
]


def inputs(tokens: int, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    return tuple(torch.randn(n, tokens, 8, generator=generator).to(dtype) for n in (heads, kv_heads, kv_heads))


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    packed_kernels.fastest.cache_clear()
    yield
    packed_kernels.fastest.cache_clear()


@pytest.mark.parametrize("window", [None, 1, 6, 145])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("segments", TREES, ids=str)
def test_all_segments_in_one_call_of_varlen(
    segments: Segments, heads: tuple[int, int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_kernels, "_varlen_attn", documented)
    qkv, request = inputs(sum(segments.lengths), *heads), Request(segments, 0.3, window)
    own, _ = tried("sdpa", qkv, request, repeats=0)  # type: ignore[arg-type]
    found, _ = tried("varlen", qkv, request, repeats=0)  # type: ignore[arg-type]
    torch.testing.assert_close(found, own, rtol=0, atol=1e-12)


def test_the_gradient_of_a_shared_key_is_summed_in_fp32() -> None:
    """By the type it is summed in: a CPU rounds once whatever that is, a GPU after each."""

    class Summed(TorchDispatchMode):
        types: ClassVar[list[torch.dtype]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "index_add" in str(func):
                self.types.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    x = torch.zeros(2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    out = packed_kernels._Repeated.apply(x, torch.tensor([0] * 1000 + [1]))
    with Summed():
        out.backward(torch.ones_like(out))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1000.0, 1.0]
    assert Summed.types == [torch.float32]


@pytest.mark.parametrize("window", [None, 1, 6, 145])
@pytest.mark.parametrize("segments", TREES, ids=str)
def test_the_mask_of_flex_is_that_of_the_segments(segments: Segments, window: int | None) -> None:
    mask = packed_kernels._block_mask(segments, window, CPU)
    tokens = sum(segments.lengths)
    query, key = torch.meshgrid(torch.arange(tokens), torch.arange(tokens), indexing="ij")
    zero = torch.zeros((), dtype=torch.long)
    allowed = mask.mask_mod(zero, zero, query, key)
    expected = torch.zeros(tokens, tokens, dtype=torch.bool)
    for index, start in enumerate(segments.starts):
        places = torch.cat([torch.arange(*span) for span in segments.spans(index)])
        for own in range(start, start + segments.lengths[index]):
            seen = places[: int((places == own).nonzero()) + 1]
            expected[own, seen if window is None else seen[-window:]] = True
    assert torch.equal(allowed, expected)
    blocks = mask.to_dense()[0, 0].repeat_interleave(packed_kernels.BLOCK, 0).repeat_interleave(packed_kernels.BLOCK, 1)
    assert not (allowed & (blocks[:tokens, :tokens] == 0)).any()


@pytest.mark.parametrize("request_of", [lambda s: Request(s, 0.3), lambda s: Request(s, 0.3, 6, 5.0)])
def test_flex_computes_the_same(request_of: Callable[[Segments], Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled; torch refuses its gradient on a CPU, though its plain code has one."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *qkv: None)
    monkeypatch.setattr(packed_kernels, "_flex_attention", lambda: flex_attention.flex_attention)
    request = request_of(TREES[-1])
    qkv = inputs(sum(TREES[-1].lengths), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow so
        found, _ = tried("flex", qkv, request, repeats=0)  # type: ignore[arg-type]
    own, _ = tried("sdpa", qkv, request, repeats=0)  # type: ignore[arg-type]
    assert difference(found, own) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flex_is_not_compiled_anew_for_every_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without code for a device: what is compiled, and how often, is decided before."""
    from torch._dynamo.utils import counters
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *qkv: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    packed_kernels._flex_attention.cache_clear()
    layouts = [Segments((n, 40 + n, 2 * n), (-1, 0, -1)) for n in (70, 90, 130, 150, 180)]
    for changes in ({}, {"window": 30}, {"softcap": 5.0}):
        before = counters["stats"]["unique_graphs"]
        for segments in layouts:
            qkv, request = inputs(sum(segments.lengths), dtype=torch.float32), Request(segments, 0.3, **changes)  # type: ignore[arg-type]
            found, own = (tried(name, qkv, request, repeats=0)[0] for name in ("flex", "sdpa"))  # type: ignore[arg-type]
            assert difference(found, own) < 1e-5
        assert counters["stats"]["unique_graphs"] - before <= 2
    packed_kernels._flex_attention.cache_clear()


def takes_all(attend: Callable[..., Tensor]) -> Kernel:
    return Kernel(attend, lambda inputs, request: True)


def asked(monkeypatch: pytest.MonkeyPatch, **kernels: Callable[..., Tensor]) -> str:
    """The kernel chosen of these and sdpa, for a pass that is long enough."""
    table = {name: takes_all(attend) for name, attend in kernels.items()} | {"sdpa": KERNELS["sdpa"]}
    monkeypatch.setattr(packed_kernels, "KERNELS", table)
    monkeypatch.setattr(packed_kernels, "PROBE", Segments((20, 9, 7), (-1, 0, 0)))
    monkeypatch.setattr(packed_kernels, "PROBE_WINDOW", 5)
    segments = Segments((packed_kernels.SMALL,))
    return chosen(inputs(packed_kernels.SMALL, dtype=torch.float32), Request(segments, 0.3))  # type: ignore[arg-type]


def broken(*arguments: object) -> Tensor:
    raise RuntimeError("no compiler here\nat all")


def leaking(q: Tensor, k: Tensor, v: Tensor, request: Request) -> Tensor:
    return by_segment(q, k, v, request._replace(segments=Segments((sum(request.segments.lengths),))))


@pytest.mark.parametrize(
    ("seconds", "kept"), [({"sdpa": 2.0, "other": 1.0}, "other"), ({"sdpa": 1.0, "other": 2.0}, "sdpa")]
)
def test_thefastest_kernel_is_kept(seconds: dict[str, float], kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_kernels, "tried", lambda name, *rest: ([torch.ones(1)], seconds[name]))
    assert asked(monkeypatch, other=by_segment) == kept


def test_a_kernel_that_fails_or_differs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="broken is left out on cpu: RuntimeError: no compiler here$"):
        assert asked(monkeypatch, broken=broken) == "sdpa"
    packed_kernels.fastest.cache_clear()
    with pytest.warns(UserWarning, match="leaking is left out on cpu: it is 0.* from sdpa"):
        assert asked(monkeypatch, leaking=leaking) == "sdpa"


def test_what_each_kernel_takes() -> None:
    """By what the inputs say of themselves: nothing is computed."""

    class Like:
        def __init__(self, size: int = 64, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> None:
            self.shape, self.dtype, self.device = (4, 999, size), dtype, torch.device(device)

        def __len__(self) -> int:
            return 4

    def names(q: Like, v: Like | None = None, **changes: object) -> set[str]:
        request = Request(Segments((999,)), 1.0, **changes)  # type: ignore[arg-type]
        return {name for name, kernel in KERNELS.items() if kernel.takes((q, q, v or q), request)}  # type: ignore[arg-type]

    assert names(Like()) == {"varlen", "flex", "sdpa"}
    assert names(Like(), window=9) == {"varlen", "flex", "sdpa"}
    assert names(Like(dtype=torch.float32)) == {"flex", "sdpa"}
    assert names(Like(size=20)) == {"flex", "sdpa"}
    assert names(Like(size=264)) == {"flex", "sdpa"}
    assert names(Like(192), Like(128)) == {"flex", "sdpa"}
    assert names(Like(), softcap=5.0) == {"flex", "sdpa"}
    assert names(Like(), sinks_H=torch.zeros(4)) == {"sdpa"}
    assert names(Like(), dropout=0.1) == {"sdpa"}
    assert names(Like(device="mps")) == {"sdpa"}


def test_short_passes_and_cpus_ask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_kernels, "fastest", broken)
    monkeypatch.setitem(packed_kernels.KERNELS, "flex", takes_all(broken))
    few = inputs(packed_kernels.SMALL - 1)
    assert chosen(few, Request(Segments((packed_kernels.SMALL - 1,)), 1.0)) == "sdpa"  # type: ignore[arg-type]
    monkeypatch.undo()
    many = inputs(packed_kernels.SMALL)
    assert chosen(many, Request(Segments((packed_kernels.SMALL,)), 1.0)) == "sdpa"  # type: ignore[arg-type]
