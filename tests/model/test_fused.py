"""The hot path of adapter training equals PEFT's own graph, and leaves alone what it does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from posttrain.encode.collate import Batch, collate, collate_shared
from posttrain.model.adapters import attach_lora, trainable_parameters
from posttrain.model.config import LoraAdapter
from posttrain.model.fused import fuse, unfuse
from posttrain.model.load import load_model
from posttrain.model.score import batch_logps
from posttrain.objectives.sft import sft_loss
from posttrain.types import Tokens

CPU = torch.device("cpu")


def adapted(
    folder: Path, adapter: LoraAdapter, dtype: torch.dtype = torch.float32, *, trained: bool = True
) -> nn.Module:
    """The small model with an adapter; ``trained``: B is random instead of zero, so that every gradient is alive."""
    model = attach_lora(load_model(folder, dtype, CPU), adapter, seed=3)
    if trained:
        torch.manual_seed(5)
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    return model


def loss_and_gradients(
    model: nn.Module,
    examples: Sequence[Tokens],
    dtype: torch.dtype = torch.float32,
    lay: Callable[[Sequence[Tokens]], Batch] = collate,
) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # dropout
    logps_S, weights_S = batch_logps(model, lay(examples), dtype)
    loss = sft_loss(logps_S, weights_S, float(weights_S.sum()))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {n: p.grad.clone() for n, p in trainable_parameters(model).items() if p.grad is not None}


def largest_relative(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert got.keys() == expected.keys()
    assert got
    return max(float((got[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in expected)


ADAPTERS = {
    "lora": (LoraAdapter(rank=4, alpha=8), {"attention": 2, "mlp": 2, "lora": 8, "norm": 5}),
    "rslora": (LoraAdapter(rank=4, alpha=8, rslora=True), {"attention": 2, "mlp": 2, "lora": 8, "norm": 5}),
    "attention only": (
        LoraAdapter(rank=4, targets=("q_proj", "v_proj")),
        {"attention": 2, "mlp": 0, "lora": 4, "norm": 5},
    ),
    "half an mlp": (
        LoraAdapter(rank=4, targets=("gate_proj", "down_proj")),
        {"attention": 2, "mlp": 0, "lora": 4, "norm": 5},
    ),
    "dropout": (LoraAdapter(rank=4, dropout=0.3), {"attention": 2, "mlp": 0, "lora": 0, "norm": 5}),
    "dora": (LoraAdapter(rank=4, dora=True), {"attention": 2, "mlp": 0, "lora": 0, "norm": 5}),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_loss_and_all_gradients_equal_the_generic_graph(
    kind: str, small_model: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    adapter, counts = ADAPTERS[kind]
    examples = random_examples([9, 30, 2])
    model = adapted(small_model, adapter).train()
    loss, gradients = loss_and_gradients(model, examples)
    assert fuse(model) == counts
    fused_loss, fused_gradients = loss_and_gradients(model, examples)
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    assert largest_relative(fused_gradients, gradients) < 1e-5
    unfuse(model)
    assert not any("forward" in vars(module) for module in model.modules())
    again, again_gradients = loss_and_gradients(model, examples)
    assert again == loss
    assert all(torch.equal(again_gradients[n], gradients[n]) for n in gradients)


@pytest.mark.parametrize("hot", [False, True])
def test_shared_prefixes_give_the_loss_and_gradients_of_whole_sequences(
    hot: bool, small_model: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    examples = random_examples([60, 90, 70, 40])
    for example, source, length in (
        (examples[1], examples[0], 50),
        (examples[2], examples[0], 50),
        (examples[2], examples[1], 70),
    ):
        example.ids_T[:length] = source.ids_T[:length]
    examples.append(examples[0])
    assert sum(collate_shared(examples).segments.lengths) < 180 < sum(map(len, examples))
    model = adapted(small_model, LoraAdapter(rank=4)).train()
    if hot:
        fuse(model)
    loss, gradients = loss_and_gradients(model, examples)
    shared_loss, shared_gradients = loss_and_gradients(model, examples, lay=collate_shared)
    assert shared_loss == pytest.approx(loss, rel=1e-6)
    assert largest_relative(shared_gradients, gradients) < 1e-5


def test_rslora_scales_by_the_root_of_the_rank(small_model: Path, random_examples: Callable[..., list[Tokens]]) -> None:
    plain, rooted = (
        adapted(small_model, LoraAdapter(rank=4, alpha=alpha, rslora=rslora))
        for alpha, rslora in ((8.0, False), (4.0, True))
    )
    fuse(plain)
    fuse(rooted)  # 8 / 4 = 4 / sqrt(4)
    assert loss_and_gradients(plain, random_examples([20]))[0] == loss_and_gradients(rooted, random_examples([20]))[0]


def test_bf16_is_as_close_to_fp32_as_the_generic_graph(
    small_model: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    examples = random_examples([40, 40])
    _, exact = loss_and_gradients(adapted(small_model, LoraAdapter(rank=4)), examples)
    errors = []
    for hot in (False, True):
        model = adapted(small_model, LoraAdapter(rank=4), torch.bfloat16)
        if hot:
            assert fuse(model)["mlp"] == 2
        _, gradients = loss_and_gradients(model, examples, torch.bfloat16)
        assert all(g.dtype == torch.float32 for g in gradients.values())
        errors.append(sum(float((gradients[n] - exact[n]).norm() / exact[n].norm()) for n in exact) / len(exact))
    assert errors[1] < 1.25 * errors[0]
    assert errors[1] < 0.05


def test_fresh_adapter_is_the_base_exactly(small_model: Path, random_examples: Callable[..., list[Tokens]]) -> None:
    batch = collate(random_examples([9, 30, 2]))
    for dtype in (torch.float32, torch.bfloat16):
        base = load_model(small_model, dtype, CPU).requires_grad_(False)
        own_code = batch_logps(base, batch, dtype).logps_S
        fuse(base)
        expected = batch_logps(base, batch, dtype).logps_S
        model = adapted(small_model, LoraAdapter(rank=4), dtype, trained=False)
        fuse(model)
        assert torch.equal(batch_logps(model, batch, dtype).logps_S.detach(), expected)
        assert float((expected - own_code).abs().max()) < (1e-5 if dtype == torch.float32 else 0.1)


def test_disabled_and_merged_adapters_take_pefts_path(
    small_model: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    batch = collate(random_examples([9, 30]))
    base = load_model(small_model, torch.float32, CPU).requires_grad_(False)
    fuse(base)
    model = adapted(small_model, LoraAdapter(rank=4))
    fuse(model)

    @torch.no_grad()
    def logps(model: nn.Module) -> Tensor:
        return batch_logps(model, batch, torch.float32).logps_S

    on = logps(model)
    with model.disable_adapter():  # type: ignore[operator, union-attr]
        off = logps(model)
    assert torch.equal(off, logps(base))
    assert float((on - off).abs().max()) > 0.01
    model.merge_adapter()  # type: ignore[operator]
    assert float((logps(model) - on).abs().max()) < 2e-5
    model.unmerge_adapter()  # type: ignore[operator]
    assert float((logps(model) - on).abs().max()) < 2e-5


def test_every_function_passes_gradcheck_in_float64(small_model: Path) -> None:
    """One layer's parts in float64, by numerical differentiation with respect to input and adapter weights."""
    model = adapted(small_model, LoraAdapter(rank=2)).double()
    assert fuse(model) == {"attention": 2, "mlp": 2, "lora": 8, "norm": 5}
    layer = model.get_submodule("base_model.model.model.layers.0")
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, dtype=torch.float64, requires_grad=True)
    for path in ("mlp", "self_attn.q_proj", "self_attn.o_proj"):
        part = layer.get_submodule(path)
        names = [n for n, p in part.named_parameters() if p.requires_grad]
        weights = [p.detach().clone().requires_grad_() for n, p in part.named_parameters() if n in names]
        assert torch.autograd.gradcheck(
            lambda x, *w: functional_call(part, dict(zip(names, w, strict=True)), (x,)),  # noqa: B023
            (x, *weights),
            fast_mode=True,
        )
    norm = layer.get_submodule("input_layernorm")
    assert torch.autograd.gradcheck(norm.forward, (x,))


