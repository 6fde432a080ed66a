"""The invariants once more on SmolLM2-135M-Instruct with real-looking conversations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from posttrain.artifacts import Ledger
from posttrain.encode.collate import collate
from posttrain.encode.template import load_template, load_tokenizer
from posttrain.encode.tokens import encode_rows
from posttrain.model.adapters import attach_lora, load_adapter, save_adapter, trainable_parameters
from posttrain.model.config import LoraAdapter
from posttrain.model.export import merge_adapter
from posttrain.model.forward import final_hidden, output_head
from posttrain.model.fused import fuse, unfuse
from posttrain.model.load import load_model
from posttrain.model.logprobs import token_logps
from posttrain.model.score import batch_logps, score
from posttrain.objectives.sft import sft_loss
from posttrain.types import Message, Origin, SftRow, Tokens

pytestmark = [pytest.mark.slow, pytest.mark.demo_model]
CPU = torch.device("cpu")
TALKS = [
    [("user", "What is the capital of France?"), ("assistant", "The capital of France is Paris.")],
    [
        ("system", "You answer in one sentence."),
        ("user", "Why is the sky blue?"),
        ("assistant", "Air scatters short waves of sunlight more than long ones, so blue comes from everywhere."),
        ("user", "And at sunset?"),
        ("assistant", "Then the light has a longer way and most of the blue is lost on it, which leaves red."),
    ],
    [("user", "把下面的句子改写得更礼貌：把门关上。"), ("assistant", "请您把门关上，谢谢。")],
    [("user", "Write a Python function that adds two numbers."), ("assistant", "def add(a, b):\n    return a + b\n")],
    [("user", "Count " * 20), ("assistant", "one two three four five six seven eight nine ten " * 4)],
    [("user", "Say hi."), ("assistant", "Hi! 🎉")],
]


@pytest.fixture(scope="module")
def examples(demo_model: Path) -> list[Tokens]:
    rows = [
        SftRow(tuple(Message(role, text) for role, text in talk), Origin("talks", n), "talks")  # type: ignore[arg-type]
        for n, talk in enumerate(TALKS)
    ]
    encoded = encode_rows(rows, load_template(load_tokenizer(demo_model), None), 1024, "drop", Ledger()).examples
    assert len(encoded) == len(TALKS)
    return list(encoded)


@pytest.fixture(scope="module")
def base(demo_model: Path) -> nn.Module:
    """The model itself, on its plain path; who changes it changes it back."""
    return load_model(demo_model, torch.float32, CPU).requires_grad_(False)


@pytest.fixture(scope="module")
def short(examples: list[Tokens]) -> list[Tokens]:
    return [examples[0], examples[2], examples[3]]


def adapted(folder: Path, *, trained: bool) -> nn.Module:
    model = attach_lora(load_model(folder, torch.float32, CPU), LoraAdapter(rank=16), seed=0)
    if trained:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                if "lora_B" in name:
                    parameter.normal_(std=0.01)
    return model


@torch.no_grad()
def our_logits(model: nn.Module, examples: list[Tokens]) -> Tensor:
    batch = collate(examples)
    return final_hidden(model, torch.from_numpy(batch.ids_T), batch.segments) @ output_head(model)[0].T


@torch.no_grad()
def their_logits(model: nn.Module, examples: list[Tokens]) -> Tensor:
    rows = [torch.from_numpy(e.ids_T.astype(np.int64))[None] for e in examples]
    return torch.cat([model(input_ids=row).logits[0] for row in rows])


def largest_relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def test_packed_is_one_by_one_and_transformers_own_padded_batch(
    demo_model: Path, base: nn.Module, examples: list[Tokens]
) -> None:
    packed, alone = (score(base, examples, budget, torch.float32) for budget in (100_000, 1))
    np.testing.assert_allclose(packed.nll_N, alone.nll_N, rtol=1e-5)
    hf = AutoModelForCausalLM.from_pretrained(demo_model, attn_implementation="eager").eval()
    width = max(len(e) for e in examples)
    ids_BT = torch.from_numpy(np.stack([np.pad(e.ids_T, (0, width - len(e))) for e in examples])).long()
    mask_BT = torch.from_numpy(np.stack([np.arange(width) < len(e) for e in examples])).long()
    with torch.no_grad():
        padded = hf(input_ids=ids_BT, attention_mask=mask_BT).logits
    nll_N = []
    for row, example in enumerate(examples):
        logps = padded[row, : len(example) - 1].double().log_softmax(-1)
        chosen = logps.gather(1, torch.from_numpy(example.ids_T[1:].astype(np.int64))[:, None])[:, 0]
        nll_N.append(-float((chosen * torch.from_numpy(example.weights_T[1:])).sum()))
    np.testing.assert_allclose(packed.nll_N, nll_N, rtol=1e-5)
    assert (
        largest_relative(our_logits(base, examples), torch.cat([padded[n, : len(e)] for n, e in enumerate(examples)]))
        < 1e-5
    )


def test_fresh_adapter_is_the_base(demo_model: Path, base: nn.Module, short: list[Tokens]) -> None:
    fuse(base)
    expected = batch_logps(base, collate(short), torch.float32).logps_S
    unfuse(base)
    model = adapted(demo_model, trained=False)
    assert fuse(model) == {"attention": 30, "mlp": 30, "lora": 120, "norm": 61}
    with torch.no_grad():  # with a gradient the output head sums in another order
        assert torch.equal(batch_logps(model, collate(short), torch.float32).logps_S, expected)


def test_hot_path_is_pefts_graph_value_and_gradients(demo_model: Path, short: list[Tokens]) -> None:
    """As near to PEFT's graph in float64 as 2e-5, or as that graph is itself in fp32: rounding reaches 1.2e-5 on some machines."""
    model = adapted(demo_model, trained=True)

    def computed(dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
        model.zero_grad(set_to_none=True)
        logps_S, weights_S = batch_logps(model, collate(short), dtype)
        loss = sft_loss(logps_S, weights_S, float(weights_S.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad.double() for n, p in trainable_parameters(model).items() if p.grad is not None}
        assert len(gradients) == 420
        return loss.item(), gradients

    unfuse(model)
    plain_loss, plain = computed(torch.float32)
    fuse(model)
    hot_loss, hot = computed(torch.float32)
    unfuse(model)
    model.double()
    exact_loss, exact = computed(torch.float64)
    assert hot_loss == pytest.approx(plain_loss, rel=1e-6)
    assert hot_loss == pytest.approx(exact_loss, rel=2e-6)  # rounding of fp32: 1.3e-6 on a processor with AVX2 alone
    scale = max(float(g.norm()) for g in exact.values())
    for name, gradient in exact.items():
        # Relative to the tensor itself, or to the largest gradient where this one is nearly nothing.
        size = max(float(gradient.norm()), 1e-2 * scale)
        allowed = max(2e-5, float((plain[name] - gradient).norm()) / size)
        assert float((hot[name] - gradient).norm()) / size <= allowed, name


def test_chunked_is_full_logits(base: nn.Module, examples: list[Tokens]) -> None:
    batch = collate(examples)
    with torch.no_grad():
        hidden_TD = final_hidden(base, torch.from_numpy(batch.ids_T), batch.segments)
    hidden_SD = hidden_TD[torch.from_numpy(batch.predict_S)].requires_grad_()
    head_VD, targets_S = output_head(base)[0], torch.from_numpy(batch.targets_S)
    logps_S = token_logps(hidden_SD, head_VD, targets_S)
    (gradient,) = torch.autograd.grad(logps_S.sum(), hidden_SD)
    logps_S = logps_S.detach()
    exact_SD = hidden_SD.detach().double().requires_grad_()
    exact_S = (exact_SD @ head_VD.double().T).log_softmax(-1).gather(1, targets_S[:, None])[:, 0]
    (exact_gradient,) = torch.autograd.grad(exact_S.sum(), exact_SD)
    exact_S = exact_S.detach()
    assert float((logps_S - exact_S).abs().max()) < 1e-5 * float(exact_S.abs().max())
    assert largest_relative(gradient, exact_gradient) < 1e-5


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own affair
def test_merged_and_plain_peft_are_the_adapter(
    demo_model: Path, base: nn.Module, short: list[Tokens], tmp_path: Path
) -> None:
    model = adapted(demo_model, trained=True)
    save_adapter(model, tmp_path)  # type: ignore[arg-type]
    fuse(model)
    logits = our_logits(model, short)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(demo_model), tmp_path).eval()
    assert largest_relative(their_logits(plain, short), logits) < 1e-5
    again = load_adapter(load_model(demo_model, torch.float32, CPU), tmp_path, trainable=False)
    merged = merge_adapter(again)
    assert largest_relative(our_logits(merged, short), logits) < 1e-5
    assert largest_relative(our_logits(base, short), logits) > 1e-2
