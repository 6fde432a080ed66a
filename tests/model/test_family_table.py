"""One table: what every family computes here is what plain Hugging Face computes, and docs/models.md says how.

Reference is transformers' eager code on one sequence at a time, and PEFT's own adapter on top of it; nothing of ours is in it. The lengths
lie on both sides of every switch of the configuration.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from families import EVERY_FAMILY, FAMILIES, micro_folder
from posttrain.encode.collate import collate, collate_shared
from posttrain.model.adapters import not_reached, save_adapter, trainable_parameters
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.model.forward import Path as Passes
from posttrain.model.forward import path_of, step_flops
from posttrain.model.score import batch_logps, lay_out
from posttrain.train.config import TrainSettings
from posttrain.train.loop import prepare_model
from posttrain.types import Tokens

TOLERANCE = 1e-5
"""Of log-probabilities in nats, relative to 1 + the largest: what the issue of a family being supported means."""
GRADIENT_TOLERANCE = 1e-4
"""2-norm of the difference relative to the 2-norm of the whole gradient."""
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
ROUTERS = (".router.", ".gate.", ".shared_expert_gate.")


def rows(lengths: Sequence[int]) -> list[Tokens]:
    """One row of every length, the shortest first; the second half of each is supervised. Two share a long prefix."""
    draw = np.random.default_rng(7)
    found = []
    for index, length in enumerate(lengths):
        weights_T = np.zeros(length, np.float32)
        weights_T[max(1, length // 2) :] = 1.0
        found.append(Tokens(draw.integers(3, 199, length).astype(np.int32), weights_T, f"row{index}"))
    longest = found[-1]
    twin = longest.ids_T.copy()
    twin[-2:] = twin[-2:] % 190 + 5
    return [*found, Tokens(twin, longest.weights_T, "twin")]


def plain_logps(model: nn.Module, row: Tokens) -> Tensor:
    """log p [S] of a row's targets by the model's own code."""
    ids_T = torch.from_numpy(row.ids_T).long()
    logps_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
    supervised = torch.from_numpy(row.weights_T[1:] != 0)
    return logps_TV.gather(1, ids_T[1:, None])[:, 0][supervised]


def plain(model: nn.Module, examples: Sequence[Tokens]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities and the gradient of their sum, every row from the same state: rotary modules have a memory."""
    parts = []
    for row in examples:
        with forgotten(model):
            logps_S = plain_logps(model, row)
            logps_S.sum().backward()
        parts.append(logps_S.detach())
    return torch.cat(parts), gradients_of(model)


@contextlib.contextmanager
def forgotten(model: nn.Module) -> Iterator[None]:
    """What modules keep inside is taken from them again; a copy of the model takes ten times as long."""
    kept = [
        (m, dict(vars(m)), {n: b if b is None else b.clone() for n, b in m._buffers.items()}) for m in model.modules()
    ]
    yield
    for module, own, buffers in kept:
        vars(module).clear()
        vars(module).update(own)
        module._buffers.clear()
        module._buffers.update(buffers)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """What has gathered in a model, which is left without."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def ours(model: nn.Module, examples: Sequence[Tokens]) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by our path, all rows in one batch."""
    logps_S = batch_logps(model, lay_out(model, examples), torch.float32).logps_S
    logps_S.sum().backward()
    return logps_S.detach(), gradients_of(model)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / (1 + expected.abs().max()))


def gradient_apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    return max(float((found[name] - g).norm() / whole) for name, g in expected.items())


def trained(folder: Path, adapter: LoraAdapter | FullWeights) -> nn.Module:
    """Ready to train, but without what is random in training (dropout, noise of routers)."""
    stage = TrainSettings(dtype="fp32", device="cpu", learning_rate=1e-3, adapter=adapter)
    return prepare_model(stage, folder, None, seed=0).model.eval()


def documented(path: Passes) -> str:
    """What docs/models.md says of how a family is computed."""
    if path.kind == "alone":
        return "one at a time"
    return "packed" if path.shares else "packed, each by its own length"


@pytest.mark.filterwarnings("ignore")  # notes on the speed, and these models' own
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_family_is_what_plain_hugging_face_computes(family: str, tmp_path: Path) -> None:
    folder = micro_folder(family, tmp_path / "model")
    examples = rows(FAMILIES[family].lengths)
    attention = "sdpa" if family == "falcon-alibi" else "eager"  # ALiBi counts twice in Falcon's eager code
    plain_model = FAMILIES[family].plain_class.from_pretrained(folder, attn_implementation=attention).eval()
    expected, expected_gradients = plain(plain_model, examples)

    model = trained(folder, FullWeights())
    found, gradients = ours(model, examples)
    assert apart(found, expected) < TOLERANCE
    assert gradient_apart(gradients, expected_gradients) < GRADIENT_TOLERANCE
    with torch.no_grad():
        alone = torch.cat([batch_logps(model, collate([row]), torch.float32).logps_S for row in examples])
        shared = batch_logps(model, collate_shared(examples[-2:]), torch.float32).logps_S
    assert apart(alone, expected) < TOLERANCE
    if path_of(model).shares or path_of(model).kind == "alone":
        assert apart(shared, expected[-len(shared) :]) < TOLERANCE
    assert step_flops(model, lay_out(model, examples)) > 0

    adapted = trained(folder, LoraAdapter(rank=2, alpha=8.0))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainable_parameters(adapted).items():
        if "lora_B" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    (tmp_path / "adapter").mkdir()
    save_adapter(adapted, tmp_path / "adapter")  # type: ignore[arg-type]
    peft: Any = PeftModel.from_pretrained(plain_model, str(tmp_path / "adapter"), is_trainable=True).eval()
    expected, expected_gradients = plain(peft, examples)
    found, gradients = ours(adapted, examples)
    assert apart(found, expected) < TOLERANCE
    assert gradient_apart(gradients, expected_gradients) < GRADIENT_TOLERANCE
    assert all(bool(gradient.any()) for gradient in gradients.values()), "no adapter that its model reads past"
    assert not any(router in name for name in gradients for router in ROUTERS)
    assert not set(not_reached(adapted)) & {re.sub(r"\.\d+\.", ".*.", n.split(".lora_")[0]) for n in gradients}

    line = f"| {family} | {FAMILIES[family].model_type} | {documented(path_of(model))} |"
    assert line in DOCUMENT.read_text(encoding="utf-8"), f"docs/models.md must say: {line}"
