"""SFT, then DPO, in one flat script from the public parts: no recipe, no loop class, no run folder.

    python recipes/minimal.py                    a few minutes on two cores; prints a line a step
    python recipes/minimal.py --rows 16 --model path/to/hf-model

Every line below is one of the steps that `posttrain run` goes through: rows -> tokens with weights -> one packed row without
padding -> log-probabilities where they are needed -> loss -> step. What it leaves out is what makes a long run safe: checkpoints,
the ledger, held-out evaluation, the report.
"""

from __future__ import annotations

import argparse

import torch

from posttrain.assets import resolve_data
from posttrain.data.config import Source
from posttrain.data.pipeline import rows_at
from posttrain.encode.collate import collate_shared
from posttrain.encode.preferences import encode_pairs
from posttrain.encode.template import load_template, load_tokenizer
from posttrain.encode.tokens import encode_rows
from posttrain.model import hardware
from posttrain.model.adapters import attach_lora, trainable_parameters
from posttrain.model.config import LoraAdapter
from posttrain.model.fused import fuse
from posttrain.model.load import load_model
from posttrain.model.score import batch_logps, sequence_logps
from posttrain.model.targets import model_folder
from posttrain.objectives import DpoObjective
from posttrain.objectives.base import PairLogps, SequenceLogps
from posttrain.objectives.sft import sft_loss
from posttrain.types import PairRow, SftRow, Tokens

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--rows", type=int, default=64, help="conversations and pairs to train on")
parser.add_argument("--batch", type=int, default=8)
options = parser.parse_args()

# ---- the model: frozen base, fresh adapter, hand-written gradients -----------------------------------------------------
folder, device = model_folder(options.model), hardware.resolve_device("auto")
dtype = hardware.choose_dtype("auto", device)
model = attach_lora(load_model(folder, dtype, device), LoraAdapter(rank=16, alpha=32), seed=0)
fuse(model)
trained = list(trainable_parameters(model).values())
template = load_template(load_tokenizer(folder))


def read(asset: str, kind: type) -> list:
    """The first rows of a demo data set; `Source` also takes a file, a folder or a hub name."""
    found = [row for index in range(options.rows) for row in rows_at(Source(path=asset), index, resolve_data)]
    return [row for row in found if isinstance(row, kind)]


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Backward, clip, update."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


# ---- SFT: imitate the assistant turns ----------------------------------------------------------------------------------
examples = encode_rows(read("alpaca_en_demo", SftRow), template, max_length=512).examples
optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
for begin in range(0, len(examples), options.batch):
    batch = collate_shared(examples[begin : begin + options.batch])
    logps_S, weights_S = batch_logps(model, batch, dtype)
    loss = sft_loss(logps_S, weights_S, float(weights_S.sum()))
    step(optimizer, loss)
    print(f"sft  {begin // options.batch + 1:3d}  loss {loss.item():.4f}", flush=True)

# ---- DPO: prefer the chosen reply, as seen from the model that SFT left -------------------------------------------------
pairs = encode_pairs(read("dpo_en_demo", PairRow), template, max_length=768).examples
reference = sequence_logps(model, [[pair.chosen, pair.rejected] for pair in pairs], 2048, dtype)
objective = DpoObjective(beta=0.1)
optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0)


def sides(values: list[torch.Tensor]) -> PairLogps:
    """Chosen and rejected take turns."""
    sums, counts = torch.stack([v.sum() for v in values]), torch.tensor([float(len(v)) for v in values], device=device)
    return PairLogps(SequenceLogps(sums[0::2], counts[0::2]), SequenceLogps(sums[1::2], counts[1::2]))


for begin in range(0, len(pairs), options.batch):
    group = pairs[begin : begin + options.batch]
    sequences: list[Tokens] = [side for pair in group for side in (pair.chosen, pair.rejected)]
    batch = collate_shared(sequences)  # the prompt of a pair stands in it once
    policy = list(batch_logps(model, batch, dtype).logps_S.split(batch.counts_B.tolist()))
    frozen = [torch.from_numpy(v).to(device) for v in reference[2 * begin : 2 * (begin + len(group))]]
    found = objective.loss(sides(policy), sides(frozen), len(group))
    step(optimizer, found.share)
    margin, accuracy = (found.metrics[f"rewards/{name}"] for name in ("margins", "accuracies"))
    print(
        f"dpo  {begin // options.batch + 1:3d}  loss {found.share.item():.4f}  "
        f"margin {float(margin.total) / float(margin.count):+.4f}  accuracy {float(accuracy.total) / float(accuracy.count):.2f}",
        flush=True,
    )
