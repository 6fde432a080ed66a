"""The hot path of adapter training: hand-written gradients for layers whose base weights are frozen.

``fuse(model)`` replaces the ``forward`` of RMSNorm, of PEFT's LoRA linear layers, of gated MLPs and of rotary attention by functions
that keep less and compute less than the generic graph: no weight gradients for frozen matrices, no fp32 round trips of
activations, the gated product recomputed instead of kept. Nothing is recognised by model name: a module is replaced
only when its parts have the expected shape *and* its own forward pass agrees with ours on a probe, so an unknown
architecture keeps its own code. `unfuse` undoes it. The modules stay PEFT's: saving, merging and disabling work as before.

Shapes: T tokens, D input size, O output size, R adapter rank, F inner size of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from posttrain.encode.segments import Segments
from posttrain.model.attention import IMPLEMENTATION, rotary_attention
from posttrain.model.own import in_fp32
from posttrain.model.peft_parts import LoraLinear
from posttrain.model.prepacked_weights import product
from posttrain.model.quantise import KINDS, compute_dtype, dense_weight

_PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


class Lora(NamedTuple):
    """One adapter pair in the compute type: a [R, D], b [O, R], and the scale."""

    a_RD: Tensor
    b_OR: Tensor
    scale: float


# ---- the arithmetic, shared by the functions below -----------------------------------------------------------------


def _project(x_TD: Tensor, bases: Sequence[nn.Linear], loras: Sequence[Lora]) -> tuple[list[Tensor], Tensor]:
    """y = x W^T + bias + scale (x A^T) B^T for layers with the same input, and all inner activations x A^T [T, sum of R].

    The skinny products of all layers are one: together they are wide enough for the processor.
    """
    inner_TR = x_TD @ _stacked(loras).T
    outputs = []
    for base, lora, own_TR in zip(bases, loras, _inner_parts(inner_TR, loras), strict=True):
        y_TO = product(x_TD, base)
        y_TO.addmm_(own_TR, lora.b_OR.T, alpha=lora.scale)
        outputs.append(y_TO)
    return outputs, inner_TR


def _project_backward(
    dys: Sequence[Tensor],
    x_TD: Tensor,
    inner_TR: Tensor,
    bases: Sequence[nn.Linear],
    loras: Sequence[Lora],
    want_dx: bool = True,
) -> tuple[Tensor | None, list[Tensor]]:
    """(dx or None, [dA, dB of the first layer, dA, dB of the second, ...])."""
    dx_TD = None
    d_inner_TR = torch.empty_like(inner_TR)
    pairs: list[Tensor] = []
    for dy_TO, base, lora, own_TR, d_own_TR in zip(
        dys, bases, loras, _inner_parts(inner_TR, loras), _inner_parts(d_inner_TR, loras), strict=True
    ):
        db_OR = (own_TR.T @ dy_TO).mul_(lora.scale).T  # a third faster than dy^T inner, whose long axis comes first
        d_own_TR.copy_(dy_TO @ lora.b_OR).mul_(lora.scale)
        if want_dx:
            weight_OD = dense_weight(base, dy_TO.dtype)
            dx_TD = dy_TO @ weight_OD if dx_TD is None else dx_TD.addmm_(dy_TO, weight_OD)
        pairs += [d_own_TR, db_OR]
    stacked_RD = _stacked(loras)
    if dx_TD is not None:
        dx_TD.addmm_(d_inner_TR, stacked_RD)
    pairs[::2] = (d_inner_TR.T @ x_TD).split([len(lora.a_RD) for lora in loras])
    return dx_TD, pairs


def _stacked(loras: Sequence[Lora]) -> Tensor:
    """The A of all adapters, one below the other."""
    return loras[0].a_RD if len(loras) == 1 else torch.cat([lora.a_RD for lora in loras])


def _inner_parts(inner_TR: Tensor, loras: Sequence[Lora]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = inner_TR.split([len(lora.a_RD) for lora in loras], dim=1)
    return parts


def _cast(tensors: Sequence[Tensor], scales: Sequence[float], dtype: torch.dtype) -> list[Lora]:
    """Adapters A, B, A, B, ... in the compute type."""
    low = [t.to(dtype) for t in tensors]
    return [Lora(a, b, scale) for a, b, scale in zip(low[::2], low[1::2], scales, strict=True)]


class _LoraLinears(torch.autograd.Function):
    """x [T, D] -> one [T, O] for each of n frozen layers; ``adapters`` are n times A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bases: Sequence[nn.Linear], scales: tuple[float, ...], *adapters: Tensor
    ) -> tuple[Tensor, ...]:
        outputs, inner = _project(x, bases, _cast(adapters, scales, x.dtype))
        ctx.save_for_backward(x, inner, *adapters)
        ctx.bases, ctx.scales = bases, scales
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, *adapters = ctx.saved_tensors
        loras = _cast(adapters, ctx.scales, x.dtype)
        dx, pairs = _project_backward(grads, x, inner, ctx.bases, loras, want_dx=ctx.needs_input_grad[0])
        return dx, None, None, *(g.to(t.dtype) for g, t in zip(pairs, adapters, strict=True))


