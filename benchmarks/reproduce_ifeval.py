"""IFEval of GPT-4's published responses: the verdicts of two published runs beside ours.

    python benchmarks/reproduce_ifeval.py [FOLDER]

FOLDER is the shared data folder (default: ../shared/data beside the project). Exits with 1 where a number is off.
The two runs scored the same responses and differ on the prompts that ask for '#' or '!', for which the original draws a random letter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # tests load this file by its path
from ifeval_scores import instruction_scores, instruction_verdicts, load_replies
from published import Row, run_script

from posttrain.tasks.ifeval_rules.scoring import InstructionVerdict, load_instruction_prompts

Followed = Mapping[str, tuple[bool, ...]]
"""Prompt -> which of its instructions are followed."""


def published_run(path: Path) -> Followed:
    """The verdicts of a published run."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {record["prompt"]: tuple(record["follow_instruction_list"]) for record in map(json.loads, lines)}


def agreement(ours: Followed, run_a: Followed, run_b: Followed) -> tuple[int, int, int]:
    """Prompts of which every verdict is the one of run A or of run B; all prompts; prompts where the runs differ."""
    agreed = sum(own in (run_a[prompt], run_b[prompt]) for prompt, own in ours.items())
    return agreed, len(ours), sum(run_a[prompt] != run_b[prompt] for prompt in ours)


def rows(shared: Path) -> list[Row]:
    """Verdicts per prompt, and the four numbers, which may differ by the prompts on which the runs do."""
    folder = shared / "evaluation" / "ifeval"
    prompts = load_instruction_prompts(folder / "input_data.jsonl")
    found = instruction_verdicts(prompts, load_replies(folder / "gpt4_responses.jsonl"))
    text = {prompt.key: prompt.text for prompt in prompts}
    scores = instruction_scores(found)
    listed: list[Row] = []
    for kind in ("strict", "loose"):
        ours = {text[verdict.key]: chosen(verdict, kind) for verdict in found.verdicts}
        run_a, run_b = (published_run(folder / f"reference_eval_{kind}_run{name}_540.jsonl") for name in "AB")
        agreed, compared, differ = agreement(ours, run_a, run_b)
        listed.append(Row(f"ifeval {kind}: prompts with the verdicts of a published run", compared, agreed, 0))
        for level, value in (("prompt", all_followed), ("instruction", share_followed)):
            published = value(run_b)
            instructions = sum(map(len, ours.values()))
            slack = 100 * differ / (compared if level == "prompt" else instructions)
            estimate = getattr(scores, f"{level}_{kind}").estimate
            listed.append(Row(f"ifeval {level} {kind}, % (run B)", published, 100 * estimate, slack + 1e-9))
    return listed


def chosen(verdict: InstructionVerdict, kind: str) -> tuple[bool, ...]:
    """The strict or the loose verdicts."""
    return verdict.strict if kind == "strict" else verdict.loose


def all_followed(run: Followed) -> float:
    """Share of prompts all of whose instructions are followed, in percent."""
    return 100 * sum(map(all, run.values())) / len(run)


def share_followed(run: Followed) -> float:
    """Share of instructions that are followed, in percent."""
    return 100 * sum(map(sum, run.values())) / sum(map(len, run.values()))


def main() -> int:
    """Print published against ours."""
    return run_script({"IFEval": rows})


if __name__ == "__main__":
    sys.exit(main())
