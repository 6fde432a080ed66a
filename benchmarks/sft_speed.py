"""SFT speed: the first rows of alpaca_en_demo, trained exactly as a TRL baseline does (same rows, tokens, batch, adapter, type).

    python benchmarks/sft_speed.py                      one JSON line
    python benchmarks/sft_speed.py --share              also the share of the measured matrix-product peak
    python benchmarks/sft_speed.py --against PYTHON SCRIPT --model DIR --data FILE
                                                        runs both in turn, three times, and prints the ratios of medians

TRL also trains the line end that the template writes after the stop token, which no model has to produce. The benchmark does the
same, so that both sides compute the same loss; ``--stop-only`` supervises as posttrain does.

Settings: 48 rows, one epoch, 8 rows a step, LoRA r=16 alpha=32 on all linear layers, constant rate 2e-4, no checkpoints; bf16
where the machine multiplies it fast, otherwise fp32, measured at the start and the same for both sides (``--dtype`` sets it);
tokens counted as the chat template renders them. The same keys as the peer's line: tokens, seconds, tokens_per_second,
peak_rss_gb, losses. ``seconds`` covers all optimizer steps, not loading. The peak is the process's, loading included.
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

from posttrain.types import Tokens

ROWS, BATCH = 48, 8


def with_tail(example: Tokens) -> Tokens:
    """The example with everything after its last stop supervised as well, as TRL does for a completion."""
    weights_T = example.weights_T.copy()
    weights_T[int(np.flatnonzero(weights_T)[-1]) :] = 1.0
    return Tokens(example.ids_T, weights_T, example.row_id)


def measure(options: argparse.Namespace, model: Path, data: str) -> dict[str, Any]:
    """Train once in this process."""
    from posttrain.assets import resolve_data
    from posttrain.data.config import Source
    from posttrain.data.pipeline import row_at
    from posttrain.encode.tokens import encode_rows
    from posttrain.model import hardware
    from posttrain.model.lineage import Lineage
    from posttrain.train.config import TrainSettings
    from posttrain.train.loop import optimizer_step, prepare_model
    from posttrain.train.optimizer import build_optimizer
    from posttrain.train.plan import Plan
    from posttrain.train.tasks import make_task

    hardware.keep_freed_memory()
    template = Lineage(model).template
    found = [row_at(Source(path=data), index, resolve_data) for index in range(options.rows)]
    examples = encode_rows(found, template, 1024).examples
    if not options.stop_only:
        examples = [with_tail(example) for example in examples]
    stage = TrainSettings(
        batch_size=BATCH,
        micro_batch_tokens=1024,
        schedule="constant",
        warmup=0.0,
        dtype=options.dtype,
    )
    trainee = prepare_model(stage, model, None, seed=0)
    optimizer = build_optimizer(trainee.model, trainee.trained, stage)
    task = make_task(stage.objective)
    plan = Plan(tuple(len(e) for e in examples), BATCH, stage.micro_batch_tokens, 1.0, seed=0)
    losses, flops = [], 0.0
    start = time.perf_counter()
    for step in range(plan.total_steps):
        groups = [[examples[i] for i in group] for group in plan.micro_batches(step)]
        result = optimizer_step(trainee, optimizer, task, groups, stage.peak_learning_rate, stage.max_grad_norm)
        losses.append(round(result.loss, 4))
        flops += result.flops
    seconds = time.perf_counter() - start
    tokens = sum(len(e) for e in examples)
    line = {
        "peer": "posttrain",
        "objective": "sft",
        "rows": len(examples),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "losses": losses,
        "dtype": str(trainee.compute_dtype).removeprefix("torch."),
    }
    if options.share:
        peak = hardware.matmul_flops(trainee.compute_dtype, trainee.device)
        line |= {"matmul_peak_gflops": round(peak / 1e9), "share_of_peak": round(flops / seconds / peak, 3)}
    return line


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="HF model folder; default: the demo asset")
    parser.add_argument("--data", help="rows; default: the demo asset alpaca_en_demo")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--share", action="store_true")
    parser.add_argument("--stop-only", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", nargs=2, metavar=("PYTHON", "SCRIPT"))
    options = parser.parse_args()

    from posttrain.assets import DATA, fetch
    from posttrain.model.targets import model_folder

    options.dtype = dtype_here(options.dtype)
    model = model_folder(options.model or "smollm2-135m-instruct")
    data = options.data or str(fetch(DATA["alpaca_en_demo"]))
    if options.against:
        common = ["--model", str(model), "--data", data, "--rows", str(options.rows), "--dtype", options.dtype]
        python, script = options.against
        own = [sys.executable, __file__, *common, "--share"]
        compare([python, script, "sft", *common], own, options.repeats, options.dtype)
    else:
        print(json.dumps(measure(options, model, data)))


if __name__ == "__main__":
    main()
