"""posttrain verify: true on a sound model, and every check fails when what it guards is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from families import micro_folder
from posttrain.data.config import Source
from posttrain.encode.segments import Segments
from posttrain.errors import DataError, TemplateError
from posttrain.lab import verify
from posttrain.model import fused, logprobs, score
from posttrain.model.companions import copy_tokenizer
from posttrain.model.lineage import Lineage
from posttrain.objectives import sft
from posttrain.train import loop, tasks
from posttrain.train.tasks import StepContext

pytestmark = [pytest.mark.slow, pytest.mark.demo_model]

NAMES = [
    "masks",
    "resumed = uninterrupted",
    "chunked = full logits",
    "fresh LoRA = base",
    "hot path = generic",
    "packed = one by one",
    "shared = separate",
    "batch split = whole",
    "merged = adapter",
]
PREFERENCE_NAMES = [*NAMES[:4], "first loss", "kept reference = live", *NAMES[4:]]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two turns and of one, in two languages, and one that is far too long."""
    rows: list[list[tuple[str, str]]] = [
        [("user", f"What comes after {k}?"), ("assistant", f"It is {k + 1}.")] for k in range(6)
    ]
    rows.append([("user", "你好"), ("assistant", "你好！"), ("user", "再见"), ("assistant", "再见 👋。")])
    rows.append([("system", "Be brief."), ("user", "Hi"), ("assistant", "Hi.\n\n```python\nprint(1)\n```")])
    rows.append([("user", "long"), ("assistant", "word " * 400)])
    path = tmp_path_factory.mktemp("verify") / "rows.jsonl"
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose prompts are long enough to be shared, one of them of several turns."""
    system = (
        "You answer questions about numbers, in one short sentence, and you never tell how you found the answer. " * 2
    )
    rows: list[dict[str, Any]] = []
    for k in range(5):
        prompt = [{"role": "system", "content": system}, {"role": "user", "content": f"What comes after {k}?"}]
        if k == 3:
            prompt += [{"role": "assistant", "content": "Four."}, {"role": "user", "content": "And after that?"}]
        good, bad = f"It is {k + 1}.", f"I guess that {k} is followed by something like {k + 2}, 大概。"
        sides = {"chosen": good, "rejected": bad}
        rows.append({"prompt": prompt, **{n: [{"role": "assistant", "content": t}] for n, t in sides.items()}})
    path = tmp_path_factory.mktemp("verify") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def feedback(pairs: Path) -> Path:
    """Every side of the pairs as a judged reply."""
    path = pairs.parent / "feedback.jsonl"
    lines = []
    for row in map(json.loads, pairs.read_text(encoding="utf-8").splitlines()):
        lines += [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for side in ("chosen", "rejected")
        ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def run(name: str, rows: Path, model: Path) -> verify.Check:
    """One check, and as little as possible of what comes before it."""
    lineage = Lineage(model)
    usable = verify.usable_rows(Source(path=str(rows)), 4, lineage.template, 128)
    if name == "masks":
        return verify.check_masks(lineage.template, usable.conversations)
    if name == "resumed = uninterrupted":
        return verify.check_resume(lineage, usable)
    with pytest.MonkeyPatch.context() as patch:
        if name != "chunked = full logits":
            patch.setattr(verify, "check_chunked", lambda *_: verify.Check("left out: half of the time", "", 0, 0))
        return next(check for check in verify.model_checks(lineage, usable) if check.name == name)


@pytest.mark.filterwarnings("ignore")  # notes on the speed, and these models' own
@pytest.mark.parametrize("family", ["gpt2", "qwen3-moe", "mamba"])
def test_no_false_alarm_with_dropout_experts_and_scans(
    family: str, conversations: Path, demo_model: Path, tmp_path: Path
) -> None:
    folder = micro_folder(family, tmp_path, vocab_size=49152, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    copy_tokenizer(demo_model, folder)
    usable = verify.usable_rows(Source(path=str(conversations)), 4, Lineage(folder).template, 100)
    checks = list(verify.all_checks(Lineage(folder), usable))
    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if not check.holds] == []


@pytest.mark.parametrize("kind", ["pairs", "feedback"])
def test_everything_holds_of_preferences(kind: str, request: pytest.FixtureRequest, tiny_model: Path) -> None:
    lineage = Lineage(tiny_model)
    usable = verify.usable_rows(Source(path=str(request.getfixturevalue(kind))), 4, lineage.template, 256)
    assert (usable.kind, len(usable.units)) == (kind, 4)
    checks = list(verify.all_checks(lineage, usable))
    assert [check.name for check in checks] == PREFERENCE_NAMES
    assert [check.name for check in checks if not check.holds] == []


def test_json(conversations: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.verify_model(Source(path=str(conversations)), str(tiny_model), 4, None, 128, True, Console())
    record = json.loads(capsys.readouterr().out)
    assert record["holds"] is True
    assert [check["name"] for check in record["checks"]] == NAMES
    assert record["rows"] == 4
    by_name = {check["name"]: check for check in record["checks"]}
    assert by_name["resumed = uninterrupted"]["difference"] == 0.0
    assert "30" not in by_name["hot path = generic"]["detail"]
    assert "2 mlp, 8 lora, 5 norm" in by_name["hot path = generic"]["detail"]


def weigh_otherwise(patch: pytest.MonkeyPatch, change: Callable[[Any, Any], Any]) -> None:
    """Supervised is what ``change`` makes of being supervised and of the next token's."""
    from posttrain.encode import tokens

    whole = tokens._weigh

    def broken(*arguments: Any) -> Any:
        text = whole(*arguments)
        supervised = text.weights_T != 0
        return replace(text, weights_T=change(supervised, np.append(supervised[1:], False)).astype(np.float32))

    patch.setattr(tokens, "_weigh", broken)


