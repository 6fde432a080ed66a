"""Prove the training invariants on the user's own model and rows, in fp32: ``posttrain verify``.

The kind of rows decides the objective: SFT for conversations, DPO for pairs, KTO for judged replies. Every check runs the functions that training runs, and compares them with the same thing done the plain way. What is
written here is only the plain way, the random adapter and the comparison.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from posttrain import assets
from posttrain.artifacts import Ledger, StageDir
from posttrain.data.config import DataSettings, Source
from posttrain.data.pipeline import prepare
from posttrain.data.rows import read_kind, refuse_prompts, row_kind_of
from posttrain.encode.collate import collate
from posttrain.encode.preferences import encode_kind, sequences_of, sides_of
from posttrain.encode.show import ExampleView, RowView, show_row
from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import encode_prompt, stop_sequences
from posttrain.errors import ConfigError, DataError
from posttrain.model import fused, hardware, logprobs
from posttrain.model.adapters import attach_lora, saved_model, saved_settings, trainable_parameters
from posttrain.model.config import LoraAdapter
from posttrain.model.export import merge_adapter
from posttrain.model.forward import final_hidden, output_head
from posttrain.model.lineage import Lineage
from posttrain.model.score import batch_logps, lay_out, sequence_logps
from posttrain.model.targets import resolve_target
from posttrain.objectives import default_objective
from posttrain.report import terminal
from posttrain.report import values as report
from posttrain.report.values import Block, Notice, Number, Section
from posttrain.table import grouped
from posttrain.train.config import TrainSettings
from posttrain.train.loop import Trainee, TrainInputs, optimizer_step, step_context, train
from posttrain.train.reference import NO_REFERENCE, ReferenceLogps, sequence_key
from posttrain.train.tasks import Task, Unit, make_task
from posttrain.types import Message, RowKind, SftRow, Tokens

ROWS_READ = 4
"""Rows read for each one asked for, because some may be too long."""
VALUE_TOLERANCE = 1e-5
"""Largest difference between log-probabilities that are the same number by another route, relative to 1 + the
largest of them: fp32 keeps 7 digits, and a model sums in another order."""
GRADIENT_TOLERANCE = 1e-4
"""The same for gradients: 2-norm of the difference relative to the 2-norm, the worst tensor counts."""
REFERENCE_TOKENS = 512
"""Tokens of a micro-batch of the reference: some of the sequences together, not all."""
STRIP = 64
"""Positions of the plain log-softmax at once: [64, V] in fp64."""


@dataclass(frozen=True)
class Check:
    """One invariant and what was measured. ``difference`` and ``tolerance`` are relative; 0 = bitwise."""

    name: str
    meaning: str
    difference: float
    tolerance: float
    detail: str = ""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance (NaN never is)."""
        return self.difference <= self.tolerance


def verify_model(
    source: Source,
    model: str,
    rows: int,
    template: Path | None,
    max_length: int,
    as_json: bool,
    console: Console,
) -> bool:
    """Run all checks, print them as a table or as JSON, and return whether all hold.

    source: a data file, folder, demo asset or hub name, read up to ``max_rows``. model: see `resolve_target`. rows: how many
    rows to compute with: the shortest of the first ``ROWS_READ * rows`` that fit ``max_length`` tokens. The masks of all of
    those are checked. Raises DataError where fewer than two rows are usable.
    """
    with console.status("reading") as status:
        lineage = resolve_target(model).spoken(template)
        usable = usable_rows(source, rows, lineage.template, max_length)
        checks = []
        for check in all_checks(lineage, usable):
            if not as_json:
                status.update(f"{check.name} done")
            checks.append(check)
    computed = len({unit.row_id for unit in usable.units})
    tokens = sum(len(sequence) for sequence in usable.sequences)
    basis = f"masks of {usable.rows} rows, the rest on {computed} rows ({tokens:,} tokens) in fp32"
    record = {"model": model, "rows": computed, "tokens": tokens}
    return tell(checks, "Invariants of training", basis, record, as_json, console)


def tell(
    checks: Sequence[Check], title: str, basis: str, record: Mapping[str, object], as_json: bool, console: Console
) -> bool:
    """Print what was measured as a table, or with ``record`` as JSON; returns whether all checks hold."""
    holds = all(check.holds for check in checks)
    if as_json:
        listed = [asdict(check) | {"holds": check.holds} for check in checks]
        console.out(json.dumps({**record, "holds": holds, "checks": listed}), highlight=False)
    else:
        console.print(terminal.section(_section(checks, title, basis)), soft_wrap=False, highlight=False)
    return holds


