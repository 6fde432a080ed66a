"""An evaluation stage: held-out rows, prompts and benchmarks under several models, one model in memory at a time.

What the data stage holds decides what is measured: of conversations the likelihood, of pairs which reply is favoured. A
killed evaluation goes on with the models it had not finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posttrain.artifacts import Ledger, StageDir, read_json, write_json
from posttrain.data.rows import read_kind, row_kind_of
from posttrain.encode.preferences import FeedbackTokens, PairTokens, encode_kind, sequences_of
from posttrain.encode.template import ChatTemplate
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.parallel.peers import ALONE, Peers
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.benchmarking import answer, headlines, measure, prepare, tell
from posttrain.tasks.config import EvalSettings
from posttrain.tasks.prompts import FixedPrompts
from posttrain.tasks.records import TaskRecord, TaskRow, write_record
from posttrain.types import Display, RowKind, Tokens

if TYPE_CHECKING:
    import torch
    from torch import nn

    from posttrain.generate.engine import Engine
    from posttrain.model.lineage import Lineage
    from posttrain.model.shared import SharedModel

Logps = list[list[float]]
"""log p of every supervised token of every held-out sequence, as they are kept between two lives of a process."""
Arrays = list[NDArray[np.float32]]
"""The same as arrays."""


Units = Sequence[Tokens | PairTokens | FeedbackTokens]


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows of an evaluation, encoded in the manner of every model that is scored on them (`Lineage.manner`)."""

    kind: RowKind
    manners: Mapping[str, str]
    """Model -> its manner."""
    units: Mapping[str, Units]
    """Manner -> the rows. The same rows in the same order for all."""


def evaluate(
    stage: EvalSettings,
    out: StageDir,
    rows: Path | None,
    contenders: Mapping[str, Callable[[], Lineage]],
    cache: Path,
    seed: int,
    display: Display,
    peers: Peers = ALONE,
) -> dict[str, Any]:
    """Run or resume an evaluation stage and return its ``result`` (docs/run-folder.md).

    rows: the held-out rows. contenders: what the names of ``stage.models`` mean. cache: the request cache of the run. peers: who shares the work of the models.
    """
    from posttrain.model import hardware

    device = hardware.resolve_device(stage.device)
    hardware.reset_peak_memory(device)
    dtype = hardware.choose_dtype("auto", device)
    dtype_name = str(dtype).removeprefix("torch.")
    ledger = Ledger()
    scored = [name for name in stage.models if name not in stage.others] if rows is not None else []
    held_out = HeldOut("conversations", {}, {})
    if rows is not None and scored:
        held_out = _held_out(rows, {name: contenders[name]() for name in scored}, stage, ledger)
    reference = (stage.reference or scored[0]) if scored and held_out.kind != "conversations" else None
    ledger.write(out.file("ledger.json"))
    fixed = None if stage.prompts is None else FixedPrompts(path=str(stage.prompts), max_tokens=stage.max_new_tokens)
    prepared = prepare(stage.benchmarks, fixed)
    settings = IntervalSettings(stage.confidence, stage.resamples, seed)
    parts = out.file("parts", dtype_name)
    logps: dict[str, Mapping[str, Logps]] = {}
    with RequestCache(cache) as answers:
        for name in stage.models:
            opened = EvaluatedModel(name, contenders[name], dtype, device, stage.slots, answers, display, peers)
            if name in scored:
                part = parts / name / "held_out.json"
                if not part.exists():
                    # rewards are measured from the reference on the very tokens of each model
                    manners = held_out.units if name == reference else [held_out.manners[name]]
                    own = {manner: held_out.units[manner] for manner in manners}
                    # Python writes floats so that they are read back to the bit
                    write_json(part, _held_out_logps(name, stage, own, opened, display))
                logps[name] = read_json(part)
            engine = partial(getattr, opened, "engine")
            answer(name, prepared, engine, parts, seed, display)
            del opened, engine  # the next model needs the room
        result: dict[str, Any] = {
            "models": list(stage.models),
            "device": str(device),
            "dtype": hardware.precision(dtype, device),
        }
        if any(held_out.units.values()):
            record, written = _measure(held_out, logps, reference, settings)
            write_record(out.path, record, written)
            tell(record, display)
            result |= headlines(record)
        found = measure(prepared, stage.models, stage.judge, answers, parts, out, settings, display, peers)
        for one, record in found:
            if one.folder:
                result.setdefault("benchmarks", {})[one.key] = headlines(record)
            else:
                result |= headlines(record)
    result["peak_memory_bytes"] = hardware.peak_memory(device)
    shutil.rmtree(out.file("parts"))  # all of it stands in the files above
    return result


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of an evaluation, in memory from its first use on."""

    name: str
    contender: Callable[[], Lineage]
    dtype: torch.dtype
    device: torch.device
    slots: int
    answers: RequestCache
    display: Display
    peers: Peers

    @cached_property
    def known(self) -> Lineage:
        """What it is."""
        return self.contender()

    @cached_property
    def model(self) -> nn.Module:
        """Its weights, loaded."""
        from posttrain.model.adapters import frozen_model

        return frozen_model(self.known.folder, self.known.adapter, self.dtype, self.device)

    @property
    def shared(self) -> SharedModel | None:
        """Where the other processes find it: they too have one model of an evaluation in memory at a time."""
        from posttrain.model.shared import shared_model

        known = self.known
        return shared_model(self.peers, known.folder, known.adapter, self.dtype, self.device, beside=self.name)

    @cached_property
    def engine(self) -> Engine:
        """It as an engine for benchmarks; where it generates slowly, that is said."""
        from posttrain.generate.local import LocalEngine
        from posttrain.generate.ways import speed_note

        if (note := speed_note(self.model)) is not None:
            self.display.note(note)
        known = self.known
        engine = LocalEngine(self.model, known.template, known.stops, known.identity, self.slots, self.shared)
        return CachedEngine(engine, self.answers)


def _held_out(rows: Path, lineages: Mapping[str, Lineage], stage: EvalSettings, ledger: Ledger) -> HeldOut:
    """The rows under every model's own template; a row that not all of them can be given is left out for all."""
    manners = {name: lineage.manner for name, lineage in lineages.items()}
    templates = {manners[name]: lineage.template for name, lineage in lineages.items()}
    found = {manner: _encoded(rows, templates[manner], stage, ledger) for manner in dict.fromkeys(manners.values())}
    parts = [{(unit.row_id, _part(unit)) for unit in units} for units in found.values()]
    common = set.intersection(*parts)
    if any(len(part) > len(common) for part in parts):
        step = ledger.step("compare", rows_in=max(map(len, parts)))
        step.rows_out = len(common)
        step.dropped["not_under_every_template"] = step.rows_in - step.rows_out
        found = {m: [u for u in units if (u.row_id, _part(u)) in common] for m, units in found.items()}
    return HeldOut(row_kind_of(rows) or "conversations", manners, found)


