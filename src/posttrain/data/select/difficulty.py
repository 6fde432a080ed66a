"""By difficulty: a band of a signal, and the rows with which the prompt helps least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import polars as pl
from annotated_types import Gt

from posttrain.data.select.gates import Share
from posttrain.data.select.outcome import Outcome, num_wanted, row_table, scored_rows, short
from posttrain.data.select.signals import Context
from posttrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Medium:
    """Keep what is neither easy nor hard: a band between two quantiles of a signal, source by source."""

    method: Literal["medium"]
    signal: str = "loss"
    """A score the rows carry (``loss``, ``ifd``, a judge's), ``length``, or ``meta.KEY``: numbers, or ``labels`` of the step."""
    low: Share = 0.25
    """Lower end of the band, as a share of the source's rows."""
    high: Share = 0.75
    """Upper end of the band."""

    def choose(self, context: Context) -> Outcome:
        """What the rule keeps of the rows."""
        if self.low >= self.high:
            raise ConfigError(
                f"the band is empty: low {self.low} is not below high {self.high}",
                where="select.rule",
                fix="for example low: 0.25, high: 0.75",
            )
        name, value = self.signal, pl.col(self.signal)
        table = row_table(context, [context.signal(name)])
        outcome = Outcome(table, [name])
        scored = scored_rows(table, name, context, outcome).with_columns(
            low=value.quantile(self.low, "linear").over("source"),
            high=value.quantile(self.high, "linear").over("source"),
        )
        ends = pl.format("{} to {}", short(pl.col("low")), short(pl.col("high")))
        band = f"{self.low:.4g} to {self.high:.4g} of the source's rows"
        detail = pl.format("{} {} is outside {} ({})", pl.lit(name), short(value), ends, pl.lit(band))
        side = pl.when(value < pl.col("low")).then(pl.lit("below_band")).otherwise(pl.lit("above_band"))
        outcome.check(scored, name, value, ends, value.is_between("low", "high"), side, detail)
        edges = scored.group_by("source").agg(pl.len().alias("rows"), pl.col("low").first(), pl.col("high").first())
        outcome.facts["edges"] = {
            source: {"rows": rows, "low": low, "high": high}
            for source, rows, low, high in edges.sort("source").iter_rows()
        }
        return outcome


@dataclass(frozen=True, kw_only=True)
class Ifd:
    """Keep what the prompt helps with least, but helps (Cherry: Li et al. 2024, arXiv 2308.12032)."""

    method: Literal["ifd"]
    limit: Annotated[float, Gt(0)] = 1.0
    """Rows above are dropped first: the prompt does not help at all."""
    top: Annotated[float, Gt(0)] | None = 0.1
    """How many of a source's rows to keep, the highest IFD first: a share of the scored ones below 1, otherwise a number;
    null: all within the limit. The paper takes 5 to 15 %."""

    def choose(self, context: Context) -> Outcome:
        """What the rule keeps of the rows."""
        table = row_table(context, [context.signal("ifd")])
        outcome = Outcome(table, ["ifd"])
        scored = scored_rows(table, "ifd", context, outcome)
        value, helps = pl.col("ifd"), pl.col("ifd") <= self.limit
        detail = pl.format("IFD {} is above {}", short(value), pl.lit(f"{self.limit:g}"))
        outcome.check(scored, "ifd", value, f"<= {self.limit:g}", helps, "prompt_does_not_help", detail)
        tops: dict[str, Any] = {}
        for part in scored.partition_by("source", maintain_order=True):
            source, helped = str(part["source"][0]), part.filter(helps).sort(-value, "place")
            wanted = len(helped) if self.top is None else num_wanted(self.top, len(part), "select.rule.top")
            ranked = helped.with_columns(rank=pl.int_range(1, pl.len() + 1))
            limit = f"<= {wanted} (of {len(part)} rows of {source})"
            rank, detail = pl.col("rank"), pl.format("rank {} by IFD, {}", "rank", pl.lit(limit))
            outcome.check(ranked, "ifd_rank", rank, limit, rank <= wanted, "not_among_the_highest", detail)
            chosen = helped["ifd"].head(wanted)
            tops[source] = {
                "rows": len(part),
                "above_limit": len(part) - len(helped),
                "kept": len(chosen),
                "lowest_kept": chosen.min(),
            }
        outcome.facts["tops"] = dict(sorted(tops.items()))
        return outcome