@dataclass(frozen=True)
class Usable:
    """Rows to verify with."""

    kind: RowKind
    rows: int
    """Rows read."""
    conversations: Sequence[SftRow]
    """All rows read as conversations; of a pair both sides."""
    units: Sequence[Unit]
    """What is computed with: the shortest rows, encoded."""

    @property
    def sequences(self) -> list[Tokens]:
        """The sequences of all units."""
        return [sequence for unit in self.units for sequence in sequences_of(unit)]


def usable_rows(source: Source, rows: int, template: ChatTemplate, max_length: int) -> Usable:
    """All rows read, and the units of the shortest ``rows`` of them that fit ``max_length`` tokens."""
    source = replace(source, max_rows=ROWS_READ * rows)
    with tempfile.TemporaryDirectory() as scratch:
        out = StageDir(Path(scratch))
        try:
            prepare(DataSettings(sources=(source,), held_out=0), out, 0, assets.resolve_data)
        except DataError as error:  # what it would be told in is gone with the scratch folder
            fix = error.fix if scratch not in (error.fix or "") else "mend the rows; see docs/data-formats.md"
            raise DataError(error.problem, where=error.where, fix=fix) from None
        path = out.file("rows", "train.parquet")
        refuse_prompts(path)
        kind, ledger = row_kind_of(path) or "conversations", Ledger()
        found = read_kind(path, kind)
        talks = [talk for row in found for talk in sides_of(row).values()]
        units: Sequence[Unit] = encode_kind(kind, found, template, max_length, "drop", ledger).examples
    step = ledger.steps[-1]
    by_row = grouped((unit.row_id, unit) for unit in units)
    if len(by_row) < 2:
        reasons = ", ".join(f"{count} {reason}" for reason, count in step.dropped.items()) or "none"
        raise DataError(
            f"only {len(by_row)} of the first {step.rows_in} rows can be used (dropped: {reasons}); at least 2 are needed",
            where=source.path,
            fix=f"give more rows, or raise --max-length (it is {max_length})",
        )

    def tokens(members: Sequence[Unit]) -> int:
        return sum(len(sequence) for unit in members for sequence in sequences_of(unit))

    shortest = sorted(by_row.values(), key=tokens)[:rows]
    return Usable(kind, step.rows_in, talks, [unit for members in shortest for unit in members])


def all_checks(lineage: Lineage, usable: Usable) -> Iterator[Check]:
    """All checks, one after the other. One model is in memory at a time."""
    yield check_masks(lineage.template, usable.conversations)
    yield check_resume(lineage, usable)
    yield from model_checks(lineage, usable)


def model_checks(lineage: Lineage, usable: Usable) -> Iterator[Check]:
    """The checks that need no training run: the base, a fresh adapter, a random one, and the merged model.

    The base of a model with an adapter is that adapter merged into its weights.
    """
    device = hardware.resolve_device("auto")
    objective, units, sequences = default_objective(usable.kind), usable.units, usable.sequences
    base: Any = saved_model(lineage.folder, lineage.adapter, torch.float32, device)
    if lineage.adapter is not None:
        base = merge_adapter(base)
    base.requires_grad_(False)
    yield check_chunked(base, sequences)
    before = _logps(base, [sequences])
    reference = _reference(base, make_task(objective), units) if objective.needs_reference else NO_REFERENCE
    task = make_task(objective, reference)
    model = attach_lora(base, LoraAdapter(rank=8, alpha=16), seed=0)
    # in eval mode: the dropout of the model itself (GPT-2) would be a difference of its own
    trainee = Trainee(model, trainable_parameters(model), torch.float32, device)
    yield _values(
        "fresh LoRA = base",
        "a new adapter (B = 0) leaves every log-probability as it was",
        before,
        _logps(model, [sequences]),
    )
    if (expected := objective.untrained_loss) is not None:
        yield _values(
            "first loss",
            f"before the first step the policy is its reference: the loss of {objective.name.upper()} is {expected:.4f}",
            torch.tensor([expected]),
            _gradient(trainee, task, [units])["loss"],
        )
    _randomise(model)
    one_by_one = [[sequence] for sequence in sequences]
    if objective.needs_reference:
        with model.disable_adapter():
            live = _logps(model, one_by_one)
        yield _values(
            "kept reference = live",
            "what the reference was computed to say beforehand is what the model says with its adapter off",
            live,
            hardware.to_device(reference.of(sequences), live.device),
        )
    generic = _gradient(trainee, task, [units])
    generic_logps = _logps(model, [sequences])
    counts = fused.fuse(model)
    whole = _gradient(trainee, task, [units])
    yield _gradients(
        "hot path = generic",
        "our hand-written layers give the loss and the gradient of PEFT's own",
        generic,
        whole,
        ", ".join(f"{count} {kind}" for kind, count in counts.items()) + " modules",
    )
    yield _values(
        "packed = one by one",
        "sequences in one micro-batch, their common prefixes computed once, don't see each other",
        _logps(model, one_by_one),
        _logps(model, [sequences]),
    )
    yield _gradients(
        "shared = separate",
        "loss and gradient where common prefixes are computed once are those of every sequence by itself",
        _separate_gradient(trainee, task, units),
        whole,
    )
    parts = _split(units)
    yield _gradients(
        "batch split = whole",
        f"micro-batches of {', '.join(str(len(p)) for p in parts)} rows give the loss and gradient of one of {len(units)}",
        whole,
        _gradient(trainee, task, parts),
    )
    fused.unfuse(model)
    moved = float((generic_logps - before).abs().max())
    merged = merge_adapter(model)
    yield _values(
        "merged = adapter",
        "a random adapter merged into the weights is the same model",
        generic_logps,
        _logps(merged, [sequences]),
        f"the adapter moves log-probabilities by up to {moved:.2g}",
    )


