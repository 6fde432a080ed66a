"""Faults seeded on a real model with real rows, and healthy runs beside them: what does the doctor say?

    python benchmarks/doctor_faults.py -o FOLDER [NAME ...]     run them (finished ones are kept) and print the table
    python benchmarks/doctor_faults.py -o FOLDER --table        the table again, without running anything
    python benchmarks/doctor_faults.py -o FOLDER --record FILE  what the doctor reads of them, for tests/doctor/test_faults.py

Every fault is one change of a run that is well. It is found when the rule that is about it stands first or second among the findings and
names the right cause first or second. A healthy run has no alarm. The model is SmolLM2-135M-Instruct, the rows are the shortest of the demo
set (alpaca_en_demo), and pairs are made of them: the reply to a prompt beside the reply to another one. 8 to 100 steps of 2 to 4 rows
of some 60 tokens, or 12 rounds of 32 replies of its own: 30 to 60 minutes on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from posttrain import assets
from posttrain.artifacts import RunDir, write_json, write_text
from posttrain.doctor.diagnosis import Diagnosis, diagnose
from posttrain.encode.packing import shuffled_order
from posttrain.lab.engine import Experiment
from posttrain.lab.recipe import load_recipe
from posttrain.model.targets import model_folder
from posttrain.report.live import Display
from posttrain.stages import KINDS
from posttrain.stages.page import read_stages

MODEL = "smollm2-135m-instruct"
Row = dict[str, Any]
Rows = Callable[[], list[Row]]


# ---- rows ------------------------------------------------------------------------------------------------------------


def short(asset: str, count: int, least: int = 0) -> list[Row]:
    """The shortest instructions of a demo set with their replies, of at least so many characters."""
    path = assets.resolve_data(asset, lambda *_: None)
    assert path is not None
    found = [row for row in json.loads(path.read_text(encoding="utf-8")) if len(row["output"]) >= least]
    found.sort(key=lambda row: len(row["instruction"] + row["input"] + row["output"]))
    return [
        {"prompt": f"{row['instruction']}\n{row['input']}".strip(), "completion": row["output"]}
        for row in found[:count]
    ]


def english(count: int = 150) -> list[Row]:
    return short("alpaca_en_demo", count, least=60)


def pair(row: Row, chosen: str, rejected: str) -> Row:
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def matched(count: int = 150) -> list[Row]:
    """The reply to the prompt is chosen, the reply to the next prompt rejected."""
    rows = english(count)
    return [
        pair(row, row["completion"], other["completion"]) for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]


def swapped(count: int = 150) -> list[Row]:
    return [pair(row, row["rejected"], row["chosen"]) for row in matched(count)]


def random_labels() -> list[Row]:
    draw = random.Random(0)
    return [row if draw.random() < 0.5 else pair(row, row["rejected"], row["chosen"]) for row in matched()]


def longer_is_better() -> list[Row]:
    """Replies of many lengths, each beside a few words that say nothing."""
    draw = random.Random(0)
    rows = short("alpaca_en_demo", 450, least=30)[::3]
    return [pair(row, row["completion"], draw.choice(["Sure.", "It depends.", "I do not know."])) for row in rows]


def nearly_equal() -> list[Row]:
    """Two replies that differ by a last word, and some that do not differ once the rows are tokens."""
    return [
        pair(row, row["completion"], f"{row['completion']} Thanks.") for row in short("alpaca_en_demo", 150, least=150)
    ]


def gibberish_rejected() -> list[Row]:
    draw = random.Random(0)
    letters = "bcdfghjklmnpqrstvwxz"
    return [pair(row, row["completion"], "".join(draw.choices(letters, k=60))) for row in english()]


def shuffled_words() -> list[Row]:
    draw = random.Random(0)
    found = []
    for row in english():
        words = row["completion"].split()
        draw.shuffle(words)
        found.append({"prompt": row["prompt"], "completion": " ".join(words)})
    return found


def few_replies() -> list[Row]:
    rows = english()
    return [{"prompt": row["prompt"], "completion": rows[place % 6]["completion"]} for place, row in enumerate(rows)]


def parrots() -> list[Row]:
    return [
        {"prompt": row["prompt"], "completion": " ".join([" ".join(row["completion"].split()[:4])] * 8)}
        for row in english()
    ]


def labels_after_long_prompts() -> list[Row]:
    rows = short("alpaca_en_demo", 400, least=60)
    texts = [
        f"{a['completion']} {b['completion']} {c['completion']}"
        for a, b, c in zip(rows[::3], rows[1::3], rows[2::3], strict=False)
    ]
    return [
        {"prompt": f"{text}\nIs this long or short?", "completion": "long" if len(text) > 300 else "short"}
        for text in texts
    ]


def with_broken_rows() -> list[Row]:
    """Ordinary rows, and three of random words where the plan of the training comes to steps 67, 70 and 73."""
    draw, rows = (
        random.Random(0),
        list({row["prompt"]: row for row in short("alpaca_en_demo", 330, least=30)}.values())[:304],
    )
    words = sorted(
        {word for row in short("alpaca_en_demo", 999) for word in row["completion"].split() if word.isalpha()}
    )
    order = shuffled_order(len(rows), 0, 0)
    for step in (66, 69, 72):
        rows[order[4 * step]] = {"prompt": f"Code {step}", "completion": " ".join(draw.choices(words, k=100))}
    return rows


def feedback(pairs: Rows = matched) -> list[Row]:
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs()
        for side in ("chosen", "rejected")
    ]


# ---- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A run, and what the doctor is to say of it."""

    change: str
    """In words."""
    rows: Rows = english
    rule: str | None = None
    """None: it is healthy."""
    causes: tuple[str, ...] = ()
    """Any of them is right."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the train stage."""
    data: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Rows] = field(default_factory=dict)
    """Further sources by name, each a file."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files by name."""
    stages: Mapping[str, Any] = field(default_factory=dict)
    """Further stages, or in place of those that every case has."""
    online: Mapping[str, Any] | None = None
    """An online stage in place of the train stage, by its changes."""
    model: Callable[[Path], str] = lambda folder: MODEL
    or_rules: tuple[str, ...] = ()
    """Others that are as right, where they name one of the causes."""


