"""The select step: which of the good rows are worth training on, with a verdict for every row that was judged.

See docs/data-selection.md. A method is one small class: its settings, and ``choose``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from annotated_types import MinLen
from pydantic import Discriminator

from posttrain.data.rows import refuse_prompts
from posttrain.data.select.agreement import agreement
from posttrain.data.select.apart import Deita, Diversity, FewButGood
from posttrain.data.select.difficulty import Ifd, Medium
from posttrain.data.select.grape import Grape
from posttrain.data.select.signals import Context
from posttrain.data.steps import REJECTS, VERDICTS, Decisions, StepRun

LABELS = ("very easy", "easy", "medium", "hard", "very hard")
"""The difficulty labels of Magpie (Xu et al. 2024, arXiv 2406.08464)."""
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}

Rule = Annotated[Medium | Ifd | Grape | Diversity | Deita | FewButGood, Discriminator("method")]


@dataclass(frozen=True, kw_only=True)
class SelectStep:
    """Choose rows by what they are worth: by difficulty, by likelihood, by quality, and apart from each other."""

    kind: Literal["select"]
    rule: Rule
    """How to choose."""
    scored_by: str | None = None
    """Which scores to read where several models gave them: the beginning of their ``by``, for example the model's name."""
    labels: Annotated[tuple[str, ...], MinLen(1)] = LABELS
    """Texts under a ``meta.KEY``, from low to high (easy to hard, bad to good); they count 1, 2, 3 and so on."""
    unscored: Literal["drop", "keep"] = "drop"
    """What happens to rows without the signal the rule needs. Where no row has it, that is an error."""
    compare: tuple[str, ...] = ("loss", "ifd", "length")
    """Signals whose agreement is reported beside those of the rule, as far as the rows carry them."""

    def decide(self, rows_file: Path, seed: int, run: StepRun) -> Decisions:
        """Choose rows. The order of the rows plays no part; the seed only where no signal orders them.

        Raises DataError where no row carries the signal the rule needs, or several models gave it.
        """
        if not isinstance(self.rule, Diversity):
            refuse_prompts(rows_file)
        context = Context(rows_file, self.labels, self.scored_by, self.unscored, seed, run)
        outcome = self.rule.choose(context)
        rejects = pl.concat([pl.DataFrame(schema=REJECTS), *outcome.rejects])
        table, signals = _compared(outcome.table, outcome.signals, self.compare, context)
        decided = table.with_columns(kept=~pl.col("row").is_in(rejects["row"].to_list()))
        return Decisions(
            rejects=rejects,
            verdicts=pl.concat([pl.DataFrame(schema=VERDICTS), *outcome.verdicts]),
            tables={"signals": decided.sort("row").select("id", "source", "kept", *signals)},
            facts={
                "rule": dataclasses.asdict(self.rule),
                "rows": len(decided),
                "kept": int(decided["kept"].sum()),
                "dropped": dict(rejects.group_by("reason").len().sort("reason").iter_rows()),
                "sources": _source_facts(decided, signals),
                **outcome.facts,
                "agreement": agreement(decided, signals),
            },
            notes=outcome.notes,
        )


def _compared(
    table: pl.DataFrame, used: Sequence[str], compare: Sequence[str], context: Context
) -> tuple[pl.DataFrame, list[str]]:
    """The table with the signals whose agreement is asked for, as far as any row has them, and the names of all."""
    names = list(used)
    for name in compare:
        if name in names or (name == "loss" and "mean_logp" in names):  # the same number with the other sign
            continue
        values = context.read(name)
        if values.null_count() < len(values):
            table = table.with_columns(values.gather(table["row"]).alias(name))
            names.append(name)
    return table, names


def _source_facts(table: pl.DataFrame, signals: Sequence[str]) -> dict[str, Any]:
    """Source -> rows, kept, and the quantiles of every signal over all its rows."""
    facts: dict[str, Any] = {}
    for part in table.sort("source", maintain_order=True).partition_by("source", maintain_order=True):
        found: dict[str, Any] = {"rows": len(part), "kept": int(part["kept"].sum())}
        for name in signals:
            values = part[name].drop_nulls()
            quantiles = {label: values.quantile(q, "linear") for label, q in QUANTILES.items()}
            found[name] = {"rows": len(values)} | (quantiles if len(values) else {})
        facts[str(part["source"][0])] = found
    return facts
