"""Pairs: ``chosen`` and ``rejected``, each text, a message or messages, with a prompt or as whole conversations.

Where the sides are whole conversations, the turns they share are the prompt, and a ``prompt`` beside them only repeats it
(as in ultrafeedback_binarized). Rated pairs (``score_chosen`` and ``score_rejected``, or the words the other way round) have
the difference as their margin.
"""

from __future__ import annotations

from dataclasses import replace

from posttrain.data.formats import hh_rlhf, ranking
from posttrain.data.formats.base import Foreign, Format, RowError, finite
from posttrain.data.formats.prompts import prompt_of
from posttrain.data.formats.sides import Turns, is_whole, pair_row, parted
from posttrain.data.formats.turns import turns_under
from posttrain.types import Origin, PairRow

_SCORES = tuple(
    (form.format("chosen"), form.format("rejected"))
    for form in ("score_{}", "{}_score", "rating_{}", "{}_rating", "{}-rating", "reward_{}", "{}_reward")
)


def _detect(record: Foreign) -> bool:
    known = hh_rlhf.detect(record) or ranking.detect(record)
    return {"chosen", "rejected"} <= record.keys() and not known


def _parse(record: Foreign, origin: Origin, source: str) -> PairRow:
    prompt, used = prompt_of(record)
    chosen, rejected = (turns_under(record, key, "assistant") for key in ("chosen", "rejected"))
    if not prompt or is_whole(chosen) or is_whole(rejected):
        shared, chosen, rejected = parted(chosen, rejected)
        written = all(isinstance(record.get(key, ""), str) for key in used)
        if shared[: len(prompt)] != prompt and not (written and _is_said(prompt, shared)):
            raise RowError("wrong_shape", "chosen and rejected are whole conversations that begin unlike the prompt")
        prompt = shared
    row = pair_row(record, {"chosen", "rejected", *used}, prompt, chosen, rejected, origin, source)
    margin = _margin(record)
    if margin is not None and margin < 0:
        raise RowError("labels_disagree", f"the rejected reply has the higher score, by {-margin:g}")
    if margin == 0:
        raise RowError("equal_scores", "chosen and rejected have the same score: neither is preferred")
    return row if margin is None else replace(row, meta={**row.meta, "margin": margin})


def _is_said(prompt: Turns, shared: Turns) -> bool:
    """Whether a prompt given as text says what the shared turns say: a part of them, or a rendering of them."""
    given, said = (" ".join(" ".join(turn.content for turn in turns).split()) for turns in (prompt, shared))
    return given in said or all(" ".join(turn.content.split()) in given for turn in shared if turn.role == "user")


def _margin(record: Foreign) -> float | None:
    for better, worse in _SCORES:
        scores = finite(record.get(better)), finite(record.get(worse))
        if scores[0] is not None and scores[1] is not None:
            return scores[0] - scores[1]
    return None


PAIRS = Format(
    "pairs", _detect, _parse, '{"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Seven."}', "pairs"
)