def objective(name: str, rate: float, **more: Any) -> dict[str, Any]:
    return {"objective": {"name": name, **more}, "learning_rate": rate, "max_steps": 30}


def learns(score: Mapping[str, Any], *more: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """What an online stage learns from its own replies."""
    return {"scores": [dict(one) for one in (score, *more)], **changes}


SENTENCE = {
    "name": "checks",
    "checks": [
        {
            "kind": "all_of",
            "expected": [{"kind": "max_words", "expected": 12}, {"kind": "matches_regex", "expected": r"[.!?]\Z"}],
        }
    ],
}
"""One short sentence that ends: the untrained model meets it now and then."""
SUFFIX = "Answer in one sentence of 6 to 12 words."
DPO = objective("dpo", 5e-5)
EVALUATE = {"kind": "eval", "models": ["base", "sft"], "prompts": None, "max_length": 200, "resamples": 1000}


def apart(train: str, held_out: str) -> dict[str, Any]:
    """Training rows of one file and held-out rows of another."""
    return {
        "own": {"kind": "data", "sources": [{"path": train}], "held_out": 0, "profile": False},
        "foreign": {"kind": "data", "sources": [{"path": held_out}], "held_out": 0.98, "profile": False},
        "prepare": {"kind": "data", "sources": [{"path": "own"}, {"path": "foreign"}], "profile": False},
    }


def other_tokenizer(folder: Path) -> str:
    """The model with a tokenizer whose ordinary tokens have other numbers."""
    source, target = model_folder(MODEL), folder / "model"
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        with contextlib.suppress(FileExistsError):
            (target / path.name).symlink_to(path)
    held = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"] for token in held["added_tokens"]}
    vocabulary = {text: number for text, number in held["model"]["vocab"].items() if number not in special}
    numbers = list(vocabulary.values())
    turned = dict(zip(vocabulary, numbers[9000:] + numbers[:9000], strict=True))
    held["model"]["vocab"] |= turned
    (target / "tokenizer.json").unlink()
    write_json(target / "tokenizer.json", held)
    return str(target)


PROMPTS = [
    "Name three colours.", "What is the capital of France?", "Write a sentence about the sea.", "Give me a tip for studying.",
    "What do bees make?", "Tell me a fact about the moon.", "How do I boil an egg?", "Suggest a name for a dog.",
    "What is a noun?", "Say something kind.", "Why do we sleep?", "Describe winter in a sentence.", "What is 2 plus 3?", "What is bread made of?",
]  # fmt: skip

CASES: dict[str, Case] = {
    # faults of any training
    "rate_tiny": Case("learning rate 1e-8", rule="loss_flat", causes=("rate_low",), train={"learning_rate": 1e-8}),
    "rate_huge": Case("learning rate 0.05", rule="loss_rises", causes=("rate_high",), train={"learning_rate": 0.05}),
    "rate_of_lora": Case(
        "all weights at LoRA's learning rate",
        rule="rate_range",
        causes=("rate_high",),
        train={"adapter": {"name": "full"}, "learning_rate": 2e-4, "max_steps": 12},
    ),
    "tokenizer": Case(
        "another tokenizer",
        rule="loss_high_at_start",
        causes=("wrong_tokenizer",),
        model=other_tokenizer,
        train={"max_steps": 12},
    ),
    "epochs": Case(
        "20 epochs over 12 rows",
        rows=lambda: english(42),
        rule="held_out_rises",
        causes=("overfitting",),
        train={"epochs": 20, "max_steps": 60, "evaluate_every": 10, "learning_rate": 1e-3},
        data={"held_out": 30},
    ),
    "other_held_out": Case(
        "trained on replies that repeat four words, held out ordinary ones",
        rows=parrots,
        rule="held_out_rises",
        causes=("other_distribution",),
        others={"foreign.jsonl": lambda: english(190)[150:]},
        stages=apart("rows.jsonl", "foreign.jsonl"),
        train={"learning_rate": 2e-4, "max_steps": 30},
    ),
    "cut": Case(
        "over_length: truncate at 40 tokens",
        rule="stop_untrained",
        causes=("max_length", "cut_replies"),
        train={"max_length": 40, "over_length": "truncate"},
    ),
    "dropped": Case("max_length 56", rule="rows_dropped", causes=("max_length",), train={"max_length": 56}),
    "labels_only": Case(
        "one-word replies to long prompts",
        rows=labels_after_long_prompts,
        rule="wasted_tokens",
        causes=("long_prompts", "short_replies"),
        train={"max_length": 400, "max_steps": 12, "batch_size": 2},
        data={"held_out": 30},
    ),
    "copies": Case("six replies for all prompts", rows=few_replies, rule="duplicates", causes=("no_dedup",)),
    "broken_rows": Case(
        "three rows of random words among 304, no clipping",
        rows=with_broken_rows,
        rule="gradient_spikes",
        causes=("bad_rows", "no_clipping"),
        data={"held_out": 0},
        train={"max_steps": 75, "max_grad_norm": None, "max_length": 300, "learning_rate": 5e-5},
    ),
    "nothing_held_out": Case(
        "held_out: 0", rule="no_held_out", causes=("nothing_held_out",), data={"held_out": 0}, train={"max_steps": 12}
    ),
    # faults of preferences
    "dpo_rate_tiny": Case(
        "DPO at learning rate 1e-9",
        matched,
        "loss_at_start",
        ("rate_low", "few_steps"),
        {**DPO, "learning_rate": 1e-9, "max_steps": 12},
    ),
    "dpo_alike": Case(
        "replies that differ by a last word",
        nearly_equal,
        "identical_pairs",
        ("source_pairs",),
        {**DPO, "max_steps": 12, "max_length": 250},
    ),
    "dpo_easy": Case(
        "rejected replies of random letters",
        gibberish_rejected,
        "margin_saturated",
        ("easy_pairs",),
        {**DPO, "learning_rate": 2e-4},
    ),
    "dpo_falls": Case(
        "DPO at learning rate 1e-3",
        matched,
        "chosen_falls",
        ("rate_high",),
        {**DPO, "learning_rate": 1e-3, "max_steps": 20},
    ),
    "dpo_runs_away": Case(
        "random labels, beta 0.01, learning rate 5e-4 to the end",
        random_labels,
        "kl_runaway",
        ("rate_high", "beta_low"),
        {**objective("dpo", 5e-4, beta=0.01), "schedule": "constant", "max_steps": 40, "evaluate_every": 10},
    ),
    "dpo_length": Case(
        "a few empty words are rejected",
        longer_is_better,
        "length_bias",
        ("lengths_of_rows",),
        {**DPO, "learning_rate": 1e-4, "evaluate_every": 15},
    ),
    "dpo_swapped": Case(
        "held-out labels the wrong way round",
        lambda: matched(100),
        "accuracy_chance",
        ("labels_swapped",),
        DPO,
        others={"foreign.jsonl": lambda: swapped(150)[100:]},
        stages=apart("rows.jsonl", "foreign.jsonl"),
    ),
    # faults of models, evaluations and judges
    "forgets": Case(
        "trained on shuffled words at learning rate 1e-3",
        shuffled_words,
        "forgetting",
        ("rate_high", "no_general_rows"),
        {"learning_rate": 1e-3, "max_steps": 30},
        others={"general.jsonl": lambda: english(190)[150:]},
        stages={
            "general": {"kind": "data", "sources": [{"path": "general.jsonl"}], "held_out": 0.95, "profile": False},
            "evaluate": {**EVALUATE, "data": "general"},
        },
    ),
    "parrots": Case(
        "replies that repeat four words",
        parrots,
        "output_repeats",
        ("uniform_rows", "rate_high", "overfitting"),
        {"learning_rate": 1e-3, "max_steps": 30},
        stages={"evaluate": {**EVALUATE, "prompts": "prompts.yaml", "max_new_tokens": 48}},
    ),
    "few_held_out": Case(
        "eight held-out rows",
        rule="evaluation_small",
        causes=("few_prompts",),
        data={"held_out": 8},
        train={"learning_rate": 2e-4},
        stages={"evaluate": {**EVALUATE, "data": "prepare"}},
    ),
    "coin": Case(
        "a reward model of random labels as the judge",
        random_labels,
        "judge_coin",
        ("weak_judge", "weak_reward", "few_labels"),
        {**objective("reward", 1e-4), "max_steps": 12},
        stages={
            "calibrate": {
                "kind": "judge",
                "items": "items.jsonl",
                "task": "calibrate",
                "judge": {"judges": [{"reward": "sft"}]},
                "resamples": 1000,
            }
        },
    ),
    # faults of learning from replies of one's own
    "online_constant": Case(
        "GRPO, a score that every reply passes but an empty one",
        rule="no_signal",
        causes=("constant_score", "too_hard"),
        online=learns({"name": "checks", "checks": [{"kind": "max_words", "expected": 1000}]}, cut_replies="score"),
    ),
    "online_rate": Case(
        "GRPO at learning rate 1e-2",
        rule="collapse",
        causes=("rate_high",),
        online=learns({"name": "checks", "checks": [{"kind": "max_words", "expected": 30}]}, learning_rate=1e-2),
    ),
    "online_short": Case(
        "GRPO, the shorter the better; that it has six words is only logged",
        rule="reward_hacking",
        causes=("one_score",),
        online=learns(
            {"name": "length", "words": 0},
            {"name": "checks", "weight": 0.0, "checks": [{"kind": "min_words", "expected": 6}]},
            cut_replies="score",
            learning_rate=5e-4,
        ),
    ),
    # healthy runs
    "healthy_sft": Case("SFT", stages={"evaluate": {**EVALUATE, "data": "prepare"}}),
    "healthy_dpo": Case("DPO", matched, train=DPO),
    "healthy_ipo": Case("IPO", matched, train=objective("ipo", 5e-5)),
    "healthy_simpo": Case("SimPO", matched, train={**objective("simpo", 5e-5), "max_steps": 40}),
    "healthy_orpo": Case("ORPO", matched, train=objective("orpo", 1e-4)),
    "healthy_kto": Case("KTO", feedback, train={**objective("kto", 5e-5), "batch_size": 8}),
    "healthy_grpo": Case("GRPO", online=learns(SENTENCE)),
    "healthy_online_dpo": Case(
        "online DPO", online=learns(SENTENCE, method={"name": "online_dpo", "label_temperature": 0.25})
    ),
    "healthy_reward": Case("reward model", matched, train={**objective("reward", 1e-4), "max_steps": 60}),
}


def recipe_of(name: str, case: Case, folder: Path) -> dict[str, Any]:
    return {
        "name": name,
        "model": case.model(folder),
        "stages": {
            "prepare": {
                "kind": "data",
                "sources": [{"path": "rows.jsonl"}],
                "held_out": 40,
                "profile": False,
                **case.data,
            },
            **case.stages,
            "sft": _online(case.online)
            if case.online is not None
            else {
                "kind": "train",
                "data": "prepare",
                "max_length": 160,
                "batch_size": 4,
                "max_steps": 24,
                "epochs": 3,
                "learning_rate": 2e-4,
                "evaluate_every": 6,
                "keep": "last",
                "checkpoint_every": 1000,
                **case.train,
            },
        },
    }


def _online(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "online",
        "data": "prepare",
        "suffix": SUFFIX,
        "method": {"name": "grpo"},
        "steps": 12,
        "prompts": 4,
        "replies": 8,
        "max_new_tokens": 24,
        "learning_rate": 3e-4,
        "evaluation_prompts": 24,
        "checkpoint_every": 1000,
        **changes,
    }


def write_inputs(case: Case, folder: Path) -> None:
    for file, rows in {"rows.jsonl": case.rows, **case.others}.items():
        write_text(folder / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows()))
    for file, text in case.files.items():
        write_text(folder / file, text)
    prompts = {"knowledge": [{"id": f"p{n}", "language": "en", "prompt": text} for n, text in enumerate(PROMPTS)]}
    write_text(folder / "prompts.yaml", yaml.safe_dump(prompts))
    items = [
        {
            "id": str(n),
            "prompt": row["prompt"],
            "reply_a": row["chosen" if n % 2 else "rejected"],
            "reply_b": row["rejected" if n % 2 else "chosen"],
            "label": "a" if n % 2 else "b",
        }
        for n, row in enumerate(matched(200)[150:])
    ]
    write_text(folder / "items.jsonl", "".join(json.dumps(item) + "\n" for item in items))


