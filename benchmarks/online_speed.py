"""Speed of learning from one's own replies: GRPO of the demo model, as it is done here and by TRL's GRPO trainer, on one CPU.

    python benchmarks/online_speed.py                      one JSON line
    python benchmarks/online_speed.py --against PYTHON     TRL in a Python of its own (torch==2.13.0 trl==1.16.0 peft datasets),
                                                           in turn, three times; prints the ratios of medians

Settings of both: SmolLM2-135M-Instruct, the same prompts of alpaca_en_demo with "Answer in one sentence of 6 to 12 words.", 8 prompts a step,
8 replies each, at most 40 tokens, temperature 1, LoRA r=16 alpha=32 on all linear layers, group advantages divided by the deviation, no KL,
one update a step, a constant rate of 1e-6 so that the law of the replies, and with it their length, stays that of the start; reward: number of
words, so that no group is without signal. bf16 where the machine multiplies it fast, otherwise fp32. TRL learns in micro-batches of ``--micro``
replies (8; 64 need over 20 GB).

Printed: tokens sampled and learned a second (tokens of replies / whole time of the steps, the first left out), and the peak of the
process, loading included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPTS, REPLIES, TOKENS, RATE = 8, 8, 40, 1e-6
SUFFIX = "Answer in one sentence of 6 to 12 words."


def words(text: str) -> float:
    """The reward of both sides."""
    return float(len(text.split()))


def asked(data: Path, count: int) -> list[str]:
    """The first short prompts of the rows."""
    rows = json.loads(data.read_text(encoding="utf-8"))
    short = [row["instruction"] for row in rows if not row["input"] and len(row["instruction"]) < 160]
    return [f"{text}\n{SUFFIX}" for text in short[:count]]


def line_of(peer: str, tokens: Sequence[float], seconds: Sequence[float], dtype: str) -> dict[str, Any]:
    """What is said of one side; the first step warms up."""
    return {
        "peer": peer,
        "steps": len(tokens) - 1,
        "tokens": round(sum(tokens[1:])),
        "seconds": round(sum(seconds[1:]), 2),
        "tokens_per_second": round(sum(tokens[1:]) / sum(seconds[1:]), 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "dtype": dtype,
    }


def by_trl(options: argparse.Namespace) -> dict[str, Any]:
    """One run of TRL's trainer in this process."""
    import torch
    from datasets import Dataset  # type: ignore[import-not-found]
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    set_seed(0)
    stamps: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        """When steps end."""

        def on_step_begin(self, *given: Any, **named: Any) -> None:
            if not stamps:
                stamps.append(time.perf_counter())

        def on_step_end(self, *given: Any, **named: Any) -> None:
            stamps.append(time.perf_counter())

    prompts = asked(Path(options.data), PROMPTS * options.steps)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=PROMPTS * REPLIES // options.micro,
        num_generations=REPLIES,
        max_completion_length=TOKENS,
        max_steps=options.steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        loss_type="grpo",
        temperature=1.0,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=options.dtype == "bf16",
        gradient_checkpointing=False,
        disable_dropout=True,
        model_init_kwargs={"dtype": torch.bfloat16 if options.dtype == "bf16" else torch.float32},
    )
    trainer = GRPOTrainer(
        model=options.model,
        reward_funcs=lambda completions, **_: [words(turns[-1]["content"]) for turns in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in prompts]),
        processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=[Clock()],
    )
    trainer.train()
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = [after - before for before, after in itertools.pairwise(stamps)]
    return line_of("trl", [length * PROMPTS * REPLIES for length in lengths], seconds, options.dtype)


def by_posttrain(options: argparse.Namespace) -> dict[str, Any]:
    """One run of the loop in this process."""
    from posttrain.artifacts import Ledger, StageDir
    from posttrain.model.lineage import Lineage
    from posttrain.objectives.policy_gradient import Grpo
    from posttrain.online.config import OnlineSettings
    from posttrain.online.loop import OnlineInputs, train_online
    from posttrain.online.prompts import Question, encode_questions
    from posttrain.online.rollout import Drawing
    from posttrain.online.scores import LengthScore, scorer_of
    from posttrain.types import Message, Origin

    lineage = Lineage(Path(options.model))
    prompts = asked(Path(options.data), PROMPTS * options.steps)
    questions = [Question(str(n), (Message("user", text),), Origin("rows", n)) for n, text in enumerate(prompts)]
    settings = OnlineSettings(
        method=Grpo(),
        scores=(LengthScore(name="length"),),
        steps=options.steps,
        prompts=PROMPTS,
        replies=REPLIES,
        max_new_tokens=TOKENS,
        cut_replies="score",
        micro_batch_tokens=512,
        learning_rate=RATE,
        dtype=options.dtype,
    )
    tokenizer = lineage.template.tokenizer
    inputs = OnlineInputs(
        model_folder=lineage.folder,
        prompts=encode_questions(questions, lineage.template, 512, None, Ledger()),
        drawing=Drawing(lineage.stops, lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)), 1.0, TOKENS),
        open_scorer=lambda policy: scorer_of({"words": lambda one: words(one.reply)}),
    )
    lines: list[Any] = []
    train_online(settings, inputs, StageDir(Path(tempfile.mkdtemp())), seed=0, digest="speed", observer=lines.append)
    ends = [0.0, *(line["seconds"] for line in lines)]
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return line_of("posttrain", [line["supervised_tokens"] for line in lines], seconds, options.dtype)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="HF model folder; default: the demo asset")
    parser.add_argument("--data", help="rows; default: the demo asset alpaca_en_demo")
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--steps", type=int, default=4, help="the first is not counted")
    parser.add_argument("--micro", type=int, default=8, help="replies that TRL computes at once while learning")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl", action="store_true", help="be the peer")
    parser.add_argument("--against", metavar="PYTHON")
    options = parser.parse_args()
    if options.trl:
        print(json.dumps(by_trl(options)))
        return

    from side_by_side import compare, dtype_here

    from posttrain.assets import DATA, fetch
    from posttrain.model.targets import model_folder

    options.dtype = dtype_here(options.dtype)
    options.model = str(model_folder(options.model or "smollm2-135m-instruct"))
    options.data = options.data or str(fetch(DATA["alpaca_en_demo"]))
    if not options.against:
        print(json.dumps(by_posttrain(options)))
        return
    given = ("--model", options.model, "--data", options.data, "--dtype", options.dtype, "--steps", str(options.steps))
    peer = [options.against, __file__, "--trl", "--micro", str(options.micro), *given]
    compare(peer, [sys.executable, __file__, *given], options.repeats, options.dtype)


if __name__ == "__main__":
    main()
