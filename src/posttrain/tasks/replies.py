"""Replies of several models to the same prompts, checked where a prompt says what a right reply looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import encode_prompt
from posttrain.generate.decode import replies
from posttrain.generate.engine import Progress, Sampling
from posttrain.stats.intervals import IntervalSettings, compare, wilson
from posttrain.tasks.checks import passes
from posttrain.tasks.prompts import Prompt
from posttrain.types import Message


def reply_records(
    model_name: str,
    model: Any,
    prompts: Sequence[Prompt],
    template: ChatTemplate,
    stops: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The lines of replies.jsonl (docs/run-folder.md) of one model: greedy replies with their verdicts.

    A reply that the model could not finish (``not_finite``) has none: it is missing, not wrong.
    """
    encoded = [encode_prompt([Message("user", p.text)], template) for p in prompts]
    told = replies(model, encoded, stops, Sampling(max_tokens=max_new_tokens), progress=progress)
    records = []
    for prompt, reply in zip(prompts, told, strict=True):
        text = template.tokenizer.decode(reply.ids, skip_special_tokens=True)
        verdict = None
        if prompt.check is not None and reply.finish != "not_finite":
            verdict = asdict(prompt.check) | {"passed": passes(prompt.check, text)}
        records.append(
            {
                "model": model_name,
                "prompt_id": prompt.id,
                "class": prompt.prompt_class,
                "language": prompt.language,
                "prompt": prompt.text,
                "reply": text,
                "finish_reason": reply.finish,
                "tokens": len(reply.ids),
                "check": verdict,
            }
        )
    return records


def accuracy_record(records: Sequence[Mapping[str, Any]], *, settings: IntervalSettings) -> dict[str, Any]:
    """The content of accuracy.json (docs/run-folder.md). Prompts without a verdict do not count, nor in a pair those that one side lacks."""
    verdicts: dict[str, dict[str, bool]] = {}
    classes: dict[str, str] = {}
    for r in records:
        if r["check"] is not None:
            verdicts.setdefault(r["model"], {})[r["prompt_id"]] = r["check"]["passed"]
            classes[r["prompt_id"]] = r["class"]

    def share(passed: Sequence[bool]) -> dict[str, Any]:
        interval = wilson(sum(passed), len(passed), settings.confidence)
        return {
            "passed": sum(passed),
            "checked": len(passed),
            "accuracy": interval.estimate,
            "low": interval.low,
            "high": interval.high,
        }

    models = {
        name: {
            "all": share(list(found.values())),
            "by_class": {
                c: share([passed for p, passed in found.items() if classes[p] == c])
                for c in dict.fromkeys(classes.values())
            },
        }
        for name, found in verdicts.items()
    }
    pairs = []
    for name in list(verdicts)[1:]:
        first = next(iter(verdicts))
        ids = [i for i in verdicts[first] if i in verdicts[name]]
        if not ids:
            continue
        a, b = [verdicts[first][i] for i in ids], [verdicts[name][i] for i in ids]
        found = compare(a, b, test="mcnemar", settings=settings)
        pairs.append(
            {
                "a": first,
                "b": name,
                "difference": found.interval.estimate,
                "low": found.interval.low,
                "high": found.interval.high,
                "confidence": settings.confidence,
                "both_right": sum(x and y for x, y in zip(a, b, strict=True)),
                "only_a": found.lower,
                "only_b": found.higher,
                "both_wrong": sum(not x and not y for x, y in zip(a, b, strict=True)),
                "p_value": found.p_value,
            }
        )
    return {"models": models, "pairs": pairs}
