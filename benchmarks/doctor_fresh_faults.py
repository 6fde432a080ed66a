"""Faults that no rule of the doctor was made with: the causes of doctor_faults.py provoked in another way, and healthy runs of other kinds.

    python benchmarks/doctor_fresh_faults.py -o FOLDER [NAME ...]    as doctor_faults.py: run them and print the table

The cases, with what is right to say of each, were committed before any of them was run, and each was run once; docs/doctor.md has what the doctor
said then. What is right is what somebody would have to hear who made this mistake, also where no rule of the doctor can see it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from doctor_faults import EVALUATE, Case, Row, apart, english, feedback, main, matched, objective, pair, short, swapped

from posttrain import assets

GEMMA = "gemma-3-270m"
TEMPLATES = Path(__file__).resolve().parents[1] / "recipes" / "templates"
GEMMAS = {"gemma.jinja": (TEMPLATES / "gemma_base.jinja").read_text(encoding="utf-8")}
LLAMA3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


# ---- rows ------------------------------------------------------------------------------------------------------------


def chinese(count: int = 150) -> list[Row]:
    return short("alpaca_zh_demo", count, least=20)


def of_humans(count: int = 70) -> list[Row]:
    """The shortest pairs of the demo set of preferences, two replies to one prompt."""
    path = assets.resolve_data("dpo_en_demo", lambda *_: None)
    assert path is not None
    rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if len(row["conversations"]) == 1]
    pairs = [
        pair({"prompt": row["conversations"][0]["value"]}, row["chosen"]["value"], row["rejected"]["value"])
        for row in rows
    ]
    return sorted(pairs, key=lambda row: len("".join(row.values())))[:count]


def longer_chosen() -> list[Row]:
    return [
        pair(row, *sorted((row["chosen"], row["rejected"]), key=len, reverse=True))
        for row in of_humans()
        if len(row["chosen"]) != len(row["rejected"])
    ]


def chinese_rejected() -> list[Row]:
    return [
        pair(row, row["completion"], other["completion"]) for row, other in zip(english(), chinese(150), strict=True)
    ]


def cut_in_the_source() -> list[Row]:
    """Both replies end in the middle of a word, as where a source had a limit of characters."""
    return [pair(row, *(row[side][: len(row[side]) * 6 // 10] for side in ("chosen", "rejected"))) for row in matched()]


def near_copies() -> list[Row]:
    """Six replies for all prompts, each after some words of the prompt: no two are equal."""
    rows = english()
    return [
        {
            "prompt": row["prompt"],
            "completion": f"As for {' '.join(row['prompt'].split()[:4])}: {rows[place % 6]['completion']}",
        }
        for place, row in enumerate(rows)
    ]


def runs_on() -> list[Row]:
    """Replies that go on with further questions and their answers, as transcripts do that nobody split into turns."""
    rows = english()
    return [
        {
            "prompt": row["prompt"],
            "completion": row["completion"]
            + "".join(f"\n\nUser: {next_['prompt']}\n\nAssistant: {next_['completion']}" for next_ in following),
        }
        for place, row in enumerate(rows)
        for following in [[rows[(place + step) % len(rows)] for step in (1, 2)]]
    ]


# ---- cases -----------------------------------------------------------------------------------------------------------

CASES: dict[str, Case] = {
    "chinese_template": Case(
        "Chinese rows under the template of another family, whose marks the tokenizer does not know",
        chinese,
        "loss_high_at_start",
        ("template_or_mask", "wrong_tokenizer", "template_without_stop"),
        {"template": "llama3.jinja", "max_length": 320},
        or_rules=("stop_untrained",),
        files={"llama3.jinja": LLAMA3},
    ),
    "kto_swapped": Case(
        "KTO on labels the wrong way round, held out with the right ones",
        partial(feedback, lambda: swapped(100)),
        "held_out_rises",
        ("labels_swapped", "other_distribution"),
        {**objective("kto", 5e-5), "batch_size": 8},
        others={"foreign.jsonl": lambda: feedback(lambda: matched(150)[100:])},
        stages=apart("rows.jsonl", "foreign.jsonl"),
        or_rules=("accuracy_chance",),
    ),
    "gemma_dpo_rate": Case(
        "DPO of Gemma 3 270M at 1.5e-3, 30 times the highest published rate",
        matched,
        "chosen_falls",
        ("rate_high",),
        {**objective("dpo", 1.5e-3), "max_steps": 16, "template": "gemma.jinja"},
        or_rules=("kl_runaway", "loss_rises", "failed", "rate_range"),
        files=GEMMAS,
        model=lambda folder: GEMMA,
    ),
    "orpo_cut": Case(
        "ORPO on replies that the source had cut in the middle of a word",
        cut_in_the_source,
        "rows_truncated",
        ("cut_replies", "max_length"),
        objective("orpo", 5e-5),
        or_rules=("stop_untrained",),
    ),
    "other_language": Case(
        "trained on English, held out Chinese",
        english,
        "held_out_rises",
        ("other_distribution",),
        {"max_length": 320},
        others={"foreign.jsonl": lambda: chinese(40)},
        stages=apart("rows.jsonl", "foreign.jsonl"),
        or_rules=("loss_flat",),
    ),
    "runs_on": Case(
        "replies that go on with further questions and answers",
        runs_on,
        "never_stops",
        ("long_replies", "stop_lost"),
        {"max_length": 400, "max_steps": 40},
        stages={"evaluate": {**EVALUATE, "prompts": "prompts.yaml", "max_new_tokens": 128}},
    ),
    "longer_chosen": Case(
        "DPO on people's pairs, the longer reply always chosen",
        longer_chosen,
        "length_bias",
        ("lengths_of_rows",),
        {**objective("dpo", 5e-5), "max_length": 1024, "max_steps": 14, "evaluate_every": 7},
        data={"held_out": 30},
    ),
    "near_copies": Case(
        "six replies for all prompts, each after four words of the prompt",
        near_copies,
        "duplicates",
        ("no_dedup", "one_template"),
        {"max_length": 200},
    ),
    "alpha_2048": Case(
        "LoRA of rank 64 with alpha 2048 (a scale of 32) at 2e-4",
        english,
        "loss_rises",
        ("rate_high", "alpha_high"),
        {"adapter": {"name": "lora", "rank": 64, "alpha": 2048}},
        or_rules=("held_out_rises", "gradient_spikes", "failed", "rate_range"),
    ),
    "batch_of_one": Case(
        "a batch of one at a constant 3e-3, without warm-up",
        english,
        "loss_rises",
        ("rate_high",),
        {
            "batch_size": 1,
            "learning_rate": 3e-3,
            "schedule": "constant",
            "warmup": 0,
            "max_steps": 80,
            "evaluate_every": 20,
        },
        or_rules=("held_out_rises", "gradient_spikes", "failed", "rate_range"),
    ),
    "chinese_rejected": Case(
        "SimPO, every rejected reply in another language",
        chinese_rejected,
        "margin_saturated",
        ("easy_pairs",),
        {**objective("simpo", 2e-5), "max_length": 320, "max_steps": 24},
    ),
    "dpo_by_heart": Case(
        "DPO, 20 epochs over 12 pairs at 1e-4",
        lambda: matched(52),
        "held_out_rises",
        ("overfitting",),
        {**objective("dpo", 1e-4), "epochs": 20, "max_steps": 60, "evaluate_every": 15},
        or_rules=("margin_saturated",),
    ),
    # healthy runs
    "healthy_gemma_chinese": Case(
        "SFT of Gemma 3 270M in Chinese",
        chinese,
        train={"template": "gemma.jinja"},
        files=GEMMAS,
        model=lambda folder: GEMMA,
    ),
    "healthy_full": Case(
        "SFT of all weights at 1e-5",
        train={"adapter": {"name": "full"}, "learning_rate": 1e-5},
        stages={"evaluate": {**EVALUATE, "data": "prepare"}},
    ),
    "healthy_hinge": Case("hinge loss", matched, train=objective("hinge", 5e-5)),
    "healthy_dpo_of_humans": Case(
        "DPO on people's pairs",
        of_humans,
        train={**objective("dpo", 2e-5), "max_length": 1024, "max_steps": 14, "evaluate_every": 7},
        data={"held_out": 30},
    ),
}


if __name__ == "__main__":
    main(CASES, __doc__)
