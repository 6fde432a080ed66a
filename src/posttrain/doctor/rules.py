"""All rules, in the order in which what they find is told. To add one: a function, a line here, its words in ``words.yaml``."""

from __future__ import annotations

from posttrain.doctor import evaluation, models, online, preferences, rows, training
from posttrain.doctor.course import FEWEST_STEPS
from posttrain.doctor.evidence import EvalEvidence, JudgeEvidence, TrainEvidence
from posttrain.doctor.findings import Rule
from posttrain.report.words import FEW_ROWS
from posttrain.table import Table

OURS = "ours"
"""Who says so: nobody but the seeded faults and healthy runs of docs/doctor.md."""

OF_TRAINING: Table[Rule[TrainEvidence]] = Table(
    "rule",
    {
        "failed": Rule(
            examine=training.failed,
            threshold="the stage failed, or a loss is not finite",
            source="the run's own error",
        ),
        "loss_high_at_start": Rule(
            examine=training.loss_high_at_start,
            applies=rows.of_conversations,
            threshold=f"first loss above {training.NEAR_GUESSING:g} ln(vocabulary)",
            source=OURS,
        ),
        "loss_rises": Rule(
            examine=training.loss_rises,
            threshold=f"smoothed, it climbs by {training.RISE:.0%} of its start and {training.RISE_NOISE:g} standard errors; {FEWEST_STEPS} steps needed",
            source=OURS,
        ),
        "margin_saturated": Rule(
            examine=preferences.margin_saturated,
            applies=preferences.saturates,
            threshold=f"last tenth of the steps: accuracy {preferences.RIGHT:.0%}, gradient weight below 0.05 in {preferences.SATURATED:.0%} of the pairs",
            source="the gradient of arXiv:2305.18290, eq. 7; " + OURS,
        ),
        "reference_mismatch": Rule(
            examine=preferences.reference_mismatch,
            applies=preferences.has_reference,
            threshold=f"loss before the first step more than {preferences.NEAR_START:.0%} off the untrained one",
            source="LLaMA-Factory#8974",
        ),
        "stop_untrained": Rule(
            examine=rows.stop_untrained,
            threshold=f"fewer than {rows.FEW_STOPS:.0%} of the replies end in a stop that is learned",
            source="trl#5988, axolotl#3754; the share is " + OURS,
        ),
        "identical_pairs": Rule(
            examine=preferences.identical_pairs,
            applies=preferences.of_pairs,
            threshold=f"{preferences.FEW_EQUAL:.0%} equal after encoding; alarm: {preferences.MANY_EQUAL:.0%}, or {preferences.MANY_ALIKE:.0%} share 90% of their tokens",
            source="rlhf-book#503, arXiv:2402.13228; shares are " + OURS,
        ),
        "duplicates": Rule(
            examine=rows.duplicates,
            threshold=f"more than {rows.SOME_AGAIN:.0%} of the examples, or of their replies of 16 tokens and more, stood before; alarm: {rows.MANY_AGAIN:.0%}",
            source=OURS,
        ),
        "loss_at_start": Rule(
            examine=preferences.loss_at_start,
            applies=preferences.starts_somewhere,
            threshold=f"after training within {preferences.NEAR_START:.0%} of the untrained loss; alarm: within 0.001 of ln 2, or that share",
            source="LLaMA-Factory#8974",
        ),
        "loss_flat": Rule(
            examine=training.loss_flat,
            applies=lambda seen: not preferences.starts_somewhere(seen),
            threshold=f"held-out loss fell by less than {training.FLAT:.0%} (alarm: and by less than {training.ERRORS:g} standard errors, paired over rows); without one, the training loss by less than {training.FLAT_STEPS:.0%} beyond its noise",
            source=OURS,
        ),
        "held_out_rises": Rule(
            examine=training.held_out_rises,
            threshold=f"{training.PASSED} evaluations, the last among them, more than {training.ERRORS:g} standard errors (paired over rows) above the lowest",
            source=OURS,
        ),
        "chosen_falls": Rule(
            examine=preferences.chosen_falls,
            applies=preferences.of_text,
            threshold=f"falls by {preferences.CHOSEN_FALL:g} nat a reply while the margin grows; alarm: more than {preferences.FALLING_WITH:g} of the rejected one's fall, or {preferences.NLL_RISE:.0%} of its start",
            source="trl#800, arXiv:2410.08847",
        ),
        "kl_runaway": Rule(
            examine=preferences.kl_runaway,
            applies=preferences.drifts,
            threshold=f"{preferences.KL_FAR:g} nats a reply, {preferences.KL_GROWS:g} times that of half-way, accuracy (or reward) not a standard error higher",
            source="arXiv:2210.10760; numbers are " + OURS,
        ),
        "length_bias": Rule(
            examine=preferences.length_bias,
            applies=preferences.of_pairs,
            threshold=f"rank correlation of gained margin and length difference: {preferences.LENGTH_SHOWN:g} with an interval without zero (alarm: {preferences.LENGTH_STRONG:g}); or the same side is the longer one in {preferences.ONE_SIDE:.0%} of the pairs",
            source="arXiv:2405.14734 (why SimPO divides by length); numbers are " + OURS,
        ),
        "forgetting": Rule(
            examine=models.forgetting,
            applies=models.writes,
            threshold=f"worse than the baseline on rows of another data stage, or on a benchmark of reasoning or instructions, with an interval without zero; alarm: loss {models.FORGOTTEN:.0%} higher",
            source="arXiv:2405.09673; 2% is Soup's",
        ),
        "output_repeats": Rule(
            examine=models.output_repeats,
            applies=models.writes,
            threshold=f"repeated runs of four words: share above {models.REPEATS:g}, or {models.REPEATS_TIMES:g} times the baseline's, and shown to be above it",
            source="arXiv:1908.04319 (people: about 0.005)",
        ),
        "never_stops": Rule(
            examine=models.never_stops,
            applies=models.writes,
            threshold=f"{models.OFTEN_CUT:.0%} of the replies run into the limit, and shown to be more than the baseline's",
            source="trl#1623; the share is " + OURS,
        ),
        "gradient_spikes": Rule(
            examine=training.gradient_spikes,
            threshold=f"loss or norm above mean + {training.SIGMAS:g} standard deviations of the last {training.WINDOW} steps ({training.FEWEST_BEFORE} needed); alarm: {training.MANY_SPIKES} times, or unclipped",
            source="OLMo-core, arXiv:2501.00656",
        ),
        "rate_range": Rule(
            examine=training.rate_range,
            threshold=f"outside the published range for objective and adapter; alarm: {training.FAR:g} times above it (never where it learns from its own replies)",
            source="plan/guidance.py names a paper for each range",
        ),
        "rows_dropped": Rule(
            examine=rows.rows_dropped, threshold=f"more than {rows.MANY_DROPPED:.0%} of the rows", source=OURS
        ),
        "rows_truncated": Rule(
            examine=rows.rows_truncated,
            threshold=f"more than {rows.SOME_CUT:.0%} of the examples cut; alarm: {rows.MANY_CUT:.0%}",
            source="trl#2400, unsloth#2904; shares are " + OURS,
        ),
        "accuracy_chance": Rule(
            examine=preferences.accuracy_chance,
            applies=preferences.of_pairs,
            threshold="95% interval of the held-out accuracy includes 50%; alarm: it lies below",
            source=OURS,
        ),
        "wasted_tokens": Rule(
            examine=rows.wasted_tokens,
            applies=models.writes,
            threshold=f"fewer than {rows.FEW_SUPERVISED:.0%} of the tokens are supervised",
            source=OURS,
        ),
        "no_held_out": Rule(
            examine=training.no_held_out,
            threshold="no held-out rows",
            source="arXiv:2412.13337: training loss does not rank runs",
        ),
    },
)
OF_ONLINE: Table[Rule[TrainEvidence]] = Table(
    "rule",
    {
        "failed": OF_TRAINING["failed"],
        "reward_hacking": Rule(
            examine=online.reward_hacking,
            threshold=f"the reward is shown to rise, while another score falls from its best by {training.RISE_NOISE:g} standard errors, or an evaluation shows a loss against its baseline; alarm: a score of weight 0, a judge or a benchmark. A remark without any of them: distinct pairs of words below {online.HALVED:g} times, or the length beyond a third to {online.GROWN:g} times their start",
            source="over-optimisation, arXiv:2210.10760; numbers are " + OURS,
        ),
        "collapse": Rule(
            examine=online.collapse,
            threshold=f"the reward falls from its best by {training.RISE_NOISE:g} standard errors and {online.LOST:.0%} of its gain; alarm: all of it. Or, while it is not higher or high (else a remark): distinct pairs of words below {online.HALVED:g}, or entropy below {online.SURE:g} times the start, or the deviation of the rewards below {online.GONE:g} of it with {online.NEARLY_SILENT:.0%} equal groups",
            source=OURS,
        ),
        "kl_runaway": OF_TRAINING["kl_runaway"],
        "no_signal": Rule(
            examine=online.no_signal,
            threshold=f"all replies of a prompt scored the same in {online.SILENT:.0%} of the groups; alarm: {online.NEARLY_SILENT:.0%}, and not because the reward is high",
            source="p^n + (1 - p)^n of n replies that pass with p: 0.85 at p = 2%, n = 8; arXiv:2503.14476 draws others instead",
        ),
        **{
            name: OF_TRAINING[name]
            for name in (
                "forgetting",
                "output_repeats",
                "never_stops",
                "gradient_spikes",
                "rate_range",
                "rows_dropped",
                "no_held_out",
            )
        },
    },
)
OF_EVALUATION: Table[Rule[EvalEvidence]] = Table(
    "rule",
    {
        "evaluation_small": Rule(
            examine=evaluation.evaluation_small,
            applies=evaluation.compares_models,
            threshold=f"fewer than {FEW_ROWS} rows or prompts (alarm where a difference is claimed), or nothing shown and only {evaluation.COARSE:.0%} of the scale could have been",
            source="arXiv:2411.00640; numbers are " + OURS,
        )
    },
)
OF_JUDGES: Table[Rule[JudgeEvidence]] = Table(
    "rule",
    {
        "judge_coin": Rule(
            examine=evaluation.judge_coin,
            threshold="95% interval of its accuracy on labels (else on held-out pairs, else of its agreement with itself in both orders) reaches chance",
            source="MT-Bench, arXiv:2306.05685; " + OURS,
        )
    },
)