def run(name: str, case: Case, out: Path) -> float:
    """Run a case, or go on with it; return its seconds."""
    folder, begin = out / name, time.perf_counter()
    write_inputs(case, folder)
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe_of(name, case, folder), sort_keys=False))
    recipe = load_recipe(folder / "recipe.yaml")
    with Display(Console(stderr=True)) as display:
        Experiment(recipe, RunDir(folder / "run"), display).execute()
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Verdict:
    """What the doctor said of a case."""

    place: int | None
    """Of the expected rule among the findings, from 1."""
    cause: int | None
    """Of the right cause among those named."""
    findings: tuple[str, ...]
    alarms: tuple[str, ...]

    def right(self, case: Case) -> bool:
        if case.rule is None:
            return not self.alarms
        return (self.place or 9) <= 2 and (self.cause or 9) <= 2


def verdict_of(case: Case, found: Diagnosis) -> Verdict:
    wanted = [
        (place, [cause.name for cause in finding.causes])
        for place, (one, finding) in enumerate(found.findings, 1)
        if one.rule in (case.rule, *case.or_rules)
    ]
    place, causes = next((one for one in wanted if set(one[1]) & set(case.causes)), wanted[0] if wanted else (None, []))
    cause = next((n for n, name in enumerate(causes, 1) if name in case.causes), None)
    names, alarms = (tuple(one.rule for one, _ in several) for several in (found.findings, found.alarms))
    return Verdict(place, cause, names, alarms)