def _encoded(rows: Path, template: ChatTemplate, stage: EvalSettings, ledger: Ledger) -> Units:
    kind = row_kind_of(rows) or "conversations"
    return encode_kind(kind, read_kind(rows, kind), template, stage.max_length, "drop", ledger).examples


def _part(unit: Tokens | PairTokens | FeedbackTokens) -> int:
    return unit.part if isinstance(unit, Tokens) else 0


def _held_out_logps(
    name: str, stage: EvalSettings, held_out: Mapping[str, Units], opened: EvaluatedModel, display: Display
) -> dict[str, Logps]:
    """log p of the held-out sequences of one model, by manner."""
    from posttrain.model.lengths import check_fits
    from posttrain.model.shared import group_logps

    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        display.tick(f"held-out rows under {name}", done, sum(map(len, held_out.values())))

    logps: dict[str, Logps] = {}
    if any(held_out.values()):
        advance(0)
    for manner, units in held_out.items():
        groups = [sequences_of(unit) for unit in units]
        check_fits(opened.model, [one for group in groups for one in group], "max_length of this evaluation")
        # exact: in bf16 rounding alone moves a reply by half a nat, as a short DPO does
        model, budget = opened.model, stage.batch_tokens
        found = group_logps(opened.shared, model, groups, budget, opened.dtype, advance, exact=True) if groups else []
        logps[manner] = [part.tolist() for part in found]
    return logps


def _measure(
    held_out: HeldOut,
    logps: Mapping[str, Mapping[str, Logps]],
    reference: str | None,
    settings: IntervalSettings,
) -> tuple[TaskRecord, Iterable[TaskRow]]:
    """What the held-out rows say of the models."""
    from posttrain.model.score import weigh
    from posttrain.tasks.held_out.feedback import feedback_record, feedback_rows
    from posttrain.tasks.held_out.likelihood import likelihood_record, likelihood_rows
    from posttrain.tasks.held_out.preferences import PairScores, preference_record, preference_rows

    def arrays(name: str, manner: str) -> Arrays:
        return [np.array(part, np.float32) for part in logps[name][manner]]

    own = {name: arrays(name, manner) for name, manner in held_out.manners.items()}
    units: Any = {
        name: held_out.units[manner] for name, manner in held_out.manners.items()
    }  # all of the kind of the rows
    first = units[next(iter(units))]
    if reference is None:
        scores = {name: weigh(units[name], found) for name, found in own.items()}
        return likelihood_record(scores, settings=settings), likelihood_rows(scores, first)
    start = {name: arrays(reference, manner) for name, manner in held_out.manners.items()}
    if held_out.kind == "pairs":
        pairs, starts = (
            {name: PairScores(found[0::2], found[1::2]) for name, found in given.items()} for given in (own, start)
        )
        return preference_record(pairs, reference, starts, settings=settings), preference_rows(pairs, first)
    labels = [reply.desirable for reply in first]
    return feedback_record(own, labels, reference, start, settings=settings), feedback_rows(own, first)
