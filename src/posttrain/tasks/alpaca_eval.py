"""AlpacaEval 2: how probable a judge finds it that a model's reply is better than the baseline's, raw and at equal length.

Dubois et al. 2024, arXiv:2404.04475; statistics and the published regression are those of ``posttrain.stats.length_controlled``. The judge names one
of two replies with one token, weighted by its probability, as AlpacaEval's ``weighted_alpaca_eval_gpt4_turbo`` does; the prompt is our
own. We ask in both orders and take the mean; ``orders: published`` asks once, in AlpacaEval's drawn order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from posttrain.errors import DataError
from posttrain.generate.engine import Sampling
from posttrain.judge.judge import Judgment
from posttrain.judge.pool import Judges
from posttrain.judge.prompts import load_prompt
from posttrain.judge.verdicts import Missing, mirrored
from posttrain.judge.win_rates import POINTS
from posttrain.references import NamesFile
from posttrain.stats.intervals import IntervalSettings
from posttrain.stats.length_controlled import (
    PublishedGlm,
    length_controlled_win_rate,
    read_published_glm,
    shown_swapped,
    win_rate,
)
from posttrain.tasks.base import Answer, Findings, Needs, Task, Value
from posttrain.tasks.matches import (
    OWN_PROMPT,
    WIN_RATE,
    BaselineReply,
    Match,
    against_baseline,
    baseline_text,
    judge_pairings,
    match_findings,
    match_notes,
    one_model,
)
from posttrain.tasks.records import Area, LengthControlled, LengthControlledRow, Measure, Result
from posttrain.tasks.rows import file_rows, keep_shares, label_of, text_of

DISCRETE = "discrete"
LENGTH_CONTROLLED = "length_controlled"
MOST_REFITS = 1_000
"""Bootstrap draws of the length-controlled win rate at most: each fits the regression again."""

_MEASURES = (
    Measure(
        WIN_RATE,
        "Win rate, weighted",
        about="Mean probability, by the judge, that the reply is better than the baseline's.",
        headline=True,
    ),
    Measure(
        DISCRETE,
        "Win rate, discrete",
        about="Wins plus half of the ties; with both orders a win is what both agree on.",
    ),
    Measure(
        LENGTH_CONTROLLED,
        "Win rate at equal length",
        about="The win rate that a regression predicts for replies as long as the baseline's.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class AlpacaEvalBenchmark:
    """AlpacaEval 2: win rate against a baseline's replies, weighted by the judge's probabilities, raw and length-controlled.

    The judge must give log-probabilities (a reward model's verdict counts 1, 1/2 or 0). A reply cut at ``max_tokens`` is judged as it
    stands. Without the four published files, or with other prompts than the published ones, length control knows nothing of
    the instructions: it is then fitted on length and quality alone, which is another quantity than the leaderboard's.
    """

    title: ClassVar[str] = "AlpacaEval 2"
    area: ClassVar[Area] = "helpfulness"
    measures: ClassVar[tuple[Measure, ...]] = _MEASURES

    name: Literal["alpaca_eval"]
    path: Annotated[str, NamesFile()]
    """Rows with ``instruction`` and, for ``baseline: file``, ``output`` and ``generator``: a model_outputs.json of AlpacaEval."""
    baseline: Literal["file", "first"] = "file"
    """Whose replies the models are compared with: the outputs in the file, or the stage's first model."""
    orders: Literal["plan", "published"] = "plan"
    """``plan``: as the stage's judge plan says (both orders unless it says otherwise); ``published``: one order, drawn as AlpacaEval does."""
    max_prompts: Annotated[int, Ge(1)] | None = None
    """Ask only so many: the first of every ``dataset``, which keeps its share; null = all."""
    max_tokens: Annotated[int, Ge(1)] = 2048
    """Longest reply in tokens."""
    temperature: Annotated[float, Ge(0)] = 0.0
    """0 = greedy. (The leaderboard leaves this to those who submit.)"""
    difficulty: Annotated[str, NamesFile()] | None = None
    """The published regression's instruction difficulties: a CSV with ``instruction_difficulty``. Give all four files or none."""
    instructions: Annotated[str, NamesFile()] | None = None
    """A CSV with ``len_baseline``, the characters of the published baseline's replies."""
    lengths: Annotated[str, NamesFile()] | None = None
    """A CSV with the reply lengths of ``gpt4_1106_preview_verbose`` and ``_concise``."""
    gamed: Annotated[str, NamesFile()] | None = None
    """A JSON object with ``sum_y_tanh`` and ``sum_y_difficulty`` of these two."""

    def __post_init__(self) -> None:
        given = [one is not None for one in (self.difficulty, self.instructions, self.lengths, self.gamed)]
        if any(given) and not all(given):
            raise ValueError("difficulty, instructions, lengths and gamed belong together: give all four or none")
        if any(given) and self.baseline == "first":
            raise ValueError("the published regression is about the published baseline: use baseline: file with it")

    @property
    def needs(self) -> Needs:
        """A judge; two models where the first one is the baseline."""
        return Needs(judge=True, two_models=self.baseline == "first")

    def tasks(self) -> tuple[Task, ...]:
        """One task an instruction; its id is its number in the file, from 0, as in the published files.

        Raises:
            DataError: a file that can't be read (also of the published regression), a row without an instruction or a needed output.

        """
        self._published()  # what can't be read is told before replies are made
        rows = list(file_rows(self.path))
        if not rows:
            raise DataError("there are no instructions in this file", where=self.path, fix="give a model_outputs.json")
        tasks: list[Task] = []
        for number, (origin, row) in enumerate(rows):
            expected = None
            if self.baseline == "file":
                generator = label_of(row, "generator", origin) or "baseline"
                expected = BaselineReply(generator, baseline_text(row, "output", origin))
                one_model(expected, tasks[0].expected if tasks else expected, origin)
            tasks.append(
                Task(
                    id=str(number),
                    turns=(text_of(row, "instruction", origin),),
                    sampling=Sampling(temperature=self.temperature, max_tokens=self.max_tokens),
                    category=label_of(row, "dataset", origin),
                    language=label_of(row, "language", origin),
                    expected=expected,
                )
            )
        return tuple(keep_shares(tasks, [task.category for task in tasks], self.max_prompts))

    def judge(self, answers: Mapping[str, Sequence[Answer]], judges: Judges, settings: IntervalSettings) -> Findings:
        """Compare every model with the baseline."""
        baseline, pairs = against_baseline(answers, from_file=self.baseline == "file")
        models = [model for model in answers if model != baseline]
        matches, notes = self._judged(pairs, judges)
        shares = {
            (match.model_a, match.task.id, 0): share for match in matches if (share := share_of_a(match)) is not None
        }
        categories = {match.task.id: match.task.category for match in matches}
        controlled, results, lc_notes = self._length_control(matches, models, baseline, settings)
        found = match_findings(
            answers,
            matches,
            settings,
            baseline=baseline if self.baseline == "first" else None,
            measure=DISCRETE,
            values=[
                Value(model, task, WIN_RATE, share, categories[task]) for (model, task, _), share in shares.items()
            ],
            points={key: {WIN_RATE: share} for key, share in shares.items()},
            notes=[OWN_PROMPT.format(title=self.title), *notes, *match_notes(matches, len(models)), *lc_notes],
            length_controlled=controlled,
            results=results,
        )
        remarks = dict(found.remarks)
        for key, share in shares.items():
            remarks[key] = replace(remarks[key], detail=f"Better with probability {share:.1%}. {remarks[key].detail}")
        return replace(found, remarks=remarks)

    def _judged(self, pairs: Sequence[Match], judges: Judges) -> tuple[list[Match], list[str]]:
        """Matches, and what must be told of the way the judges were asked."""
        prompt, plan, notes = load_prompt("binary", "pair", judges.language), judges.plan, []
        if plan.samples > 1:
            plan = replace(plan, samples=1)
            notes.append("One draw of every question: the judge's probabilities do not change from draw to draw.")
        if self.orders == "plan":
            return judge_pairings(pairs, judges, prompt, plan), notes
        matches = []
        for order, swapped in _PUBLISHED_ORDERS:
            chosen = [pair for pair in pairs if shown_swapped(pair.task.turns[0]) is swapped]
            matches += judge_pairings(chosen, judges, prompt, replace(plan, orders=order))
        notes.append(
            "One order, drawn once per instruction as AlpacaEval does: what order does to this judge is in the numbers."
        )
        return matches, notes

    # ---- length control

    def _published(self) -> PublishedGlm | None:
        files = {key: getattr(self, key) for key in ("difficulty", "instructions", "lengths", "gamed")}
        return None if None in files.values() else read_published_glm(**{k: Path(file) for k, file in files.items()})

    def _length_control(
        self, matches: Sequence[Match], models: Sequence[str], baseline: str, settings: IntervalSettings
    ) -> tuple[LengthControlled | None, list[Result], list[str]]:
        """Length-controlled win rates, the results made of them, and what a reader must know of them."""
        published = self._published()
        judge = " + ".join(dict.fromkeys(name for match in matches for name in match.judgments))
        rows: list[LengthControlledRow] = []
        results: list[Result] = []
        notes: list[str] = []
        reasons: dict[str, None] = {}
        for model in models:
            own = [match for match in matches if match.model_a == model]
            preferences = [math.nan if share is None else 1 + share for share in map(share_of_a, own)]
            outcomes = [outcome for match in own for outcome in match.outcomes.values()]
            try:
                raw = win_rate(preferences)
            except DataError as error:
                notes.append(f"{model}: no win rate: {error.problem}.")
                continue
            row = LengthControlledRow(
                model,
                win_rate=raw.win_rate,
                standard_error=None if math.isnan(raw.standard_error) else raw.standard_error,
                discrete=100 * fmean(POINTS[outcome] for outcome in outcomes if not isinstance(outcome, Missing)),
                n=raw.judged,
            )
            try:
                found = length_controlled_win_rate(
                    preferences,
                    [len(match.replies_a[0]) for match in own],
                    [len(match.replies_b[0]) for match in own],
                    judge=f"{judge} with posttrain's own prompt",
                    published=published,
                    instructions_I=[int(match.task.id) for match in own],
                    settings=replace(settings, resamples=min(settings.resamples, MOST_REFITS)),
                )
            except DataError as error:
                rows.append(row)
                notes.append(f"{model}: no length-controlled win rate: {error.problem}.")
                continue
            notes += [f"{model}: {warning}." for warning in found.warnings]
            reasons |= {found.not_comparable: None} if found.not_comparable else {}
            estimate, low, high, _ = found.interval
            rows.append(replace(row, length_controlled=estimate, low=low, high=high))
            ends = estimate / 100, low / 100, high / 100
            results.append(Result(model, LENGTH_CONTROLLED, None, *ends, values=raw.judged, prompts=raw.judged))
        if not rows:
            return None, [], notes
        why_not = "; ".join(reasons) if results else "nothing could be fitted"
        if reasons:
            notes.append(f"The win rate at equal length must not stand beside the leaderboard's: {why_not}.")
        return LengthControlled(baseline, not why_not, why_not or None, tuple(rows)), results, notes


_PUBLISHED_ORDERS: tuple[tuple[Literal["original", "swapped"], bool], ...] = (("original", True), ("swapped", False))
"""Our orders, and whether AlpacaEval calls that swapped: the model, our a, is shown first."""


# ---- weighted verdicts ---------------------------------------------------------------------------------------------


def share_of_a(match: Match) -> float | None:
    """How probable it is that a's reply is the better one: mean over a judge's judgments, then over the judges that have it.

    A judge that left one of its judgments without a verdict has none: with both orders one alone would carry the order's effect.
    None where no judge has one; 1/2 where the replies are the same.
    """
    if match.same:
        return 0.5
    by_judge = []
    for judgments in match.judgments.values():
        known = [share for judgment in judgments if (share := _judgment_share(judgment)) is not None]
        if len(known) == len(judgments):
            by_judge.append(fmean(known))
    return fmean(by_judge) if by_judge else None


def _judgment_share(judgment: Judgment) -> float | None:
    """The share of one judgment that goes to model a: by probability, else 1, 1/2 or 0 for the verdict."""
    swapped = judgment.ask.order == "swapped"
    if judgment.to_second is not None:
        return judgment.to_second if swapped else 1 - judgment.to_second
    if isinstance(judgment.value, Missing | float | int):
        return None
    return POINTS[mirrored(judgment.value) if swapped else judgment.value]