# ---- the checks ----------------------------------------------------------------------------------------------------


def check_masks(template: ChatTemplate, rows: Sequence[SftRow]) -> Check:
    """Supervised text = the assistant turns and their stop, and nothing else, of every row that is not rejected."""
    # as text: where a stop is no token of its own, its first character may share one with what stands before it
    stop = str(template.tokenizer.decode(list(stop_sequences(template)[0])))
    views = [show_row(row, template) for row in rows]
    trained = [s for s in views if s.rejected is None and all(example.rejected is None for example in s.examples)]
    wrong = [str(s.row.origin) for s in trained if not _masked_right(s, template, stop)]
    detail = f"wrong: {', '.join(wrong)}" if wrong else f"{len(trained)} conversations; stop {stop!r}"
    meaning = "exactly the assistant turns are supervised, each with its stop token"
    return Check("masks", meaning, len(wrong) / len(trained), 0.0, detail)


def _masked_right(view: RowView, template: ChatTemplate, stop: str) -> bool:
    messages = view.row.messages
    turns = [k for k, m in enumerate(messages) if m.role == "assistant" and m.weight != 0]
    runs = [run for example in view.examples for run in _runs(example)]
    if len(runs) != len(turns) or not stop:
        return False
    for (before, text), k in zip(runs, turns, strict=True):
        fed = encode_prompt(messages[:k], template, view.row.tools).tolist()
        if not text.endswith(stop) or not _says(text.removesuffix(stop), messages[k], fed == before):
            return False
    return True


def _runs(example: ExampleView) -> Iterator[tuple[list[int], str]]:
    """(ids before it, its text) of every unbroken run of supervised tokens."""
    before: list[int] = []
    for supervised, tokens in itertools.groupby(example.tokens, lambda token: token.weight != 0):
        members = list(tokens)
        if supervised:
            yield before, "".join(token.text for token in members)
        before = before + [token.id for token in members]


def _says(text: str, turn: Message, all_new: bool) -> bool:
    """Whether a supervised text is the turn, word by word: a template may trim it or lay it out anew.

    ``all_new``: the text begins where the prompt of inference ends; then all of it is the model's to write (white space, a
    header, reasoning, calls), in ways of the template's own, so the content is looked for in it.
    """
    if all_new:
        return " ".join(turn.content.rpartition("</think>")[2].split()) in " ".join(text.split())
    return (not text[:1].isspace() or turn.content[:1].isspace()) and text.split() == turn.content.split()


class _KilledError(Exception):
    """Stands in for kill -9 in the middle of a run."""


def check_resume(lineage: Lineage, usable: Usable) -> Check:
    """Three steps at a stretch, and three with a kill in the second: the same adapter to the last bit. A saved adapter goes on.

    With dropout, so that the state of the random numbers counts, too, where the objective and the model's layers take it.
    """
    if usable.kind == "conversations":
        with contextlib.suppress(ConfigError):
            return _check_resume(lineage, usable, 0.1)
    return _check_resume(lineage, usable, 0.0)