def drop_the_stop(patch: pytest.MonkeyPatch) -> None:
    weigh_otherwise(patch, lambda now, following: now & following)


def supervise_one_token_more(patch: pytest.MonkeyPatch) -> None:
    weigh_otherwise(patch, lambda now, following: now | following)


def forget_the_moments(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop, "restore_optimizer", lambda *arguments: None)


def repeat_the_random_numbers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop.torch, "manual_seed", lambda seed: None)


def shift_the_log_probabilities(patch: pytest.MonkeyPatch) -> None:
    whole = logprobs._logps_and_residual
    patch.setattr(logprobs, "_logps_and_residual", lambda *arguments: whole(*arguments) + 1e-3)


def keep_the_whole_one_hot(patch: pytest.MonkeyPatch) -> None:
    """The right value with a wrong gradient."""

    def wrong(logits_CV: torch.Tensor, targets_C: torch.Tensor, cap: float | None) -> torch.Tensor:
        logps_C = whole(logits_CV, targets_C, cap)
        logits_CV *= 1.001
        return logps_C

    whole = logprobs._logps_and_residual
    patch.setattr(logprobs, "_logps_and_residual", wrong)


def start_with_a_changed_model(patch: pytest.MonkeyPatch) -> None:
    def attach(*arguments: Any, **more: Any) -> Any:
        model = whole(*arguments, **more)
        verify._randomise(model)
        return model

    whole = verify.attach_lora
    patch.setattr(verify, "attach_lora", attach)


def scale_a_hand_written_gradient(patch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **more: Any) -> Any:
        dx, pairs = whole(*arguments, **more)
        return dx, [g * 1.01 for g in pairs]

    whole = fused._project_backward
    patch.setattr(fused, "_project_backward", wrong)


def let_segments_see_each_other(patch: pytest.MonkeyPatch) -> None:
    whole = score.final_hidden
    patch.setattr(score, "final_hidden", lambda model, ids, segments: whole(model, ids, Segments([len(ids)])))


def average_each_micro_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sft, "sft_loss", lambda logps, weights, whole: -(weights * logps).sum() / weights.sum())


def average_the_pairs_of_each_micro_batch(patch: pytest.MonkeyPatch) -> None:
    whole = tasks._pairs

    def wrong(objective: Any, reference: Any) -> Any:
        task = whole(objective, reference)
        return replace(
            task,
            loss_inputs=lambda units, batch, logps, context: task.loss_inputs(
                units, batch, logps, StepContext(len(units))
            ),
        )

    patch.setattr(tasks, "_pairs", wrong)


