"""Preference training speed: the first pairs of dpo_en_demo, trained exactly as a TRL baseline does (same rows, tokens, batch, adapter).

    python benchmarks/preference_speed.py dpo                     one JSON line
    python benchmarks/preference_speed.py dpo --without sharing   the same with one part switched off
    python benchmarks/preference_speed.py dpo --against PYTHON SCRIPT
                                                                  both sides in turn, three times, and the ratios of medians

Settings: 16 pairs, one epoch, 4 pairs a step, LoRA r=16 alpha=32 on all linear layers, beta 0.1, constant rate 5e-6; bf16 where
the machine multiplies it fast, otherwise fp32 (``--dtype`` sets it). TRL cuts a side at 1,024 tokens; posttrain would drop
such a pair, but here it cuts as well, and leaves out a pair whose prompt alone is longer, so that both compute the same. Tokens are counted as TRL counts them: prompt and reply of
both sides. ``seconds`` covers the reference's log-probabilities and all optimizer steps; ``reference_seconds`` is the first part of it.

Parts that can be switched off: ``sharing`` (the prompt of a pair computed once), ``packing`` (several pairs side by side; without
it one pair at a time), ``head`` (log-probabilities only where needed, in chunks; without it all logits of a micro-batch), ``fused``
(hand-written gradients of the hot path). The reference is computed once whatever the epochs, so what its cache saves shows from the second
epoch on (``--epochs``).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import compare, dtype_here

from posttrain.encode.collate import Batch, collate
from posttrain.encode.preferences import PairTokens, encode_pairs, reply_start
from posttrain.types import PairRow, Tokens

ROWS, BATCH, LONGEST = 16, 4, 1024
MICRO_BATCH_TOKENS = 4096
"""Tokens computed at once: memory, not mathematics. 4 pairs of these rows have some 3,000."""
OBJECTIVES = ("dpo", "ipo", "simpo", "orpo", "hinge")
PARTS = ("sharing", "packing", "head", "fused")


def cut(tokens: Tokens) -> Tokens:
    """A side at the peer's limit, with the line end after the stop supervised as the peer does."""
    weights_T = tokens.weights_T.copy()
    weights_T[int(np.flatnonzero(weights_T)[-1]) :] = 1.0
    return Tokens(tokens.ids_T[:LONGEST], weights_T[:LONGEST], tokens.row_id)


def switch_off(part: str) -> None:
    """Replace one part by the plain way of doing it."""
    import torch

    from posttrain.model import fused, score
    from posttrain.model.forward import final_hidden, output_head
    from posttrain.train import loop, tasks

    def all_logits(model: torch.nn.Module, batch: Batch, dtype: torch.dtype) -> score.TokenLogps:
        head = output_head(model)
        assert head is not None
        hidden_TD = final_hidden(model, torch.from_numpy(batch.ids_T), batch.segments)
        logps_TV = (hidden_TD @ head.weight_VD.T).float().log_softmax(-1)
        logps_S = logps_TV[torch.from_numpy(batch.predict_S), torch.from_numpy(batch.targets_S)]
        return score.TokenLogps(logps_S, torch.from_numpy(batch.target_weights_S))

    if part == "sharing":
        loop.lay_out = score.lay_out = lambda model, sequences: collate(sequences)  # type: ignore[attr-defined]
    if part == "head":
        score.batch_logps = tasks.batch_logps = all_logits  # type: ignore[attr-defined]
    if part == "fused":
        fused.fuse = lambda model: {}  # type: ignore[assignment]


def read_pairs(data: str, rows: int, model: Path) -> list[PairTokens]:
    """The first pairs of a file, encoded, each side cut at the limit."""
    from posttrain.assets import resolve_data
    from posttrain.data.config import Source
    from posttrain.data.pipeline import rows_at
    from posttrain.model.lineage import Lineage

    found = [row for index in range(rows) for row in rows_at(Source(path=data), index, resolve_data, "pairs")]
    pairs = encode_pairs([row for row in found if isinstance(row, PairRow)], Lineage(model).template, 1 << 20).examples
    answered = [pair for pair in pairs if reply_start(pair.chosen) < LONGEST]  # the peer leaves the others out as well
    return [PairTokens(cut(pair.chosen), cut(pair.rejected), pair.row_id) for pair in answered]