def _check_resume(lineage: Lineage, usable: Usable, dropout: float) -> Check:
    lora = LoraAdapter(rank=8, alpha=16) if lineage.adapter is None else saved_settings(lineage.adapter)
    stage = TrainSettings(
        objective=default_objective(usable.kind),
        adapter=replace(lora, dropout=dropout),
        batch_size=2,
        epochs=3,
        max_steps=3,
        learning_rate=1e-3,
        dtype="fp32",
        keep="last",
        checkpoint_every=1,
    )
    inputs = TrainInputs(lineage.folder, usable.units, adapter_folder=lineage.adapter)

    def kill(record: Mapping[str, object]) -> None:
        if record["step"] == 2:
            raise _KilledError

    with tempfile.TemporaryDirectory() as scratch:
        straight, resumed = StageDir(Path(scratch, "straight")), StageDir(Path(scratch, "resumed"))
        train(stage, inputs, straight, seed=0, digest="verify")
        try:
            train(stage, inputs, resumed, seed=0, digest="verify", observer=kill)
        except _KilledError:
            train(stage, inputs, resumed, seed=0, digest="verify")
        a, b = (load_file(out.file("adapter", "adapter_model.safetensors")) for out in (straight, resumed))
        steps = [[r["loss"] for r in out.metrics()] for out in (straight, resumed)]
    different = sum(int((a[name] != b[name]).sum()) for name in a) + (steps[0] != steps[1])
    total = sum(tensor.numel() for tensor in a.values())
    return Check(
        "resumed = uninterrupted",
        "killed in the second of three steps and run again: the same adapter, bit by bit",
        different / total,
        0.0,
        f"{total:,} numbers compared",
    )


def check_chunked(model: nn.Module, examples: Sequence[Tokens]) -> Check:
    """Log-probabilities from chunks, with their gradient, against a plain fp64 log-softmax over the full vocabulary."""
    batch = collate(examples)
    head = output_head(model)
    name = "chunked = full logits"
    if head is None:
        return Check(name, "the model's own code forms its logits: nothing is computed in chunks", 0.0, VALUE_TOLERANCE)
    (scale, cap), head_VD = head.form, head.weight_VD
    ids_T = torch.from_numpy(batch.ids_T).to(head_VD.device)
    with torch.no_grad():
        hidden_TD = final_hidden(model, ids_T, batch.segments)
    # more positions than one chunk holds, however few tokens there are
    places_S = torch.arange(logprobs.CHUNK + STRIP, device=ids_T.device) % (len(ids_T) - 1)
    hidden_SD, targets_S = hidden_TD[places_S].requires_grad_(True), ids_T[places_S + 1]
    logps_S = logprobs.token_logps(hidden_SD, head_VD, targets_S, cap, head.bias_V, scale)
    (gradient_SD,) = torch.autograd.grad(logps_S.sum(), hidden_SD)
    value, gradient = 0.0, 0.0
    wide_head_VD = head_VD.double()
    wide_bias_V = None if head.bias_V is None else head.bias_V.double()
    for begin in range(0, len(targets_S), STRIP):
        strip = slice(begin, begin + STRIP)
        h = hidden_SD.detach()[strip].double().requires_grad_(True)
        logits_CV = scale * nn.functional.linear(h, wide_head_VD, wide_bias_V)
        logits_CV = logits_CV if cap is None else torch.tanh(logits_CV / cap) * cap
        plain_C = logits_CV.log_softmax(-1).gather(1, targets_S[strip, None])[:, 0]
        (plain_gradient_CD,) = torch.autograd.grad(plain_C.sum(), h)
        value = max(value, _relative(plain_C.detach(), logps_S.detach()[strip].double()))
        gradient = max(gradient, _norm_ratio(plain_gradient_CD, gradient_SD[strip].double()))
    return Check(
        name,
        "log-probabilities and gradient of the chunked output head are those of a plain softmax in fp64",
        max(value, gradient),
        VALUE_TOLERANCE,
        f"{len(targets_S):,} positions; value {value:.1e}, gradient {gradient:.1e}",
    )


# ---- running the real thing ----------------------------------------------------------------------------------------


