"""The hot path of adapter training: hand-written gradients for layers whose base weights are frozen.

``fuse(model)`` replaces the ``forward`` of RMSNorm, of PEFT's LoRA linear layers and of gated MLPs by autograd functions
that keep less and compute less than the generic graph: no weight gradients for frozen matrices, no fp32 round trips of
activations, the gated product recomputed instead of kept. Nothing is recognised by model name: a module is replaced
only when its parts have the expected shape *and* its own forward pass agrees with ours on a probe, so an unknown
architecture keeps its own code. `unfuse` undoes it. The modules stay PEFT's: saving, merging and disabling work as before.

Shapes: T tokens, D input size, O output size, R adapter rank, F inner size of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

_PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


class Lora(NamedTuple):
    """One adapter pair in the compute type: a [R, D], b [O, R], and the scale."""

    a_RD: Tensor
    b_OR: Tensor
    scale: float


# ---- the arithmetic, shared by the functions below -----------------------------------------------------------------


def _project(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, lora: Lora) -> tuple[Tensor, Tensor]:
    """y = x W^T + bias + scale (x A^T) B^T, and the inner activation x A^T [T, R]."""
    inner_TR = x_TD @ lora.a_RD.T
    y_TO = F.linear(x_TD, weight_OD, bias_O)
    y_TO.addmm_(inner_TR, lora.b_OR.T, alpha=lora.scale)
    return y_TO, inner_TR


def _project_backward(
    dy_TO: Tensor, x_TD: Tensor, inner_TR: Tensor, weight_OD: Tensor, lora: Lora, into_TD: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dA, dB); dx is added to ``into_TD`` where given."""
    db_OR = (inner_TR.T @ dy_TO).mul_(lora.scale).T  # a third faster than dy^T inner, whose long axis comes first
    d_inner_TR = (dy_TO @ lora.b_OR).mul_(lora.scale)
    da_RD = d_inner_TR.T @ x_TD
    dx_TD = dy_TO @ weight_OD if into_TD is None else into_TD.addmm_(dy_TO, weight_OD)
    dx_TD.addmm_(d_inner_TR, lora.a_RD)
    return dx_TD, da_RD, db_OR


class _LoraLinear(torch.autograd.Function):
    """x [T, D] -> [T, O] with frozen W and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        lora = Lora(a.to(x.dtype), b.to(x.dtype), scale)
        y, inner = _project(x, weight, bias, lora)
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, weight, a, b = ctx.saved_tensors
        lora = Lora(a.to(x.dtype), b.to(x.dtype), ctx.scale)
        dx, da, db = _project_backward(grads[0], x, inner, weight, lora)
        return dx, None, None, da.to(a.dtype), db.to(b.dtype), None


class _GatedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with adapters on all three; keeps x, gate(x) and up(x) only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: tuple[float, float, float], *tensors: Tensor) -> Tensor:
        w_gate, w_up, w_down = tensors[:3]
        low = [t.to(x.dtype) for t in tensors[3:]]
        gate, inner_gate = _project(x, w_gate, None, Lora(low[0], low[1], scales[0]))
        up, inner_up = _project(x, w_up, None, Lora(low[2], low[3], scales[1]))
        product = F.silu(gate).mul_(up)
        y, inner_down = _project(product, w_down, None, Lora(low[4], low[5], scales[2]))
        ctx.save_for_backward(x, gate, up, inner_gate, inner_up, inner_down, *tensors)
        ctx.scales = scales
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, inner_gate, inner_up, inner_down, *tensors = ctx.saved_tensors
        w_gate, w_up, w_down = tensors[:3]
        low = [t.to(x.dtype) for t in tensors[3:]]
        scales = ctx.scales
        activated = F.silu(gate)
        product = activated * up
        d_product, da_down, db_down = _project_backward(
            grads[0], product, inner_down, w_down, Lora(low[4], low[5], scales[2])
        )
        d_up = activated.mul_(d_product)
        d_gate = torch.ops.aten.silu_backward(d_product.mul_(up), gate)
        dx, da_gate, db_gate = _project_backward(d_gate, x, inner_gate, w_gate, Lora(low[0], low[1], scales[0]))
        dx, da_up, db_up = _project_backward(d_up, x, inner_up, w_up, Lora(low[2], low[3], scales[1]), into_TD=dx)
        adapters = (da_gate, db_gate, da_up, db_up, da_down, db_down)
        return dx, None, None, None, None, *(g.to(t.dtype) for g, t in zip(adapters, tensors[3:], strict=True))


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


class _Slot(NamedTuple):
    """A LoRA layer that the hot path can serve, with its base weight and live adapter."""

    layer: LoraLinear
    adapter: str

    def ready(self) -> bool:
        layer = self.layer
        return not (layer.disable_adapters or layer.merged) and list(layer.active_adapters) == [self.adapter]

    def base(self) -> nn.Linear:
        return self.layer.base_layer  # type: ignore[no-any-return]

    def pair(self) -> tuple[Tensor, Tensor, float]:
        return (
            self.layer.lora_A[self.adapter].weight,
            self.layer.lora_B[self.adapter].weight,
            float(self.layer.scaling[self.adapter]),
        )


def _slot(module: nn.Module) -> _Slot | None:
    """The slot of a LoRA layer with one plain adapter (no dropout, no DoRA) on a frozen ``nn.Linear``, else None."""
    layer: Any = module  # PEFT's layers are typed as a union of everything a module can hold
    if type(layer) is not LoraLinear or len(layer.active_adapters) != 1 or type(layer.base_layer) is not nn.Linear:
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
    return _Slot(layer, name) if plain else None


def _lora_forward(slot: _Slot) -> Callable[..., Tensor]:
    generic = slot.layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not slot.ready() or args or kwargs:
            return generic(x, *args, **kwargs)  # type: ignore[no-any-return]
        a, b, scale = slot.pair()
        base = slot.base()
        y: Tensor = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, scale)
        return y.view(*x.shape[:-1], -1)

    return forward


def _mlp_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    """The fused forward of a gated MLP without biases, or None where the module is something else."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = getattr(module, "act_fn", None)
    is_silu = isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation" or activation is F.silu
    slots = [_slot(part) for part in parts if isinstance(part, nn.Module)]
    ready = [s for s in slots if s is not None]
    if len(ready) != 3 or not is_silu or any(s.base().bias is not None for s in ready):
        return None
    generic = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not all(s.ready() for s in ready):
            return generic(x, *args, **kwargs)  # type: ignore[no-any-return]
        pairs = [s.pair() for s in ready]
        weights = [s.base().weight for s in ready]
        scales = tuple(scale for _, _, scale in pairs)
        flat = x.reshape(-1, x.shape[-1])
        y: Tensor = _GatedMlp.apply(flat, scales, *weights, *(t for a, b, _ in pairs for t in (a, b)))
        return y.view(*x.shape[:-1], -1)

    return forward