class RMSNorm(nn.Module):
    """Not the usual one: Gemma's (1 + w), or centred, or gated."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.eps = kind, 1e-6
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 16), requires_grad=False)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if self.kind == "centred":
            x = x - x.mean(-1, keepdim=True)
        if self.kind == "gated":
            x = x if gate is None else x * F.silu(gate)
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return y * (1 + self.weight if self.kind == "plus one" else self.weight)


@pytest.mark.parametrize("kind", ["plus one", "centred"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unknown_norms_keep_their_own_code(kind: str, dtype: torch.dtype) -> None:
    module = nn.Sequential(RMSNorm(kind))
    module[0].weight.data = (module[0].weight.data * 50).to(dtype)  # Gemma 3's are that large: w + 1 is nearly w
    assert fuse(module)["norm"] == 0
    assert "forward" not in vars(module[0])


def test_gated_norms_work_with_and_without_their_gate() -> None:
    module = RMSNorm("gated")
    x, gate = torch.randn(3, 16), torch.randn(3, 16)
    expected, plain = module(x, gate), module(x)
    fuse(module)
    assert torch.equal(module(x, gate), expected)
    assert torch.allclose(module(x), plain, rtol=1e-6, atol=1e-6)

    class NeedsRMSNorm(RMSNorm):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
            return RMSNorm.forward(self, x, gate)

    module = NeedsRMSNorm("gated")
    assert fuse(module)["norm"] == 0
    assert torch.equal(module(x, gate), expected)


def test_another_active_adapter_is_used(small_model: Path, random_examples: Callable[..., list[Tokens]]) -> None:
    model = adapted(small_model, LoraAdapter(rank=4))
    config = model.peft_config["default"]  # type: ignore[union-attr, index]
    model.add_adapter("second", config)  # type: ignore[operator]
    fuse(model)
    with torch.no_grad():
        first = batch_logps(model, collate(random_examples([20])), torch.float32).logps_S
        model.set_adapter("second")  # type: ignore[operator]
        second = batch_logps(model, collate(random_examples([20])), torch.float32).logps_S
    assert float((first - second).abs().max()) > 0.01  # the second one is fresh: the base


def test_known_norm_is_taken_and_a_trainable_one_is_not() -> None:
    module = nn.Sequential(RMSNorm("plain"))
    x = torch.randn(3, 16, requires_grad=True)
    expected = module(x)
    assert fuse(module)["norm"] == 1
    assert torch.allclose(module(x), expected, rtol=1e-6, atol=1e-6)
    module = nn.Sequential(RMSNorm("plain").requires_grad_(True))
    assert fuse(module)["norm"] == 0


class Mlp(nn.Module):
    """A gated MLP of the usual names with a given activation, biases, or another order."""

    def __init__(self, activation: nn.Module, *, bias: bool = False, swapped: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 24, bias=bias), nn.Linear(16, 24, bias=bias)
        self.down_proj, self.act_fn, self.swapped = nn.Linear(24, 16, bias=bias), activation, swapped

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(gate * self.act_fn(up) if self.swapped else self.act_fn(gate) * up)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("mlp", "counts"),
    [
        (lambda: Mlp(nn.SiLU()), {"attention": 0, "mlp": 1, "lora": 0, "norm": 0}),
        (lambda: Mlp(nn.GELU()), {"attention": 0, "mlp": 0, "lora": 3, "norm": 0}),
        (lambda: Mlp(nn.SiLU(), bias=True), {"attention": 0, "mlp": 0, "lora": 3, "norm": 0}),
        (lambda: Mlp(nn.SiLU(), swapped=True), {"attention": 0, "mlp": 0, "lora": 3, "norm": 0}),
    ],
    ids=["known", "gelu", "biases", "other order"],
)
def test_unknown_mlps_keep_their_own_code(mlp: Callable[[], nn.Module], counts: dict[str, int]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = nn.Sequential(mlp())
    inject_adapter_in_model(LoraConfig(r=3, target_modules=["gate_proj", "up_proj", "down_proj"]), model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    x = torch.randn(2, 5, 16, requires_grad=True)
    gradients = []
    for hot in (False, True):
        if hot:
            assert fuse(model) == counts
        model.zero_grad()
        x.grad = None
        y = model(x)
        (y * torch.linspace(-1, 1, 16)).sum().backward()
        assert x.grad is not None
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        gradients.append({"x": x.grad, "y": y.detach(), **grads})
    assert largest_relative(gradients[1], gradients[0]) < 1e-5