def let_replies_see_each_other(patch: pytest.MonkeyPatch) -> None:
    """Every segment is taken for a continuation of the one before it."""
    whole = score.final_hidden

    def wrong(model: Any, ids: torch.Tensor, segments: Segments) -> torch.Tensor:
        chained = [index - 1 if parent >= 0 else -1 for index, parent in enumerate(segments.parents)]
        return whole(model, ids, Segments(segments.lengths, chained))

    patch.setattr(score, "final_hidden", wrong)


def keep_another_reference(patch: pytest.MonkeyPatch) -> None:
    whole = verify.sequence_logps
    patch.setattr(verify, "sequence_logps", lambda *arguments: [part + 0.01 for part in whole(*arguments)])


def forget_to_merge(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "merge_adapter", lambda model: model.unload())


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("masks", drop_the_stop),
        ("masks", supervise_one_token_more),
        ("resumed = uninterrupted", forget_the_moments),
        ("resumed = uninterrupted", repeat_the_random_numbers),
        ("chunked = full logits", shift_the_log_probabilities),
        ("chunked = full logits", keep_the_whole_one_hot),
        ("fresh LoRA = base", start_with_a_changed_model),
        ("hot path = generic", scale_a_hand_written_gradient),
        ("packed = one by one", let_segments_see_each_other),
        ("batch split = whole", average_each_micro_batch),
        ("merged = adapter", forget_to_merge),
    ],
    ids=lambda value: value.__name__ if callable(value) else value.split()[0],
)
def test_a_check_fails_when_its_subject_is_broken(
    name: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    conversations: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(monkeypatch)
    assert not run(name, conversations, tiny_model).holds


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("masks", supervise_one_token_more),
        ("first loss", start_with_a_changed_model),
        ("kept reference = live", keep_another_reference),
        ("first loss", keep_another_reference),
        ("packed = one by one", let_replies_see_each_other),
        ("shared = separate", let_replies_see_each_other),
        ("batch split = whole", average_the_pairs_of_each_micro_batch),
    ],
    ids=lambda value: value.__name__ if callable(value) else value.split()[0],
)
def test_a_check_of_pairs_fails_when_its_subject_is_broken(
    name: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    pairs: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(monkeypatch)
    assert not run(name, pairs, tiny_model).holds


TEMPLATES = sorted((Path(__file__).parents[1] / "encode" / "templates").glob("*.jinja"))


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_masks_of_other_templates(file: Path, conversations: Path, tiny_model: Path) -> None:
    template = Lineage(tiny_model).spoken(file).template
    found = verify.usable_rows(Source(path=str(conversations)), 4, Lineage(tiny_model).template, 128).conversations
    if file.stem == "no_stop":
        with pytest.raises(TemplateError, match="no provable stop"):
            verify.check_masks(template, found)
    else:
        assert verify.check_masks(template, found).holds


def test_too_few_rows(conversations: Path, tiny_model: Path) -> None:
    with pytest.raises(DataError, match=r"only 0 of the first 9 rows can be used \(dropped: 9 too_long\)") as caught:
        verify.usable_rows(Source(path=str(conversations)), 4, Lineage(tiny_model).template, 10)
    assert "--max-length" in str(caught.value)


def test_nan_never_holds() -> None:
    nan = torch.tensor([float("nan")])
    assert not verify._values("x", "", torch.zeros(1), nan).holds
    assert not verify._gradients(
        "x", "", {"a": torch.ones(1), "b": torch.ones(1)}, {"a": nan, "b": torch.ones(1)}
    ).holds
    assert not verify._gradients(
        "x", "", {"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "b": nan}
    ).holds


@pytest.mark.parametrize(("count", "sizes"), [(2, [1, 1]), (3, [1, 1, 1]), (8, [3, 1, 4]), (12, [5, 2, 5])])
def test_splits(count: int, sizes: list[int]) -> None:
    examples: list[Any] = list(range(count))
    parts = verify._split(examples)
    assert [len(part) for part in parts] == sizes
    assert [example for part in parts for example in part] == examples


def test_exit_code(
    conversations: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from posttrain.cli import main

    arguments = [
        "posttrain",
        "verify",
        "--conversations",
        str(conversations),
        "--model",
        str(tiny_model),
        "--rows",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    forget_to_merge(monkeypatch)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "NOT true: merged = adapter" in capsys.readouterr().out
