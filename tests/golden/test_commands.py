"""Losses of every objective, an evaluation with every benchmark and a judge, and every command of the command line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Outcome
from golden.goldens import artefacts, sha, steady_summary, told, visible
from servers import chat_body

pytestmark = [pytest.mark.demo_model, pytest.mark.filterwarnings("always")]
Cli = Callable[..., Outcome]
Golden = Callable[[str, Any], None]
Judged = tuple[Path, Outcome]

# ---- losses --------------------------------------------------------------------------------------------------------

LORA = {"adapter": {"name": "lora", "rank": 4, "alpha": 8}}
VARIANTS: dict[str, dict[str, Any]] = {
    "sft_full": {"adapter": {"name": "full"}, "learning_rate": 1e-3, "weight_decay": 0.01},
    "sft_lora": LORA,
    "sft_lora_dropout": {"adapter": {"name": "lora", "rank": 4, "dropout": 0.1}},
    "sft_rslora_dora": {"adapter": {"name": "lora", "rank": 4, "rslora": True, "dora": True}},
    "sft_split_batches": LORA | {"micro_batch_tokens": 48},
    "sft_truncated": LORA | {"max_length": 60, "over_length": "truncate"},
    "sft_checkpointing": LORA | {"gradient_checkpointing": True},
    "dpo": {"objective": {"name": "dpo"}},
    "dpo_from_sft": {"objective": {"name": "dpo", "sft_weight": 0.5}, "start_from": "sft_full"},
    "dpo_smoothed": {"objective": {"name": "dpo", "label_smoothing": 0.1}},
    "dpo_robust": {"objective": {"name": "dpo", "label_smoothing": 0.1, "robust": True}},
    "dpo_full": {"objective": {"name": "dpo"}, "adapter": {"name": "full"}, "learning_rate": 1e-3},
    "dpo_dropout": {"objective": {"name": "dpo"}, "adapter": {"name": "lora", "rank": 4, "dropout": 0.1}},
    "hinge": {"objective": {"name": "hinge"}},
    "ipo": {"objective": {"name": "ipo"}},
    "simpo": {"objective": {"name": "simpo"}},
    "orpo": {"objective": {"name": "orpo"}},
    "kto": {"objective": {"name": "kto"}},
    "reward": {"objective": {"name": "reward", "centering": 0.01}},
}


@pytest.mark.slow
def test_losses(place: Path, cli: Cli, golden: Golden) -> None:
    stages: dict[str, Any] = {
        rows: {"kind": "data", "sources": [{"path": f"{rows}.jsonl"}], "held_out": 4, "profile": False}
        for rows in ("rows", "pairs", "feedback")
    }
    for name, variant in VARIANTS.items():
        kind = variant.get("objective", {}).get("name", "sft")
        common = {"kind": "train", "data": {"sft": "rows", "kto": "feedback"}.get(kind, "pairs"), "max_steps": 20}
        common |= {
            "epochs": 20,
            "batch_size": 2,
            "learning_rate": 5e-3,
            "dtype": "fp32",
            "device": "cpu",
            "evaluate_every": 1000,
        }
        stages[name] = common | LORA | variant
    (place / "losses.yaml").write_text(json.dumps({"name": "losses", "model": "model", "stages": stages}))
    done = cli("train", "losses.yaml")
    assert done.code == 0, done.err
    found: dict[str, Any] = {}
    for name in VARIANTS:
        lines = (place / "runs" / "losses" / name / "metrics.jsonl").read_text().splitlines()
        steps = [record for record in map(json.loads, lines) if record["split"] == "train"]
        assert len(steps) == 20
        found[name] = {key: [float(record[key]).hex() for record in steps] for key in ("loss", "grad_norm")}
    golden("losses", found)


# ---- an evaluation with benchmarks and a judge ---------------------------------------------------------------------


def verdict(body: dict[str, Any]) -> dict[str, Any]:
    """A judge with a taste: GOOD is better, otherwise the hash decides; of the numbers 0 to 9 it has a firm opinion."""
    text = "\n".join(message["content"] for message in body["messages"])
    seen = body["messages"][-1]["content"]
    blocks = [re.search(f"<(?:answer|conversation)_{x}>(.*?)</", seen, re.DOTALL) for x in "ab"]
    blocks = [b for b in blocks if b] or list(re.finditer(r"<output[^>]*>(.*?)</output>", seen, re.DOTALL))
    first, second = (("GOOD" in b[1], sha(b[1].strip())) if b else (False, "") for b in (*blocks, None, None)[:2])
    which = 0 if first > second else 1 if second > first else 2
    number = int(re.search(r"Say (\d+)", seen)[1]) if "Say " in seen else int(sha(seen), 16)  # type: ignore[index]
    if body.get("logprobs"):
        top = [{"token": "mM"[which % 2], "logprob": -0.25}, {"token": "Mm"[which % 2], "logprob": -1.5}]
        return chat_body("x", top[0]["token"], logprobs={"content": [top[0] | {"top_logprobs": top}]})
    for mark, choices in {
        "A>>B": ("A>B", "B>>A", "A=B"),
        "[[A]]": "ABC",
        "[[complies]]": ("complies", "refuses", "partly"),
    }.items():
        if mark in text:
            chosen = which if mark != "[[complies]]" else int(sha(seen), 16) % 3
            return chat_body("x", f"Looked.\n[[{choices[chosen]}]]")
    grade = 1 + number % 5 if "from 1 (meets none" in text else 3 + number % 6 - (number % 3 == 0)
    return chat_body("x", f"Looked.\n[[{grade}]]")


BENCHMARKS = {
    "chat:mt_bench=mt_bench.jsonl": "chat.judged=both",
    "alpaca:alpaca_eval=alpaca_eval.json": "",
    "hard:arena_hard=arena_hard.jsonl": "",
    "arena:pairwise": "arena.against=all",
    "form:ifeval=ifeval.jsonl": "",
    "maths:gsm8k=gsm8k.jsonl": "",
    "safety": "safety.labels_by=judge",
    "variety:diversity": "variety.samples=3",
    "overlap:overlap=overlap.jsonl": "",
}


@pytest.fixture(scope="module")
def judged(place: Path, cli: Cli) -> Judged:
    """The run folder of two models on every benchmark, and what the command said."""
    from servers import Server

    arguments: list[str] = []
    for benchmark, setting in BENCHMARKS.items():
        key = benchmark.split(":")[0].split("=")[0]
        arguments += ["--benchmark", benchmark, f"--{key}.max-tokens=6", f"--{key}.max-prompts=6"]
        arguments += [f"--{setting}"] if setting else []
    with Server(bodies=verdict) as server:
        judge = f"endpoint={server.url},model=scripted"
        settings = ("--resamples=200", "--max-new-tokens=6", "--device=cpu")
        done = cli(
            "eval",
            "base=model",
            "new=other",
            "-o",
            "runs/judged",
            "--prompts",
            "prompts.yaml",
            "--judge",
            judge,
            *arguments,
            *settings,
        )
    assert done.code == 0, done.err
    return place / "runs" / "judged", done


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_machine", "same_machine")
def test_summary_with_a_judge(judged: Judged, place: Path, golden: Golden) -> None:
    summary = steady_summary(judged[0], place)
    golden("summary_judged", summary)


@pytest.mark.slow
def test_evaluation_with_a_judge(judged: Judged, place: Path, golden: Golden) -> None:
    golden("artefacts_judged", {"files": artefacts(judged[0], place), "output": told(judged[1], place)})


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_machine", "same_machine")
def test_page_with_a_judge(judged: Judged, place: Path, golden: Golden) -> None:
    golden("page_judged", visible(judged[0] / "report" / "index.html", place))


# ---- commands ------------------------------------------------------------------------------------------------------

HELP = [
    "run",
    "start",
    "stop",
    "train",
    "ablate",
    "report",
    "show",
    "data",
    "chat",
    "serve",
    "verify",
    "export",
    "score",
    "eval",
    "arena",
    "compare",
    "judge",
    "schema",
]
STEPS = ("filter", "dedup", "decontaminate", "select", "mix", "split", "profile")
JUDGING = ("pairs", "single", "calibrate")


def test_help(place: Path, cli: Cli, golden: Golden) -> None:
    verbs = [
        [],
        *([name] for name in HELP),
        *(["data", name] for name in STEPS),
        *(["judge", name] for name in JUDGING),
    ]
    shown = {" ".join([*verb, "--help"]): cli(*verb, "--help") for verb in verbs}
    golden("help", {name: {"exit": done.code, "out": done.out.splitlines()} for name, done in shown.items()})


def test_schema(place: Path, cli: Cli, golden: Golden) -> None:
    done = cli("schema")
    golden("schema", {"sha256": hashlib.sha256(done.out.encode()).hexdigest(), "schema": json.loads(done.out)})


COMMANDS: list[str] = [
    "data filter rows.jsonl -o out/filter --length.min_user_tokens 2",
    "data filter rows.jsonl -o out/filter --length.min_user_tokens 2 --json",
    "data dedup rows.jsonl -o out/dedup --method minhash --threshold 0.7 --fields user",
    "data dedup rows.jsonl -o out/exact --method exact",
    "data decontaminate rows.jsonl -o out/clean --benchmarks [{name:\u00a0exam,\u00a0path:\u00a0exam.jsonl}] --limit 0.9",
    "score rows.jsonl --model model -o out/score --dtype fp32 --device cpu",
    "data select ROWS:out/score -o out/ifd --rule {method:\u00a0ifd,\u00a0top:\u00a08}",
    "data select rows.jsonl -o out/diverse --rule {method:\u00a0diversity,\u00a0budget:\u00a06}",
    "data mix one=rows.jsonl two=gsm8k.jsonl -o out/mix --counts {one:\u00a05}",
    "data split rows.jsonl -o out/split --validation 3 --test 2",
    "data profile ROWS:out/split -o out/profile",
    "data profile pairs.jsonl -o out/profile_pairs --model model",
    "show --conversations rows.jsonl --row 1 --model model",
    "show --conversations rows.jsonl --row 12 --model model --json",
    "show --conversations pairs.jsonl --row 3 --model model --html out/pair.html",
    "show --conversations rows.jsonl --row 99 --model model",
    "chat model --prompt Hello --max-new-tokens 6",
    "export model --to ollama --type f32 -o out/ollama",
    "export model --to onnx -o out/onnx",
    "arena games.jsonl -o out/bt --cluster prompt --anchor a=1200",
    "arena games.jsonl -o out/elo --method elo",
    "arena games.jsonl -o out/style --style-columns tokens --json",
    "compare a b scores.jsonl --measure score --measure passed",
    "compare x y judged.jsonl --json",
    "ablate recipes/data_chain.yaml --kind leave_one_out -o out/ablate",
    "ablate recipes/quickstart.yaml --kind sub_samples -o out/shares",
    "judge pairs judged.jsonl -o out/pairs JUDGE",
    "judge pairs judged.jsonl -o out/pairs_five --prompt five --emphasis both JUDGE",
    "judge single single.jsonl -o out/single JUDGE",
    "judge calibrate judged.jsonl -o out/calibrate JUDGE",
    "judge calibrate single.jsonl -o out/calibrate_single --prompt single JUDGE",
    "train recipes/data_chain.yaml model=model prepare.sources.0.path=rows.jsonl prepare.sources.1.path=gsm8k.jsonl prepare.mix=null "
    "sft.max_steps=2 sft.batch_size=2 sft.dtype=fp32 prepare.steps.2.test=2 prepare.steps.2.validation=2",
    "report runs/data_chain",
    "run recipes/data_chain.yaml model=model sft.max_step=2",
    "run absent/recipe.yaml",
    "eval model -o out/eval --benchmark sefety",
    "data dedup rows.jsonl -o out/dedup --methd exact",
]


def argument(word: str) -> str:
    """A no-break space stands for a blank, ``ROWS:FOLDER`` for the rows that a command has written there."""
    if word.startswith("ROWS:"):
        written = [path for path in Path(word[5:]).rglob("*.parquet") if path.name in ("rows.parquet", "train.parquet")]
        return str(min(written, key=lambda path: ("read" in path.parts, path), default=word))
    return word.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def commands(place: Path, cli: Cli) -> dict[str, Outcome]:
    """What every command said, in this order and in one folder."""
    from servers import Server

    found = {}
    with Server(bodies=verdict) as server:
        for line in COMMANDS:
            judge = ["--endpoint", server.url, "--model", "scripted"]
            words = [argument(word) for word in line.replace(" JUDGE", "").split(" ")]
            found[line.replace("\u00a0", " ")] = cli(*words, *(judge if line.endswith(" JUDGE") else []))
    return found


@pytest.mark.slow
def test_commands(commands: dict[str, Outcome], place: Path, golden: Golden) -> None:
    golden("commands", {name: told(done, place) for name, done in commands.items()})


@pytest.mark.slow
def test_what_commands_write(commands: dict[str, Outcome], place: Path, golden: Golden) -> None:
    golden("artefacts_of_commands", artefacts(place / "out", place))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("data_profile", "profile/**/profile.html"), ("arena", "bt/**/index.html")])
def test_page(name: str, file: str, commands: dict[str, Outcome], place: Path, golden: Golden) -> None:
    (page,) = (place / "out").glob(file)
    golden(f"page_{name}", visible(page, place))


@pytest.mark.slow
def test_verify(place: Path, cli: Cli, golden: Golden) -> None:
    golden("verify", told(cli("verify", "--conversations", "rows.jsonl", "--model", "model", "--rows", 4), place))
