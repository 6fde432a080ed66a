"""Attention per packed segment: against float64 with an explicit mask, alone against packed, and nothing leaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from posttrain.encode.collate import collate
from posttrain.encode.segments import Segments
from posttrain.model import attention
from posttrain.model.attention import rotary_attention, segment_attention
from posttrain.model.forward import final_hidden
from posttrain.model.load import load_model
from posttrain.model.packed_kernels import Request, by_segment
from posttrain.types import Tokens

CPU = torch.device("cpu")


def inputs(heads: int, kv_heads: int, tokens: int, size: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(tokens)
    return [torch.randn(1, n, tokens, size, dtype=dtype) for n in (heads, kv_heads, kv_heads)]


def attend(qkv: list[Tensor], segments: tuple[int, ...] | Segments, **options: object) -> Tensor:
    """[T, H, D]"""
    segments = segments if isinstance(segments, Segments) else Segments(segments)
    return segment_attention(nn.Identity(), *qkv, None, segments=segments, **options)[0][0]  # type: ignore[arg-type]


def eager(
    qkv: list[Tensor],
    lengths: tuple[int, ...],
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The definition in the given type with one [T x T] mask for all segments."""
    q, k, v = (x[0] for x in qkv)
    groups = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    segment_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place_T = torch.arange(len(segment_T))
    distance = place_T[:, None] - place_T[None, :]
    allowed = (segment_T[:, None] == segment_T[None, :]) & (distance >= 0)
    if window is not None:
        allowed &= distance < window
    scores = q @ k.transpose(1, 2) * (scale if scale is not None else q.shape[-1] ** -0.5)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~allowed, float("-inf"))
    if sinks is not None:  # one more key with this score and no value
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, len(place_T), 1)], dim=-1)
    return (scores.softmax(-1)[..., : len(place_T)] @ v).transpose(0, 1)


def with_gradients(function: Callable[[list[Tensor]], Tensor], qkv: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    out = function(leaves)
    torch.manual_seed(99)
    out.backward(torch.randn(out.shape, dtype=torch.float64).to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


def largest_relative(got: list[Tensor], exact: list[Tensor]) -> float:
    assert len(got) == len(exact) == 4
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, exact, strict=True))