@torch.no_grad()
def _logps(model: nn.Module, groups: Sequence[Sequence[Tokens]]) -> Tensor:
    """Log-probabilities [S] of all supervised tokens, packed as given, in the order of the examples."""
    return torch.cat([batch_logps(model, lay_out(model, group), torch.float32).logps_S for group in groups])


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Give B of every adapter pair small random numbers: a fresh adapter would make the other checks trivial."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1 / math.sqrt(parameter.shape[0])
            parameter.copy_(drawn)


class _Recorder(torch.optim.Optimizer):
    """An optimizer that changes nothing and keeps the gradients it is given."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__(list(named.values()), {"lr": 0.0})
        self.named = named
        self.gradients: dict[str, Tensor] = {}

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Keep the gradients."""
        self.gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self.named.items()}


def _reference(base: nn.Module, task: Task, units: Sequence[Unit]) -> ReferenceLogps:
    """What the base says of all sequences of a step, computed as training does it beforehand."""
    groups = [task.sequences(unit) for unit in units] + [(sequence,) for sequence in task.beside(units)]
    logps = sequence_logps(base, groups, REFERENCE_TOKENS, torch.float32)
    keys = [sequence_key(sequence) for group in groups for sequence in group]
    return ReferenceLogps(dict(zip(keys, logps, strict=True)))


def _gradient(trainee: Trainee, task: Task, groups: Sequence[Sequence[Unit]]) -> dict[str, Tensor]:
    """Loss and gradient of one real optimizer step over these micro-batches; the weights stay as they are."""
    recorder = _Recorder(trainee.trained)
    result = optimizer_step(trainee, recorder, task, groups, rate=0.0, max_grad_norm=None)
    return {"loss": torch.tensor([result.loss]), **recorder.gradients}


def _separate_gradient(trainee: Trainee, task: Task, units: Sequence[Unit]) -> dict[str, Tensor]:
    """The same with a forward pass of its own for every sequence."""
    sequences = [sequence for unit in units for sequence in task.sequences(unit)]
    outputs_S = torch.cat([task.forward(trainee.model, collate([one]), torch.float32) for one in sequences])
    context = step_context(trainee, task, units, max(map(len, sequences)))
    loss = task.objective.loss(*task.loss_inputs(units, collate(sequences), outputs_S, context).arguments).share
    names, parameters = zip(*trainee.trained.items(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return {"loss": loss.detach()[None], **dict(zip(names, gradients, strict=True))}


def _split(examples: Sequence[Unit]) -> list[list[Unit]]:
    """Three micro-batches of unlike size (two where there are only two examples), for example 3, 1, 4."""
    count = len(examples)
    first = max(1, round(count * 5 / 12))
    second = min(count, first + max(1, count // 6))
    return [list(part) for part in (examples[:first], examples[first:second], examples[second:]) if len(part)]


# ---- comparing and telling -----------------------------------------------------------------------------------------


def _relative(expected: Tensor, found: Tensor) -> float:
    """Largest difference relative to 1 + the largest expected number. NaN where a number is not finite."""
    worst = (expected - found).abs().max() / (1 + expected.abs().max())
    return float(worst) if torch.isfinite(worst) else math.nan


def _norm_ratio(expected: Tensor, found: Tensor) -> float:
    """2-norm of the difference relative to the 2-norm."""
    return float((expected - found).norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _values(name: str, meaning: str, expected: Tensor, found: Tensor, detail: str = "") -> Check:
    return Check(name, meaning, _relative(expected, found), VALUE_TOLERANCE, detail)


def _gradients(
    name: str, meaning: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], detail: str = ""
) -> Check:
    differences = [_norm_ratio(expected[key], found[key]) for key in expected]
    return Check(name, meaning, float(np.max(differences)), GRADIENT_TOLERANCE, detail)


def _section(checks: Sequence[Check], title: str, basis: str) -> Section:
    """What was measured, and the verdict."""
    table = report.table_of(
        "",
        checks,
        ("check", lambda check: check.name),
        ("difference", lambda check: Number(check.difference, "scientific")),
        ("tolerance", lambda check: Number(check.tolerance, "scientific")),
        ("holds", lambda check: "yes" if check.holds else "NO"),
        ("what it means", lambda check: "; ".join(part for part in (check.meaning, check.detail) if part)),
    )
    failed = [check.name for check in checks if not check.holds]
    verdict: Block = report.Text(f"every invariant holds ({basis})", "lead")
    if failed:
        verdict = Notice("warning", "not every invariant holds", (f"NOT true: {', '.join(failed)} ({basis})",))
    return Section(title, "verify", (table, verdict))
