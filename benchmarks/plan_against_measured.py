"""The planner against what training really takes: resident memory above the idle process, each setting in a fresh process.

    python benchmarks/plan_against_measured.py                    all settings, one line each, then a table
    python benchmarks/plan_against_measured.py --only 3           one setting, as JSON

Two models: the demo model (30 narrow layers, tied, llama) and one built here (8 wider layers, untied, qwen3). Rows of random tokens, so
that lengths are exact; two steps of a whole training stage as ``posttrain run`` does it, checkpoints and the written weights included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Setting:
    """One training stage."""

    model: str
    method: str
    objective: str
    length: int
    batch_size: int
    checkpointing: bool = False
    tokens: int = 2048


SETTINGS = (
    Setting("demo", "lora", "sft", 256, 8),
    Setting("demo", "lora", "sft", 512, 4),
    Setting("demo", "lora", "sft", 256, 8, checkpointing=True),
    Setting("demo", "lora", "dpo", 256, 4),
    Setting("demo", "full", "sft", 256, 4, tokens=1024),
    Setting("demo", "full", "sft", 256, 8, checkpointing=True),
    Setting("demo", "lora", "dpo", 512, 8, checkpointing=True),
    Setting("wide", "lora", "sft", 256, 16),
    Setting("wide", "lora", "sft", 512, 8, checkpointing=True),
    Setting("wide", "lora", "dpo", 512, 4),
    Setting("wide", "full", "sft", 256, 16),
    Setting("wide", "full", "sft", 512, 8),
    Setting("wide", "full", "dpo", 512, 4, checkpointing=True),
    Setting("wide", "full", "dpo", 256, 4),
    Setting("demo", "qlora", "sft", 256, 8),
    Setting("wide", "qlora", "dpo", 512, 4),
)
STEPS = 2
WIDE = {
    "vocab_size": 49152,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A qwen3: other shape than the demo model in everything."""


def build_wide(folder: Path) -> None:
    """Write the second model, with random weights and the demo model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from posttrain.model.companions import TOKENIZER_FILES
    from posttrain.model.targets import model_folder

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **WIDE)).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (file := model_folder("smollm2-135m-instruct") / name).is_file():
            shutil.copy(file, folder)


def tokens(row: int, side: int, length: int, prompt: int) -> Any:
    """Random tokens; the first ``prompt`` are the same for both sides of a row and not trained on."""
    from posttrain.types import Tokens

    ids_T = np.random.default_rng([row, side]).integers(3, 40_000, length).astype(np.int32)
    ids_T[:prompt] = np.random.default_rng([row, 9]).integers(3, 40_000, prompt)
    weights_T = np.ones(length, np.float32)
    weights_T[:prompt] = 0
    return Tokens(ids_T, weights_T, f"row {row}")


def measure(setting: Setting, model: Path) -> dict[str, Any]:
    """Train in this process, and return the stage's own record of its plan and its memory."""
    import torch

    from posttrain.artifacts import StageDir, read_json
    from posttrain.encode.preferences import PairTokens
    from posttrain.model import hardware
    from posttrain.model.config import FullWeights, LoraAdapter
    from posttrain.objectives import DpoObjective, SftObjective
    from posttrain.train.config import TrainSettings
    from posttrain.train.loop import TrainInputs, train

    adapters = {"full": FullWeights(), "lora": LoraAdapter(), "qlora": LoraAdapter(quantize="nf4")}
    count, length, pairs = STEPS * setting.batch_size, setting.length, setting.objective == "dpo"
    if pairs:
        sides = [[tokens(row, side, length, length // 2) for side in (1, 2)] for row in range(count)]
        units: list[Any] = [PairTokens(*both, f"row {row}") for row, both in enumerate(sides)]
    else:
        units = [tokens(row, 1, length, length // 4) for row in range(count)]
    settings = TrainSettings(
        adapter=adapters[setting.method],
        objective=DpoObjective() if pairs else SftObjective(),
        batch_size=setting.batch_size,
        micro_batch_tokens=setting.tokens,
        gradient_checkpointing=setting.checkpointing,
        dtype="fp32",
        device="cpu",
    )
    hardware.reset_peak_memory(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stage"
        out.mkdir()
        train(settings, TrainInputs(model, units), StageDir(out), seed=0, digest="benchmark")
        record: dict[str, Any] = read_json(out / "memory.json")
    return record


def shown(setting: Setting) -> str:
    """The setting in words."""
    parts = [
        setting.model,
        setting.method,
        setting.objective,
        f"{setting.length} tokens",
        f"batch {setting.batch_size}",
    ]
    return ", ".join([*parts, *(["checkpointing"] if setting.checkpointing else [])])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, help="number of one setting, from 0")
    parser.add_argument("--wide", type=Path, help="folder of the second model; default: built anew")
    options = parser.parse_args()
    if options.only is not None:
        from posttrain.model.targets import model_folder

        setting = SETTINGS[options.only]
        model = model_folder("smollm2-135m-instruct") if setting.model == "demo" else options.wide
        print(json.dumps(measure(setting, model)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        wide = options.wide or Path(temporary) / "wide"
        if not wide.is_dir():
            build_wide(wide)
        lines = []
        for number, setting in enumerate(SETTINGS):
            command = [sys.executable, __file__, "--only", str(number), "--wide", str(wide)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            record = json.loads(done.stdout.splitlines()[-1])
            planned, measured = record["planned"]["peak_bytes"], record["measured"]["peak_memory_bytes"]
            apart = planned / measured - 1
            lines.append(
                f"| {shown(setting)} | {record['planned']['peak_phase']} | {planned / 1e9:.2f} | {measured / 1e9:.2f} | {apart:+.0%} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    print("| setting | peak in | planned GB | measured GB | planned against measured |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
