"""By likelihood: of several answers to one instruction the likeliest (GRAPE)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import polars as pl
from annotated_types import Ge

from posttrain.data.engine import map_rows
from posttrain.data.rows import conversations
from posttrain.data.select.gates import Gates, passing
from posttrain.data.select.outcome import Outcome, row_table, scored_rows, short
from posttrain.data.select.signals import Context
from posttrain.data.split import prompt_key


@dataclass(frozen=True, kw_only=True)
class Grape:
    """Of several answers to one instruction keep the likeliest under the base model (GRAPE, arXiv 2502.04194)."""

    method: Literal["grape"]
    gates: Gates = field(default_factory=Gates)
    """What an answer must pass to be a candidate."""
    min_candidates: Annotated[int, Ge(2)] = 2
    """Fewest candidates for a choice."""
    alone: Literal["keep", "drop"] = "keep"
    """What happens to the candidates of instructions that have fewer."""

    def choose(self, context: Context) -> Outcome:
        """What the rule keeps of the rows."""
        found = map_rows(instruction_keys, context.rows_file, ["messages", "tools"], context.run, "instructions")
        keys = pl.Series("instruction", [key for _, part in found for key in part], dtype=pl.String)
        table = row_table(context, [context.signal("mean_logp"), keys])
        outcome = Outcome(table, ["mean_logp"])
        value, count = pl.col("mean_logp"), pl.col("candidates")
        scored = scored_rows(passing(self.gates, table, context, outcome), "mean_logp", context, outcome)
        candidates = scored.sort(-value, "place").with_columns(
            candidates=pl.len().over("instruction"),
            best=value.first().over("instruction"),
            winner=pl.col("id").first().over("instruction"),
            rank=pl.int_range(1, pl.len() + 1).over("instruction"),
        )
        enough, first = count >= self.min_candidates, pl.col("rank") == 1
        few, many = candidates.filter(~enough), candidates.filter(enough)
        must = f">= {self.min_candidates}" if self.alone == "drop" else "any"
        needed = pl.lit(self.min_candidates)
        detail = pl.format("{} candidates for this instruction, at least {} are needed", count, needed)
        stays = enough | pl.lit(self.alone == "keep")
        outcome.check(candidates, "candidates", count, must, stays, "alone", detail)
        best = short(pl.col("best"))
        detail = pl.format("mean log-prob {}, the likeliest of {} has {}", short(value), count, best)
        limit = pl.format("highest of {} ({})", count, best)
        outcome.check(many, "mean_logp", value, limit, first, "less_likely", detail, pl.col("winner"))
        sizes = candidates.filter(first)["candidates"].value_counts().sort("candidates")
        outcome.facts["groups"] = {
            "instructions": int(table["instruction"].n_unique()),
            "with_a_choice": int(many["instruction"].n_unique()),
            "alone": len(few),
            "candidates": {str(size): count for size, count in sizes.iter_rows()},
        }
        return outcome


def instruction_keys(block: pl.DataFrame) -> list[str]:
    """Equal for rows that differ in nothing but the assistant's turns: the same turns of others, the same tools."""
    return [
        prompt_key([message for message in messages if message.role != "assistant"]) + tools
        for messages, tools in zip(conversations(block), block["tools"].to_list(), strict=True)
    ]
