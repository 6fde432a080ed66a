"""All rules, in the order in which what they find is told. To add one: a function, a line here, its words in ``words.yaml``."""

from __future__ import annotations

from posttrain.doctor import preferences, rows, training
from posttrain.doctor.course import FEWEST_STEPS
from posttrain.doctor.evidence import EvalEvidence, TrainEvidence
from posttrain.doctor.findings import Rule
from posttrain.table import Table

OF_TRAINING: Table[Rule[TrainEvidence]] = Table(
    "rule",
    {
        "loss_rises": Rule(
            examine=training.loss_rises,
            threshold=f"smoothed loss climbs by {training.RISE:.0%} of its start and {training.RISE_NOISE:g} standard errors; at least {FEWEST_STEPS} steps",
            source="ours",
        ),
        "loss_at_start": Rule(
            examine=preferences.loss_at_start,
            applies=preferences.starts_somewhere,
            threshold=f"within {preferences.NEAR_START:.0%} of the untrained loss after the last step",
            source="LLaMA-Factory#8974; the share is ours",
        ),
        "chosen_falls": Rule(
            examine=preferences.chosen_falls,
            applies=preferences.of_pairs,
            threshold=f"falls by {preferences.CHOSEN_FALL:g} nat a reply; alarm: more than {preferences.FALLING_WITH:g} of the rejected one's fall, or {preferences.NLL_RISE:.0%} of its start",
            source="trl#800, arXiv:2410.08847",
        ),
        "accuracy_chance": Rule(
            examine=preferences.accuracy_chance,
            applies=preferences.of_pairs,
            threshold="the 95% interval of the held-out accuracy includes 50%; alarm: lies below it",
            source="ours",
        ),
        "rows_dropped": Rule(
            examine=rows.rows_dropped,
            threshold=f"more than {rows.MANY_DROPPED:.0%} of the rows",
            source="ours",
        ),
    },
)
OF_EVALUATION: Table[Rule[EvalEvidence]] = Table("rule", {})
OF_JUDGES: Table[Rule[EvalEvidence]] = Table("rule", {})