class _GatedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with adapters on all three; keeps x, gate(x) and up(x) only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bases: Sequence[nn.Linear], scales: tuple[float, ...], *adapters: Tensor
    ) -> Tensor:
        *in_loras, out_lora = _cast(adapters, scales, x.dtype)
        (gate, up), inner = _project(x, bases[:2], in_loras)
        product = F.silu(gate).mul_(up)
        (y,), inner_down = _project(product, bases[2:], (out_lora,))
        ctx.save_for_backward(x, gate, up, inner, inner_down, *adapters)
        ctx.bases, ctx.scales = bases, scales
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, inner, inner_down, *adapters = ctx.saved_tensors
        *in_loras, out_lora = _cast(adapters, ctx.scales, x.dtype)
        activated = F.silu(gate)
        d_product, out_pair = _project_backward(grads, activated * up, inner_down, ctx.bases[2:], (out_lora,))
        assert d_product is not None
        d_up = activated.mul_(d_product)
        d_gate = torch.ops.aten.silu_backward(d_product.mul_(up), gate)
        dx, in_pairs = _project_backward((d_gate, d_up), x, inner, ctx.bases[:2], in_loras)
        return dx, None, None, *(g.to(t.dtype) for g, t in zip((*in_pairs, *out_pair), adapters, strict=True))


class _RmsNorm(torch.autograd.Function):
    """x * rsqrt(mean(x^2) + epsilon) * weight over the last axis, with a frozen weight; fp32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return F.rms_norm(x, x.shape[-1:], weight, epsilon)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = wide.square().mean(dim=-1, keepdim=True).add_(ctx.epsilon).rsqrt_()
        g = grads[0] * weight.to(wide.dtype)
        correction = (g * wide).mean(dim=-1, keepdim=True).mul_(inverse.pow(3)).neg_()
        return g.mul_(inverse).addcmul_(wide, correction).to(x.dtype), None, None


# ---- putting them in place -----------------------------------------------------------------------------------------


class _PlainLora(NamedTuple):
    """A LoRA layer that the hot path can serve, with its base weight and live adapter."""

    layer: LoraLinear
    adapter: str

    def ready(self) -> bool:
        layer = self.layer
        return not (layer.disable_adapters or layer.merged) and list(layer.active_adapters) == [self.adapter]

    def off(self) -> bool:
        """Whether the layer is its base alone."""
        return bool(self.layer.disable_adapters) and not self.layer.merged

    def base(self) -> nn.Linear:
        return self.layer.base_layer  # type: ignore[no-any-return]

    def pair(self) -> tuple[Tensor, Tensor, float]:
        return (
            self.layer.lora_A[self.adapter].weight,
            self.layer.lora_B[self.adapter].weight,
            float(self.layer.scaling[self.adapter]),
        )


def _plain_lora(module: nn.Module) -> _PlainLora | None:
    """The parts of a LoRA layer with one plain adapter (no dropout, no DoRA) on a frozen ``nn.Linear``, else None."""
    layer: Any = module  # PEFT's layers are typed as a union of everything a module can hold
    if type(layer) is not LoraLinear or len(layer.active_adapters) != 1 or type(layer.base_layer) not in KINDS:
        return None
    name: str = layer.active_adapters[0]
    plain = (
        name in layer.lora_A
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and name not in layer.lora_variant
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
        and not any(p.requires_grad for p in layer.base_layer.parameters())
    )
    return _PlainLora(layer, name) if plain else None


def _lora_outputs(layers: Sequence[_PlainLora], x: Tensor) -> tuple[Tensor, ...]:
    """The outputs [..., O] of LoRA layers that share their input x [..., D]."""
    pairs = [s.pair() for s in layers]
    outputs = _LoraLinears.apply(
        x.reshape(-1, x.shape[-1]),
        [s.base() for s in layers],
        tuple(scale for _, _, scale in pairs),
        *(t for a, b, _ in pairs for t in (a, b)),
    )
    return tuple(y.view(*x.shape[:-1], -1) for y in outputs)


def _lora_output(layer: _PlainLora, x: Tensor) -> Tensor:
    return _lora_outputs([layer], x)[0]


Forward = Callable[..., Any]


def _unless(module: nn.Module, fused: Callable[[Tensor], Tensor], applies: Callable[[], bool]) -> Forward:
    """A forward pass that is the fused one where it applies and the input is all there is, else the module's own."""
    generic = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = args or kwargs or not applies()  # a gated norm takes its gate beside the input
        return generic(x, *args, **kwargs) if own else fused(x)

    return forward


