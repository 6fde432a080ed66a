"""Generation speed: 64 real prompts with limits of 8 to 256 new tokens, greedy, against transformers' ``generate``.

    python benchmarks/generate_speed.py                 posttrain, one JSON line
    python benchmarks/generate_speed.py --peer 64       transformers' generate at a fixed batch size
    python benchmarks/generate_speed.py --against       generate at 8, 16, 32 and 64, and posttrain, in turn, three times; medians

Prompt i may have 8 + (37 i mod 249) new tokens. A batch of ``generate`` runs until its longest limit; only tokens up to each
prompt's own limit or its end of turn are counted, on both sides. bf16 where the machine multiplies it fast, otherwise
fp32 (``--dtype`` sets it). In fp32 the replies must be equal, token by token: ``same_replies`` says how many are.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from side_by_side import dtype_here, last_json_line

PROMPTS, BATCHES = 64, (8, 16, 32, 64)


def limits() -> list[int]:
    """New tokens of each prompt."""
    return [8 + (i * 37) % 249 for i in range(PROMPTS)]


def prompt_ids(model: Path, data: str) -> list[list[int]]:
    """The first prompts of an instruction file in the model's template."""
    from transformers import AutoTokenizer

    rows = json.loads(Path(data).read_text(encoding="utf-8"))[:PROMPTS]
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [[{"role": "user", "content": (r["instruction"] + "\n" + r["input"]).strip()}] for r in rows]
    return [
        tokenizer(
            tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False), add_special_tokens=False
        )["input_ids"]
        for m in asked
    ]


def counted(ids: list[int], limit: int, stop: int) -> list[int]:
    """What of a row counts: up to its own limit or its end of turn."""
    ids = ids[:limit]
    return ids[: ids.index(stop) + 1] if stop in ids else ids


def peer(model: Path, prompts: list[list[int]], stop: int, batch: int, dtype: str) -> tuple[list[list[int]], float]:
    """transformers' generate over left-padded batches; replies and seconds."""
    import torch
    from transformers import AutoModelForCausalLM

    from posttrain.model.hardware import DTYPES

    hf = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[dtype]).eval()
    allowed, found = limits(), list[list[int]]()
    start = time.perf_counter()
    for i in range(0, PROMPTS, batch):
        part = prompts[i : i + batch]
        longest = max(map(len, part))
        ids = torch.tensor([[stop] * (longest - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part])
        out = hf.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(allowed[i : i + batch]),
            do_sample=False,
            pad_token_id=stop,
        )
        rows = out[:, longest:].tolist()
        found += [counted(row, limit, stop) for row, limit in zip(rows, allowed[i : i + batch], strict=True)]
    return found, time.perf_counter() - start


def own(model: Path, prompts: list[list[int]], stop: int, slots: int, dtype: str) -> tuple[list[list[int]], float]:
    """posttrain; replies with their stop, and seconds."""
    import numpy as np
    import torch

    from posttrain.generate.decode import decode
    from posttrain.generate.engine import Sampling
    from posttrain.model import hardware
    from posttrain.model.adapters import frozen_model

    hardware.keep_freed_memory()
    loaded = frozen_model(model, None, hardware.DTYPES[dtype], torch.device("cpu"))
    ids = [np.array(p, np.int32) for p in prompts]
    found: list[list[int]] = [[] for _ in prompts]
    start = time.perf_counter()
    for new in decode(loaded, ids, [(stop,)], [Sampling(max_tokens=limit) for limit in limits()], slots=slots):
        found[new.prompt].append(new.token)
    return found, time.perf_counter() - start


def measure(options: argparse.Namespace, model: Path, data: str) -> dict[str, Any]:
    """One side, once, in this process."""
    from transformers import AutoTokenizer

    stop = AutoTokenizer.from_pretrained(model).eos_token_id
    prompts = prompt_ids(model, data)
    replies, seconds = (
        peer(model, prompts, stop, options.peer, options.dtype)
        if options.peer
        else own(model, prompts, stop, options.slots, options.dtype)
    )
    tokens = sum(map(len, replies))
    if options.replies:
        Path(options.replies).write_text(json.dumps(replies))
    return {
        "peer": "transformers.generate" if options.peer else "posttrain",
        "batch": options.peer or options.slots,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "dtype": options.dtype,
    }


def compare(options: argparse.Namespace, common: list[str]) -> None:
    """All sides in turn; prints every line and one with the medians."""
    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.repeats):
            for side in (*(f"--peer {batch}" for batch in BATCHES), f"--slots {options.slots}"):
                file = str(Path(scratch, f"{side}.json"))
                line = last_json_line([sys.executable, __file__, *side.split(), *common, "--replies", file])
                print(json.dumps(line), flush=True)
                speeds.setdefault(side, []).append(line["tokens_per_second"])
        read = {side: json.loads(Path(scratch, f"{side}.json").read_text()) for side in speeds}
    mine = f"--slots {options.slots}"
    medians = {side: median(values) for side, values in speeds.items()}
    best = max(value for side, value in medians.items() if side != mine)
    same = {side: sum(a == b for a, b in zip(read[mine], read[side], strict=True)) for side in medians if side != mine}
    print(json.dumps({"medians": medians, "ratio_to_best_batch": round(medians[mine] / best, 2), "same_replies": same}))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="HF model folder; default: the demo asset")
    parser.add_argument("--data", help="instructions in Alpaca form; default: the demo asset alpaca_en_demo")
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--peer", type=int, metavar="BATCH")
    parser.add_argument("--replies", help="write the replies' token ids to this file")
    parser.add_argument("--against", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    from posttrain.assets import DATA, fetch
    from posttrain.model.targets import model_folder

    options.dtype = dtype_here(options.dtype)
    model = model_folder(options.model or "smollm2-135m-instruct")
    data = options.data or str(fetch(DATA["alpaca_en_demo"]))
    if options.against:
        compare(options, ["--model", str(model), "--data", data, "--dtype", options.dtype])
    else:
        print(json.dumps(measure(options, model, data)))


if __name__ == "__main__":
    main()
