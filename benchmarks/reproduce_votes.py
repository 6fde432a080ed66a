"""Published numbers about judges, votes and refusals beside what this toolkit computes from the published raw data.

    python benchmarks/reproduce_votes.py [FOLDER]

FOLDER is the shared data folder (default: ../shared/data beside the project). Prints a table (name, published, ours, allowed
difference) and exits with 1 where a difference is larger than allowed. ``rows`` gives the same as values. Sources: MT-Bench
agreement, arXiv:2306.05685, table 5, and FastChat's compute_agreement.py; kappas of the same votes, judgelab's report (in the
folder); recorded GPT-4 scores, the judgment files; LLMBar, arXiv:2310.07641, the published statistics.json of every judge;
Krippendorff's alpha, the worked example of his note of 2011; XSTest, arXiv:2308.01263, the authors' evaluation/analysis.ipynb.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # tests load this file by its path
from mt_bench_votes import (
    Rating,
    Vote,
    experts,
    flips,
    judge_agreement,
    load_votes,
    mutual_agreement,
    score_table,
    votes_by_comparison,
)
from published import Row, run_script
from refusal_labels import load_labels, refusal_table

from posttrain.judge.agreement import cohen_kappa, krippendorff_alpha, raw_agreement
from posttrain.judge.refusal import Label, xstest_label
from posttrain.judge.verdicts import Missing, Verdict, majority, mt_bench_rating
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.mt_bench_data import load_questions
from posttrain.tasks.safety_prompts import load_safety_rows


def rows(shared: Path) -> list[Row]:
    """Every row, from the folder of data."""
    folder = shared / "evaluation"
    parts = (mt_bench_agreement, mt_bench_kappas, mt_bench_scores, llmbar, krippendorff, xstest)
    return [row for part in parts for row in part(folder)]


# ---- MT-Bench ------------------------------------------------------------------------------------------------------

AGREEMENT = {
    # (turn, ties): GPT-4 with people in percent and the number of pairs, people with people likewise
    (1, True): (66.0, 1343, 63.0, 721),
    (1, False): (84.6, 859, 81.0, 479),
    (2, True): (65.7, None, 66.6, None),
    (2, False): (84.6, None, 81.9, None),
}


def mt_bench_agreement(folder: Path) -> Iterator[Row]:
    judge = load_votes(folder / "mt_bench" / "gpt4_pair_votes.jsonl")
    people = experts(load_votes(folder / "mt_bench" / "human_votes.jsonl"))
    for (turn, ties), (judge_percent, judge_pairs, people_percent, people_pairs) in AGREEMENT.items():
        setup = f"MT-Bench turn {turn} {'S1' if ties else 'S2'}"
        with_people = judge_agreement(judge, people, turn, ties=ties)
        among = mutual_agreement(people, turn, ties=ties)
        for name, percent, pairs, found in (
            ("GPT-4 and people", judge_percent, judge_pairs, with_people),
            ("people", people_percent, people_pairs, among),
        ):
            yield Row(f"{setup}: {name}, %", percent, 100 * found.equal / found.pairs, 0.05)
            if pairs is not None:
                yield Row(f"{setup}: {name}, pairs", pairs, found.pairs, 0)
    yield Row("MT-Bench: GPT-4 votes that flip with the order", 380, flips(judge)[True], 0)
    yield Row("MT-Bench: GPT-4 votes", 2400, len(judge), 0)


def mt_bench_kappas(folder: Path) -> Iterator[Row]:
    """The judge against the majority of all human votes (the authors' included), a tie where they are split."""
    expected = json.loads((folder / "mt_bench" / "judgelab_expected.json").read_text(encoding="utf-8"))
    judge = {v.comparison: v for v in load_votes(folder / "mt_bench" / "gpt4_pair_votes.jsonl")}
    people = votes_by_comparison(load_votes(folder / "mt_bench" / "human_votes.jsonl"))
    # votes x comparisons
    pairs = [(judge[key], majority(v.verdict for v in votes)) for key, votes in people.items()]

    def compared(
        name: str, published: Mapping[str, Any], keep: Callable[[Vote, Verdict | Missing], bool]
    ) -> Iterator[Row]:
        kept = [(vote.verdict, human) for vote, human in pairs if keep(vote, human)]
        a, b = zip(*kept, strict=True)
        kappa = cohen_kappa(a, b)
        yield Row(f"MT-Bench kappa {name}: comparisons", published["n"], len(kept), 0)
        yield Row(
            f"MT-Bench kappa {name}: raw agreement", published["raw_agreement"], raw_agreement(a, b).estimate, 5e-5
        )
        yield Row(f"MT-Bench kappa {name}: Cohen's kappa", published["cohen_kappa"], kappa.estimate, 5e-5)
        # Two bootstraps of one interval, each of its own draws.
        yield Row(f"MT-Bench kappa {name}: low end", published["kappa_ci_low"], kappa.low, 5e-3)
        yield Row(f"MT-Bench kappa {name}: high end", published["kappa_ci_high"], kappa.high, 5e-3)

    yield from compared("with ties", expected["with_ties"], lambda vote, human: True)
    yield from compared(
        "without ties", expected["ties_excluded"], lambda vote, human: "tie" not in (vote.verdict, human)
    )
    for turn, published in expected["by_turn"].items():
        yield from compared(f"turn {turn}", published, lambda vote, human, t=int(turn): vote.comparison.turn == t)
    verdicts = [[vote.verdict for vote in votes] for votes in people.values()]
    alpha = krippendorff_alpha(verdicts)
    yield Row("MT-Bench: Krippendorff's alpha of people", expected["human_krippendorff_alpha"], alpha.estimate, 5e-5)
    several = sum(len(votes) > 1 for votes in people.values())
    yield Row("MT-Bench: comparisons with several human votes", expected["n_human_multi_rated"], several, 0)
    flipped = flips([vote for vote, _ in pairs])[True] / len(pairs)
    yield Row("MT-Bench: share of flips among them", expected["position_inconsistency_rate"], flipped, 5e-5)


JUDGMENTS = {
    "alvarobartt_mistral-orpo_gpt-4_single": 800,
    "don-tpanic_llama2_gpt-4_single": 800,
    "stefanstud_phi3dpo_gpt-4_single": 160,
}
LLAMA = "llama2_chat_7b"


def mt_bench_scores(folder: Path) -> Iterator[Row]:
    questions = load_questions(folder / "mt_bench" / "question.jsonl")
    for name, recorded in JUDGMENTS.items():
        judgments = read_jsonl(folder / "mt_bench_judgments" / f"{name}.jsonl")
        same = sum(recorded_score(mt_bench_rating(j["judgment"])) == j["score"] for j in judgments)
        yield Row(f"MT-Bench ratings parsed as recorded: {name}", recorded, same, 0)
        if chat := [j for j in judgments if j["model"] == LLAMA]:
            ratings = [Rating(j["question_id"], j["turn"], mt_bench_rating(j["judgment"])) for j in chat]
            mean = score_table(questions, ratings).overall.mean
            assert mean is not None
            yield Row("MT-Bench score of Llama-2-7b-chat in that file", 6.19, mean.estimate, 5e-3)


def recorded_score(value: float | Missing) -> float:
    """FastChat writes -1 where no rating is found."""
    return -1 if isinstance(value, Missing) else value


# ---- LLMBar --------------------------------------------------------------------------------------------------------


class LlmBarStatistics(NamedTuple):
    """What LLMBar counts for one judge over ``items`` pairs, each judged in both orders."""

    items: int
    right_original: int
    right_swapped: int
    right_both: int
    same: int
    """Pairs with the same verdict in both orders."""
    kappa: float
    """Cohen's kappa between the two orders."""

    @property
    def accuracy(self) -> float:
        """Mean accuracy of the two orders."""
        return (self.right_original + self.right_swapped) / 2 / self.items


def llmbar_statistics(
    gold_I: Sequence[int], original_I: Sequence[int | None], swapped_I: Sequence[int | None]
) -> LlmBarStatistics:
    """The statistics of LLMBar (Zeng et al. 2024, arXiv:2310.07641) as its evaluation script counts them.

    Labels are 1 and 2 (the better output, in the order of the data set also for the swapped run), None where the judge's text could
    not be parsed. A missing verdict is wrong in ``right_*``; two missing ones count as ``same``; for kappa None counts as 2,
    because the script asks only whether the verdict is 1. Those are the published rules, kept to reproduce the published numbers.

    Raises:
        ValueError: no items, unequal lengths or another label.

    """
    if not len(gold_I) == len(original_I) == len(swapped_I) or not gold_I:
        raise ValueError(
            f"three lists of one length are needed, not {len(gold_I)}, {len(original_I)}, {len(swapped_I)}"
        )
    if strange := {*gold_I, *original_I, *swapped_I} - {1, 2, None}:
        raise ValueError(f"labels are 1, 2 or None, not {sorted(map(str, strange))}")
    runs = list(zip(gold_I, original_I, swapped_I, strict=True))
    kappa = cohen_kappa(
        [o == 1 for o in original_I], [s == 1 for s in swapped_I], settings=IntervalSettings(resamples=1)
    )
    return LlmBarStatistics(
        items=len(runs),
        right_original=sum(gold == original for gold, original, _ in runs),
        right_swapped=sum(gold == swapped for gold, _, swapped in runs),
        right_both=sum(gold == original == swapped for gold, original, swapped in runs),
        same=sum(original == swapped for _, original, swapped in runs),
        kappa=kappa.estimate,
    )


def llmbar(folder: Path) -> Iterator[Row]:
    """Of the 65 judges and prompts: in how many is each statistic equal to the published one."""
    runs: dict[tuple[str, str], list[dict[str, str]]] = {}
    with gzip.open(folder / "llmbar" / "verdicts_natural.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            runs.setdefault((row["judge"], row["strategy"]), []).append(row)
    expected = read_csv(folder / "llmbar" / "expected_statistics_natural.csv")
    found = {key: statistics(run) for key, run in runs.items()}
    cells: dict[str, Callable[[Mapping[str, str], LlmBarStatistics], bool]] = {
        "accuracy, original order": lambda e, f: count(e["correct_False"]) == (f.right_original, f.items),
        "accuracy, swapped order": lambda e, f: count(e["correct_True"]) == (f.right_swapped, f.items),
        "accuracy, mean": lambda e, f: abs(float(e["correct_average"].rstrip("%")) - 100 * f.accuracy) < 1e-9,
        "right in both orders": lambda e, f: count(e["correct_both"]) == (f.right_both, f.items),
        "same in both orders": lambda e, f: count(e["equal"]) == (f.same, f.items),
        "kappa between the orders": lambda e, f: abs(float(e["kappa_agreement"]) - f.kappa) < 1e-12,
    }
    for name, equal in cells.items():
        agreeing = sum(equal(e, found[e["judge"], e["strategy"]]) for e in expected)
        yield Row(f"LLMBar-Natural, judges and prompts with equal {name}", len(expected), agreeing, 0)
    vanilla = {judge: found[judge, "Vanilla"] for judge in ("GPT-4", "ChatGPT", "LLaMA2", "Falcon")}
    for judge, same in {"GPT-4": 95, "ChatGPT": 71, "LLaMA2": 79, "Falcon": 52}.items():
        yield Row(f"LLMBar-Natural, {judge} Vanilla: same in both orders, %", same, vanilla[judge].same, 0)


def statistics(run: list[dict[str, str]]) -> LlmBarStatistics:
    original, swapped = (
        [int(row[key]) if row[key] else None for row in run] for key in ("winner_original", "winner_swapped")
    )
    return llmbar_statistics([int(row["label"]) for row in run], original, swapped)


def count(cell: str) -> tuple[int, int]:
    """``81 / 100 = 81.0%``"""
    part, whole = cell.partition("=")[0].split("/")
    return int(part), int(whole)


# ---- Krippendorff --------------------------------------------------------------------------------------------------


def krippendorff(folder: Path) -> Iterator[Row]:
    with (folder / "bradley_terry" / "krippendorff_codings.csv").open(encoding="utf-8", newline="") as file:
        raters = [[float(cell) if cell else None for cell in row] for row in csv.reader(file)]
    items = list(zip(*raters, strict=True))
    yield Row("Krippendorff's alpha of the worked example, nominal", 0.7434, krippendorff_alpha(items).estimate, 5e-5)
    numbers = [[cell for cell in item if cell is not None] for item in items]
    totals = Counter(cell for item in numbers if len(item) > 1 for cell in item)

    def ranks_between(c: float, k: float) -> float:
        within = sum(n for value, n in totals.items() if min(c, k) <= value <= max(c, k))
        return (within - (totals[c] + totals[k]) / 2) ** 2

    yield Row("... ordinal", 0.815, alpha_of_numbers(numbers, ranks_between), 5e-4)
    yield Row("... interval", 0.849, alpha_of_numbers(numbers, lambda c, k: (c - k) ** 2), 5e-4)


def alpha_of_numbers(items: Sequence[Sequence[float]], distance: Callable[[float, float], float]) -> float:
    """Krippendorff's alpha of numbers with a distance of two of them (Krippendorff 2011)."""
    pairable = [item for item in items if len(item) > 1]
    values = [value for item in pairable for value in item]
    observed = sum(distance(c, k) / (len(item) - 1) for item in pairable for c in item for k in item)
    return 1 - (len(values) - 1) * observed / sum(distance(c, k) for c in values for k in values)


# ---- XSTest --------------------------------------------------------------------------------------------------------

XSTEST = {
    # model, label: full compliance, full refusal, partial refusal in percent of the safe prompts, then of the unsafe ones
    ("llama2orig", "people"): (40.4, 38.0, 21.6, 0.0, 99.5, 0.5),
    ("llama2orig", "string match"): (51.6, 48.4, 0.0, 2.0, 98.0, 0.0),
    ("llama2orig", "GPT-4"): (64.0, 30.4, 5.6, 15.0, 85.0, 0.0),
    ("gpt4", "people"): (91.6, 6.4, 2.0, 0.5, 97.5, 2.0),
    ("gpt4", "string match"): (86.8, 13.2, 0.0, 4.0, 96.0, 0.0),
    ("gpt4", "GPT-4"): (93.6, 6.4, 0.0, 12.0, 88.0, 0.0),
}
XSTEST_KINDS = {
    # kind: full refusals, partial refusals in percent as people label them; Llama 2 with its first system prompt, GPT-4
    "homonyms": (28, 24, 0, 0),
    "contrast_homonyms": (100, 0, 96, 4),
    "figurative_language": (12, 68, 0, 0),
    "contrast_figurative_language": (100, 0, 100, 0),
    "safe_targets": (40, 24, 0, 0),
    "contrast_safe_targets": (100, 0, 100, 0),
    "safe_contexts": (96, 4, 0, 4),
    "contrast_safe_contexts": (100, 0, 100, 0),
    "definitions": (40, 16, 4, 0),
    "contrast_definitions": (100, 0, 100, 0),
    "nons_group_real_discr": (60, 16, 0, 8),
    "real_group_nons_discr": (16, 24, 0, 0),
    "contrast_discr": (100, 0, 92, 4),
    "historical_events": (32, 4, 0, 0),
    "contrast_historical_events": (100, 0, 100, 0),
    "privacy_public": (12, 0, 8, 4),
    "privacy_fictional": (44, 36, 52, 4),
    "contrast_privacy": (96, 4, 92, 8),
}
XSTEST_RATERS = {"llama2orig": (96.4, 0.93), "gpt4": (98.4, 0.97)}
"""Raw agreement of the two people in percent, Fleiss' kappa."""


def xstest(folder: Path) -> Iterator[Row]:
    prompts = load_safety_rows(str(folder / "xstest" / "xstest_prompts.csv"))
    for number, (model, (raw, kappa)) in enumerate(XSTEST_RATERS.items()):
        path = folder / "xstest" / f"completions_{model}_human_and_gpt4_labels.csv"
        replies = {row["id"].removeprefix("v2-"): row["completion"] for row in read_csv(path)}
        labels: dict[str, dict[str, Label | None]] = {
            "people": of_prompts(load_labels(path, "final_label")),
            "GPT-4": of_prompts(load_labels(path, "gpt4_label")),
            "string match": {key: xstest_label(reply) for key, reply in replies.items()},
        }
        for label, found in labels.items():
            table = refusal_table(prompts, found)
            published = iter(XSTEST[model, label])
            for part, counts in (("safe", table.safe), ("unsafe", table.unsafe)):
                for kind in ("full_compliance", "full_refusal", "partial_refusal"):
                    share = 100 * getattr(counts, kind) / counts.labelled
                    yield Row(f"XSTest {model}, {label}: {kind} on {part} prompts, %", next(published), share, 0.05)
        by_kind = refusal_table(prompts, labels["people"]).by_kind
        for kind, percents in XSTEST_KINDS.items():
            counts = by_kind[kind]
            for what, percent in zip(("full_refusal", "partial_refusal"), percents[2 * number :], strict=False):
                share = 100 * getattr(counts, what) / counts.labelled
                yield Row(f"XSTest {model}, people: {what} on {kind}, %", percent, share, 0.5)
        one, two = (list(load_labels(path, column).values()) for column in ("annotation_1", "annotation_2"))
        yield Row(f"XSTest {model}: raw agreement of two people, %", raw, 100 * raw_agreement(one, two).estimate, 0.05)
        kinds = ("full_compliance", "full_refusal", "partial_refusal")
        counts_IC = [[pair.count(kind) for kind in kinds] for pair in zip(one, two, strict=True)]
        yield Row(f"XSTest {model}: Fleiss' kappa of two people", kappa, fleiss_kappa(counts_IC), 5e-3)


def fleiss_kappa(counts_IC: Sequence[Sequence[int]]) -> float:
    """Fleiss' kappa (Fleiss 1971): ``counts_IC[i][c]`` of equally many raters put item i into category c."""
    counts = np.asarray(counts_IC, dtype=np.float64)
    raters = counts[0].sum()
    agreement = ((counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))).mean()
    chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return float((agreement - chance) / (1 - chance))


def of_prompts(labels: Mapping[str, Label | None]) -> dict[str, Label | None]:
    """Replies are numbered v2-1, prompts 1."""
    return {key.removeprefix("v2-"): label for key, label in labels.items()}


# ---- files -------------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def main() -> int:
    return run_script({"Judges, votes, agreement and refusals": rows})


if __name__ == "__main__":
    sys.exit(main())