def _norm_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    """The fused forward of an RMSNorm with a frozen weight, or None."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    named_so = type(module).__name__.endswith("RMSNorm")
    if not named_so or not isinstance(weight, Tensor) or weight.dim() != 1 or weight.requires_grad or epsilon is None:
        return None

    generic = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:  # a gated norm takes its gate here
            return generic(x, *args, **kwargs)  # type: ignore[no-any-return]
        y: Tensor = _RmsNorm.apply(x, weight, epsilon)
        return y

    return forward


@torch.no_grad()
def _agrees(module: nn.Module, fused: Callable[..., Tensor]) -> bool:
    """Whether a fused forward gives what the module itself gives on a probe; False where it can't be probed."""
    frozen = next(p for p in module.parameters() if not p.requires_grad)
    dtype, width = frozen.dtype, frozen.shape[-1]  # of the first matrix or of the norm: both take the hidden size
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 5, width, generator=generator).to(frozen.device, dtype)
    try:
        own, ours = module.forward(probe).float(), fused(probe).float()
    except Exception:  # it wants more than one tensor: whatever it is, it is not ours
        return False
    return bool((own - ours).abs().max() <= _PROBE_TOLERANCE.get(dtype, 1e-5) * own.abs().max().clamp(min=1e-6))


def fuse(model: nn.Module) -> dict[str, int]:
    """Put the hot path in place; returns how many modules of each kind now run on it.

    Call after the adapter is attached. Only frozen base weights qualify, so a fully trained model is left alone.
    """
    counts = {"mlp": 0, "lora": 0, "norm": 0}
    inside_mlp: set[int] = set()
    for module in model.modules():
        fused = _mlp_forward(module)
        if fused is not None and _agrees(module, fused):
            module.forward = fused
            inside_mlp.update(id(part) for part in module.children())
            counts["mlp"] += 1
    for module in model.modules():
        slot = _slot(module)
        if slot is not None and id(module) not in inside_mlp:
            module.forward = _lora_forward(slot)
            counts["lora"] += 1
            continue
        norm = _norm_forward(module)
        if norm is not None and _agrees(module, norm):
            module.forward = norm
            counts["norm"] += 1
    return counts


def unfuse(model: nn.Module) -> None:
    """Give every module its own forward pass back."""
    for module in model.modules():
        if "forward" in vars(module):
            del module.forward