def measure(options: argparse.Namespace, model: Path, data: str) -> dict[str, Any]:
    """Train once in this process."""
    from posttrain.model import hardware
    from posttrain.model.adapters import fresh_adapter_off
    from posttrain.model.score import packed_length, sequence_logps
    from posttrain.objectives import DpoObjective, HingeObjective, IpoObjective, OrpoObjective, SimpoObjective
    from posttrain.train.config import TrainSettings
    from posttrain.train.loop import optimizer_step, prepare_model
    from posttrain.train.optimizer import build_optimizer
    from posttrain.train.plan import Plan
    from posttrain.train.reference import ReferenceLogps, sequence_key
    from posttrain.train.tasks import make_task

    kinds = (DpoObjective, HingeObjective, IpoObjective, OrpoObjective, SimpoObjective)
    objective = {kind().name: kind() for kind in kinds}[options.objective]
    if options.without:
        switch_off(options.without)
    hardware.keep_freed_memory()
    pairs = read_pairs(data, options.rows, model)
    stage = TrainSettings(
        objective=objective,
        batch_size=options.batch,
        micro_batch_tokens=1 if options.without == "packing" else options.micro_batch_tokens,
        learning_rate=5e-6,
        schedule="constant",
        warmup=0.0,
        dtype=options.dtype,
    )
    trainee = prepare_model(stage, model, None, seed=0)
    optimizer = build_optimizer(trainee.model, trainee.trained, stage)
    task = make_task(objective)
    lengths = tuple(packed_length(trainee.model, task.sequences(pair)) for pair in pairs)
    plan = Plan(lengths, stage.batch_size, stage.micro_batch_tokens, options.epochs, seed=0)
    losses, flops, tokens, computed = [], 0.0, 0, 0
    start = time.perf_counter()
    if objective.needs_reference:
        groups = [task.sequences(pair) for pair in pairs]
        with fresh_adapter_off(trainee.model):
            logps = sequence_logps(trainee.model, groups, stage.micro_batch_tokens, trainee.compute_dtype)
        keys = [sequence_key(sequence) for group in groups for sequence in group]
        task = make_task(objective, ReferenceLogps(dict(zip(keys, logps, strict=True))))
    reference_seconds = time.perf_counter() - start
    for step in range(plan.total_steps):
        groups = [[pairs[i] for i in group] for group in plan.micro_batches(step)]
        result = optimizer_step(trainee, optimizer, task, groups, stage.peak_learning_rate, stage.max_grad_norm)
        losses.append(round(result.loss, 4))
        flops, tokens, computed = flops + result.flops, tokens + result.tokens, computed + result.computed_tokens
    seconds = time.perf_counter() - start
    line = {
        "peer": "posttrain",
        "objective": options.objective,
        "rows": len(pairs),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "losses": losses,
        "computed_tokens": computed,
        "reference_seconds": round(reference_seconds, 2),
        "without": options.without,
        "dtype": str(trainee.compute_dtype).removeprefix("torch."),
    }
    if options.share:
        peak = hardware.matmul_flops(trainee.compute_dtype, trainee.device)
        # a pass without gradient is a third of the arithmetic of a frozen layer's forward and backward pass
        passes = 1.5 if objective.needs_reference else 1.0
        line |= {"matmul_peak_gflops": round(peak / 1e9), "share_of_peak": round(passes * flops / seconds / peak, 3)}
    return line


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objective", choices=OBJECTIVES)
    parser.add_argument("--model", help="HF model folder; default: the demo asset")
    parser.add_argument("--data", help="pairs; default: the demo asset dpo_en_demo")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--micro-batch-tokens", type=int, default=MICRO_BATCH_TOKENS)
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--share", action="store_true")
    parser.add_argument("--without", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", nargs=2, metavar=("PYTHON", "SCRIPT"))
    options = parser.parse_args()

    from posttrain.assets import DATA, fetch
    from posttrain.model.targets import model_folder

    options.dtype = dtype_here(options.dtype)
    model = model_folder(options.model or "smollm2-135m-instruct")
    data = options.data or str(fetch(DATA["dpo_en_demo"]))
    if options.against:
        common = ["--model", str(model), "--data", data, "--rows", str(options.rows), "--batch", str(options.batch)]
        common += ["--dtype", options.dtype]
        python, script = options.against
        budget = ["--micro-batch-tokens", str(options.micro_batch_tokens)]
        own = [sys.executable, __file__, options.objective, *common, *budget, "--share"]
        compare([python, script, options.objective, *common], own, options.repeats, options.dtype)
    else:
        print(json.dumps(measure(options, model, data)))


if __name__ == "__main__":
    main()