def _attention_forward(module: nn.Module) -> Forward | None:
    """The fused forward of a rotary self-attention of the usual parts, or None where the module is something else.

    Query, key and value projections are computed together, positions are rotated and attention is formed in one function.
    Scale and window are those that the module itself hands to its attention function on a probe.
    """
    inner: Any = module
    parts = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    size: int | None = getattr(module, "head_dim", None)
    if size is None or not all(isinstance(part, nn.Module) for part in parts):
        return None
    if getattr(module, "attention_dropout", 0.0) or next(module.parameters()).device.type != "cpu":
        return None
    if getattr(getattr(module, "config", None), "_attn_implementation", None) != IMPLEMENTATION:
        return None
    hidden_1TD, given = _attention_probe(module, size)
    options: dict[str, Any] = {}
    own = _tried(module, module.forward, hidden_1TD, attention_mask=None, observed=options, **given)
    if own is None or not options or not options["plain"] or options["scaling"] is None:
        return None
    scale, window = options["scaling"], options["sliding_window"]
    found = [_plain_lora(part) for part in parts[:3] if isinstance(part, nn.Module)]
    layers = [s for s in found if s is not None]
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    generic = module.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        segments, rotation = kwargs.get("segments"), kwargs.get("position_embeddings")
        if args or segments is None or rotation is None or kwargs.get("kv_cache") is not None:
            return generic(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        if rotation[0].shape[-1] != size:  # a part of each head is rotated
            return generic(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        if len(layers) == 3 and all(s.ready() for s in layers):
            projected = _lora_outputs(layers, hidden_states)
        else:
            projected = tuple(part(hidden_states) for part in (inner.q_proj, inner.k_proj, inner.v_proj))
        q, k, v = (y[0].view(y.shape[1], -1, size) for y in projected)
        if norms[0] is not None and norms[1] is not None:
            q, k = norms[0](q), norms[1](k)
        cos, sin = (x[0].to(v.dtype) for x in rotation)
        mixed = rotary_attention(q.to(v.dtype), k.to(v.dtype), v, cos, sin, segments, scale, window)
        return inner.o_proj(mixed.reshape(1, len(mixed), -1)), None

    return forward if _close(own, _tried(module, forward, hidden_1TD, **given), own.dtype) else None


def _attention_probe(module: nn.Module, size: int) -> tuple[Tensor, dict[str, Any]]:
    """Random hidden states [1, T, D] of packed segments that share a prefix, and what an attention module takes beside them."""
    width, dtype, _ = _takes(module)
    generator = torch.Generator().manual_seed(0)
    hidden_1TD = torch.randn(1, 9, width, generator=generator).to(dtype)
    angles = torch.randn(1, 9, size // 2, generator=generator).repeat(1, 1, 2)
    rotation = angles.cos().to(dtype), angles.sin().to(dtype)
    return hidden_1TD, {"position_embeddings": rotation, "segments": Segments([3, 4, 2], [-1, -1, 1])}


def _mlp_forward(module: nn.Module) -> Forward | None:
    """The fused forward of a gated MLP without biases, or None where the module is something else."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = getattr(module, "act_fn", None)
    is_silu = isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation" or activation is F.silu
    found = [_plain_lora(part) for part in parts if isinstance(part, nn.Module)]
    layers = [s for s in found if s is not None]
    if len(layers) != 3 or not is_silu or any(s.base().bias is not None for s in layers):
        return None

    def applies() -> bool:
        return all(s.ready() for s in layers) or (not torch.is_grad_enabled() and all(s.off() for s in layers))

    def fused(x: Tensor) -> Tensor:
        if layers[0].off():
            gate, up, down = (s.base() for s in layers)
            return down(F.silu(gate(x)).mul_(up(x)))  # type: ignore[no-any-return]
        pairs = [s.pair() for s in layers]
        bases = [s.base() for s in layers]
        scales = tuple(scale for _, _, scale in pairs)
        flat = x.reshape(-1, x.shape[-1])
        y: Tensor = _GatedMlp.apply(flat, bases, scales, *(t for a, b, _ in pairs for t in (a, b)))
        return y.view(*x.shape[:-1], -1)

    forward = _unless(module, fused, applies)
    return forward if _agrees(module, forward) else None


def _norm_forward(module: nn.Module) -> Forward | None:
    """The fused forward of an RMSNorm with a frozen weight, or None."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, nn.Parameter) or epsilon is None:
        return None
    if weight.dim() != 1 or weight.requires_grad:
        return None
    forward = _unless(module, lambda x: _RmsNorm.apply(x, weight, epsilon), lambda: True)
    return forward if _agrees(module, forward) else None


def _agrees(module: nn.Module, fused: Forward) -> bool:
    """Whether a fused forward gives what the module itself gives on a probe.

    In fp32: in bf16 a norm by w where the module's is by 1 + w lies within rounding where w is 50, as in Gemma 3.
    """
    with in_fp32(module):
        width, dtype, device = _takes(module)
        probe = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        own = _tried(module, module.forward, probe)
        return own is not None and _close(own, _tried(module, fused, probe), dtype)


def _takes(module: nn.Module) -> tuple[int, torch.dtype, torch.device]:
    """What goes into a module: width (of its first linear layer, or of the norm), type and device."""
    linear: Any = next((layer for layer in module.modules() if type(layer) in KINDS), None)
    if linear is None:
        weight = next(module.parameters())
        return weight.shape[-1], weight.dtype, weight.device
    return linear.in_features, compute_dtype(linear), linear.weight.device


@torch.no_grad()
def _tried(module: nn.Module, forward: Forward, x: Tensor, **options: Any) -> Tensor | None:
    """What a forward pass of a module gives without dropout; None where it wants something else: whatever it is, it is not ours."""
    training = module.training
    module.eval()
    try:
        found = forward(x, **options)
    except Exception:
        return None
    finally:
        module.train(training)
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


def _close(own: Tensor, ours: Tensor | None, dtype: torch.dtype) -> bool:
    if ours is None or own.shape != ours.shape:
        return False
    if isinstance(own, FakeTensor):  # it has no values that could differ
        return True
    limit = _PROBE_TOLERANCE.get(dtype, 1e-5) * own.float().abs().max().clamp(min=1e-6)
    return bool((own.float() - ours.float()).abs().max() <= limit)


def fuse(model: nn.Module) -> dict[str, int]:
    """Put the hot path in place; returns how many modules of each kind now run on it.

    Call after the adapter is attached. Only frozen base weights qualify, so a fully trained model is left alone.
    """
    counts = {"attention": 0, "mlp": 0, "lora": 0, "norm": 0}
    inside_mlp: set[int] = set()
    for module in model.modules():
        if (fused := _mlp_forward(module)) is not None:
            module.forward = fused
            inside_mlp.update(id(part) for part in module.children())
            counts["mlp"] += 1
    for module in model.modules():
        layer = _plain_lora(module)
        if layer is not None and id(module) not in inside_mlp:
            module.forward = _unless(module, partial(_lora_output, layer), layer.ready)
            counts["lora"] += 1
        elif (norm := _norm_forward(module)) is not None:
            module.forward = norm
            counts["norm"] += 1
    for module in model.modules():  # last: it calls the modules above
        if (attention := _attention_forward(module)) is not None:
            module.forward = attention
            counts["attention"] += 1
    return counts


def unfuse(model: nn.Module) -> None:
    """Give every module its own forward pass back; what is there to compute the right thing (`lengths.follow_lengths`) stays."""
    for module in model.modules():
        if "forward" in vars(module) and not getattr(module.forward, "permanent", False):
            del module.forward