READ = (
    "recipe.yaml",
    "*/manifest.json",
    "*/*.jsonl",
    "*/ledger.json",
    "sft/examples.json",
    "sft/lengths.json",
    "evaluate/*.json",
    "calibrate/summary.json",
)
"""What the doctor reads of a run."""
LEFT_OUT = {"rejects", "provenance", "inputs", "messages", "turns"}


def record(out: Path, names: list[str], file: Path) -> None:
    """Write the artefacts of the runs into one file, numbers rounded and texts nobody reads left out."""
    found = {
        name: {
            str(path.relative_to(out / name / "run")): _small(path)
            for pattern in READ
            for path in sorted((out / name / "run").glob(pattern))
        }
        for name in names
    }
    with gzip.GzipFile(file, "wb", mtime=0) as packed:
        packed.write(json.dumps(found, ensure_ascii=False, sort_keys=True).encode())


def _small(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml" or path.name == "verdicts.jsonl":
        return text if path.suffix == ".yaml" else ""
    if path.suffix == ".jsonl":
        return "".join(json.dumps(_rounded(json.loads(line)), ensure_ascii=False) + "\n" for line in text.splitlines())
    return json.dumps(_rounded(json.loads(text)), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: [] if key == "rejects" else _rounded(inner)
            for key, inner in value.items()
            if key not in LEFT_OUT - {"rejects"}
        }
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def unpacked(file: Path, out: Path) -> None:
    """Lay the runs of a record out again."""
    for name, files in json.loads(gzip.decompress(file.read_bytes())).items():
        for path, text in files.items():
            write_text(out / name / "run" / path, text)


def verdicts(out: Path, cases: Mapping[str, Case]) -> Iterator[tuple[str, Verdict]]:
    for name, case in cases.items():
        folder = out / name / "run"
        if folder.is_dir():
            stages = read_stages(RunDir(folder), KINDS)
            yield name, verdict_of(case, diagnose(stages.stages, stages.gaps))


def table(out: Path, cases: Mapping[str, Case]) -> tuple[str, bool]:
    lines, every = ["| run | change | expected | place | cause | findings | |", "|---|---|---|---|---|---|---|"], True
    for name, verdict in verdicts(out, cases):
        case = cases[name]
        right = verdict.right(case)
        every &= right
        findings = ", ".join(f"**{rule}**" if rule in verdict.alarms else rule for rule in verdict.findings) or "none"
        lines.append(
            f"| {name} | {case.change} | {' or '.join((case.rule, *case.or_rules)) if case.rule else 'no alarm'} | {verdict.place or ''} | {verdict.cause or ''} | {findings} | {'yes' if right else 'NO'} |"
        )
    return "\n".join(lines), every


def main(cases: Mapping[str, Case], about: str | None) -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(cases)}; default: all")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--record", type=Path, metavar="FILE", help="only write what the doctor reads of what is there")
    given = parser.parse_args()
    chosen = {name: cases[name] for name in given.names or cases}
    if given.record:
        record(given.out, list(chosen), given.record)
    elif not given.table:
        for name, case in chosen.items():
            print(f"{name}: {run(name, case, given.out):.0f} s", file=sys.stderr, flush=True)
    text, every = table(given.out, chosen)
    print(text)
    sys.exit(not every)


if __name__ == "__main__":
    main(CASES, __doc__)