LENGTHS = [(1,), (127,), (128,), (129,), (600,), (1, 1, 1), (127, 1, 257), (128, 128), (600, 2, 31)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=["mha", "gqa", "mqa"])
def test_forward_and_backward_equal_float64(lengths: tuple[int, ...], heads: tuple[int, int]) -> None:
    qkv = inputs(*heads, sum(lengths))
    exact = with_gradients(lambda x: eager(x, lengths), [x.double() for x in qkv])
    assert largest_relative(with_gradients(lambda x: attend(x, lengths), qkv), exact) < 3e-6


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("lengths", [(1,), (2,), (3,), (130, 7, 4), (258, 515)], ids=str)
def test_lanes_change_nothing(
    lanes: int, window: int | None, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_even_lanes", lambda kv_heads, threads: lanes)
    qkv = inputs(9, 3, sum(lengths))
    exact = with_gradients(lambda x: eager(x, lengths, window), [x.double() for x in qkv])
    assert largest_relative(with_gradients(lambda x: attend(x, lengths, sliding_window=window), qkv), exact) < 3e-6


def test_lanes_keep_all_threads_busy() -> None:
    by_hand = {(3, 1): 1, (3, 2): 2, (8, 2): 1, (1, 2): 2, (1, 8): 4, (5, 4): 4, (8, 8): 1, (3, 8): 2}
    assert {key: attention._even_lanes(*key) for key in by_hand} == by_hand


@pytest.mark.parametrize("window", [1, 7, 256, 300])
@pytest.mark.parametrize("lengths", [(255, 1, 257), (600, 8, 7, 6)], ids=str)
def test_sliding_window(lengths: tuple[int, ...], window: int) -> None:
    qkv = inputs(4, 2, sum(lengths))
    exact = with_gradients(lambda x: eager(x, lengths, window=window), [x.double() for x in qkv])
    assert largest_relative(with_gradients(lambda x: attend(x, lengths, sliding_window=window), qkv), exact) < 3e-6


def test_scale_and_score_cap() -> None:
    lengths = (40, 1, 70)
    qkv = inputs(4, 2, sum(lengths))
    for window in (None, 9):
        exact = with_gradients(lambda x: eager(x, lengths, window, 5.0, 0.3), [x.double() for x in qkv])  # noqa: B023
        got = with_gradients(
            lambda x: attend(x, lengths, sliding_window=window, softcap=5.0, scaling=0.3),  # noqa: B023
            qkv,
        )
        assert largest_relative(got, exact) < 3e-6


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_reference_path_agrees(heads: tuple[int, int], window: int | None) -> None:
    """The path of accelerators and of attention dropout, at dropout 0."""
    lengths = (257, 1, 40)
    qkv = inputs(*heads, sum(lengths))

    def reference(x: list[Tensor]) -> Tensor:
        return by_segment(x[0][0], x[1][0], x[2][0], Request(Segments(lengths), 8**-0.5, window))

    exact = with_gradients(lambda x: eager(x, lengths, window=window), [x.double() for x in qkv])
    assert largest_relative(with_gradients(reference, qkv), exact) < 3e-6


def test_dropout_drops_and_keeps_the_mean() -> None:
    qkv = inputs(4, 2, 60)
    torch.manual_seed(0)
    dropped = torch.stack([attend(qkv, (40, 20), dropout=0.5) for _ in range(400)])
    plain = attend(qkv, (40, 20))
    assert not torch.equal(dropped[0], plain)
    assert float((dropped.mean(0) - plain).abs().mean()) < 0.1 * float(plain.abs().mean())


def test_gradcheck_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    attention._blocks.cache_clear()
    qkv = [x.requires_grad_() for x in inputs(4, 2, 10, size=3, dtype=torch.float64)]
    for window in (None, 2):
        assert torch.autograd.gradcheck(lambda *x: attend(list(x), (7, 1, 2), sliding_window=window), qkv)  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_is_every_segment_alone(dtype: torch.dtype) -> None:
    lengths = (31, 1, 257, 300)
    qkv = inputs(4, 2, sum(lengths), dtype=dtype)
    packed = attend(qkv, lengths)
    start = 0
    for length in lengths:
        alone = attend([x[:, :, start : start + length] for x in qkv], (length,))
        assert float((packed[start : start + length] - alone).abs().max()) <= (1e-6 if dtype == torch.float32 else 0.0)
        start += length


def test_nothing_leaks_into_other_segments() -> None:
    lengths = (31, 270, 9)
    qkv = inputs(4, 2, sum(lengths))
    before = with_gradients(lambda x: attend(x, lengths), qkv)
    inside = slice(31, 301)
    changed = [x.clone() for x in qkv]
    for x in changed:
        x[:, :, inside] = torch.randn_like(x[:, :, inside]) * 50
    after = with_gradients(lambda x: attend(x, lengths), changed)
    for axis, a, b in zip((0, 2, 2, 2), before, after, strict=True):
        for outside in (slice(0, 31), slice(301, None)):
            index = (slice(None),) * axis + (outside,)
            assert torch.equal(a[index], b[index])
        assert not torch.equal(a[(slice(None),) * axis + (inside,)], b[(slice(None),) * axis + (inside,)])


def test_nothing_leaks_back_in_time() -> None:
    qkv = inputs(4, 2, 300)
    changed = [x.clone() for x in qkv]
    for x in changed:
        x[:, :, 280:] += 10
    assert torch.equal(attend(qkv, (300,))[:256], attend(changed, (300,))[:256])
    assert float((attend(qkv, (300,))[:280] - attend(changed, (300,))[:280]).abs().max()) < 1e-6


def test_under_autocast_forward_and_backward_run_in_one_type() -> None:
    """Rotary positions leave queries and keys in fp32 beside bf16 values when all weights train in bf16."""
    lengths = (20, 30)
    qkv = inputs(4, 2, 50)
    exact = with_gradients(lambda x: eager(x, lengths), [x.double() for x in qkv])

    def mixed(x: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return attend([x[0], x[1], x[2].bfloat16()], lengths)

    for got, truth in zip(with_gradients(mixed, qkv), exact, strict=True):
        assert float((got.double() - truth).norm() / truth.norm()) < 0.02


TREES = [
    Segments((20, 5, 7), (-1, 0, 0)),
    Segments((1, 1, 1), (-1, 0, 1)),
    Segments((300, 9, 2, 260, 4, 30), (-1, 0, 1, 0, -1, 4)),
    Segments((5, 255, 256, 257), (-1, 0, 0, 1)),
]


def separate(qkv: list[Tensor], segments: Segments, **options: object) -> Tensor:
    """The same by definition: every segment with all before it as a sequence of its own, its last part taken."""
    parts = []
    for index, length in enumerate(segments.lengths):
        places = torch.cat([torch.arange(*span) for span in segments.spans(index)])
        parts.append(eager([x[:, :, places] for x in qkv], (len(places),), **options)[-length:])  # type: ignore[arg-type]
    return torch.cat(parts)


@pytest.mark.parametrize("segments", TREES, ids=str)
@pytest.mark.parametrize("window", [None, 6, 270])
def test_shared_prefixes_equal_separate_sequences_in_float64(segments: Segments, window: int | None) -> None:
    qkv = inputs(4, 2, sum(segments.lengths))
    exact = with_gradients(lambda x: separate(x, segments, window=window), [x.double() for x in qkv])
    assert largest_relative(with_gradients(lambda x: attend(x, segments, sliding_window=window), qkv), exact) < 3e-6

    def reference(x: list[Tensor]) -> Tensor:
        return by_segment(x[0][0], x[1][0], x[2][0], Request(segments, 8**-0.5, window))

    assert largest_relative(with_gradients(reference, qkv), exact) < 3e-6


def test_shared_prefixes_with_a_score_cap() -> None:
    qkv, segments = inputs(4, 2, 32), TREES[0]
    exact = with_gradients(lambda x: separate(x, segments, softcap=5.0), [x.double() for x in qkv])
    assert largest_relative(with_gradients(lambda x: attend(x, segments, softcap=5.0), qkv), exact) < 3e-6


def test_gradcheck_of_a_shared_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    attention._blocks.cache_clear()
    qkv = [x.requires_grad_() for x in inputs(4, 2, 12, size=3, dtype=torch.float64)]
    segments = Segments((4, 5, 3), (-1, 0, 0))
    assert torch.autograd.gradcheck(lambda *x: attend(list(x), segments), qkv)
    attention._blocks.cache_clear()


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["mha", "gqa"])
def test_rotary_positions_inside_equal_float64(heads: tuple[int, int]) -> None:
    segments = TREES[2]
    tokens = sum(segments.lengths)
    qkv = inputs(*heads, tokens)
    angles = torch.randn(tokens, 8, dtype=torch.float64)  # not the same in both halves: the general case

    def rotated(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()

    def ours(x: list[Tensor]) -> Tensor:
        by_token = [t[0].transpose(0, 1) for t in x]
        cos, sin = angles.cos().to(x[0].dtype), angles.sin().to(x[0].dtype)
        return rotary_attention(*by_token, cos, sin, segments, 8**-0.5)

    exact = with_gradients(
        lambda x: separate([rotated(x[0]), rotated(x[1]), x[2]], segments), [x.double() for x in qkv]
    )
    assert largest_relative(with_gradients(ours, qkv), exact) < 3e-6


@pytest.mark.parametrize("window", [None, 20])
def test_attention_sinks_and_their_gradient(window: int | None) -> None:
    lengths = (30, 1, 9)
    leaves = [*inputs(4, 2, 40), torch.randn(4)]

    def ours(x: list[Tensor]) -> Tensor:
        return attend(x[:3], lengths, s_aux=x[3], sliding_window=window)

    def exact(x: list[Tensor]) -> Tensor:
        return eager(x[:3], lengths, window, sinks=x[3])

    expected = with_gradients(exact, [x.double() for x in leaves])
    found = with_gradients(ours, leaves)
    assert len(found) == 5
    assert largest_relative(found[:4], expected[:4]) < 3e-6
    assert torch.allclose(found[4].double(), expected[4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("key_size", "value_size"), [(12, 6), (6, 12)])
@pytest.mark.parametrize("segments", [(300, 5), TREES[2]])
def test_values_of_another_width_than_keys(
    key_size: int, value_size: int, segments: tuple[int, ...] | Segments
) -> None:
    whole = segments if isinstance(segments, Segments) else Segments(segments)
    tokens = sum(whole.lengths)
    qkv = [*inputs(4, 2, tokens, key_size)[:2], inputs(4, 2, tokens, value_size)[2]]
    exact = with_gradients(lambda x: separate(x, whole), [x.double() for x in qkv])
    assert largest_relative(with_gradients(lambda x: attend(x, segments), qkv), exact) < 3e-6


def test_model_equals_hugging_face_on_padded_rows(
    small_model: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    """Packed with our attention against transformers' own eager model on one padded batch."""
    examples = random_examples([5, 1, 260, 33])
    batch = collate(examples)
    model = load_model(small_model, torch.float32, CPU)
    packed_TD = final_hidden(model, torch.from_numpy(batch.ids_T), batch.segments).detach()
    hf = AutoModelForCausalLM.from_pretrained(small_model, attn_implementation="eager").eval()
    width = max(len(e) for e in examples)
    ids_BT = torch.from_numpy(np.stack([np.pad(e.ids_T, (0, width - len(e))) for e in examples])).long()
    mask_BT = torch.from_numpy(np.stack([np.arange(width) < len(e) for e in examples])).long()
    with torch.no_grad():
        padded = hf.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    expected_TD = torch.cat([padded[row, : len(e)] for row, e in enumerate(examples)])
    assert float((packed_TD - expected_TD).abs().max() / expected_TD.abs().max()) < 1e-5
