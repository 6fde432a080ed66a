"""``kind: score``: what a model thinks of every row, as scores the rows carry on (docs/data-selection.md).

For the tokens of a row that the model itself must write, each turn's stop included, in nats a token:

    loss         mean of -log p(token | everything before it)
    mean_logp    -loss: what GRAPE compares responses by (Zhang et al. 2025, arXiv 2502.04194)
    loss_alone   the same mean where nothing of the conversation stands before the answer (posttrain.encode.alone)
    ifd          loss / loss_alone: above 1 the prompt is of no help (Li et al. 2024, arXiv 2308.12032)
    assistant_tokens, tokens   how many were averaged, and the length of the conversation

Rows that can't be encoded, or are too long, stay in the file without scores and are counted by reason. What is computed
is kept in blocks under the run's ``.scores/``, by model, template and type of numbers: a killed scoring goes on.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import polars as pl
from annotated_types import Ge
from numpy.typing import NDArray

from posttrain.artifacts import Ledger, StageDir, atomic_path, read_json
from posttrain.data.rows import SCHEMA, frame_rows, refuse_prompts
from posttrain.data.steps import REJECTS, Decisions, apply, blocks
from posttrain.encode.alone import answer_opening, answers_alone
from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import encode_rows
from posttrain.parallel.peers import Peers
from posttrain.references import Gives, NamesFile, NamesModel, NamesStage
from posttrain.report.values import Number, Section, Table, Text
from posttrain.stages.base import BASE, Context, StageKind
from posttrain.table import grouped
from posttrain.types import Display, Origin, SftRow, Tokens

if TYPE_CHECKING:
    import torch
    from torch import nn

    from posttrain.model.lineage import Lineage
    from posttrain.model.shared import SharedModel

STEP = "score"
CACHE = ".scores"
"""Folder of a run with what was computed."""
SCORING = "scoring rows"
CACHE_ROWS = 64
"""Rows that a process computes and that are kept together: what a kill costs at most."""
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
_CACHED: dict[str, Any] = {
    "id": pl.String,
    "reason": pl.String,
    "nll": pl.Float64,
    "nll_alone": pl.Float64,
    "assistant_tokens": pl.Int64,
    "tokens": pl.Int64,
}
"""One row of the cache: sums in nats over ``assistant_tokens`` tokens; ``reason`` is null where they are there."""


@dataclass(frozen=True, kw_only=True)
class ScoreStage(StageKind):
    """Score the training rows of a stage with a model: loss, IFD, mean log-probability. Held-out rows go on as they are."""

    kind: Literal["score"]
    data: Annotated[str, NamesStage("rows")]
    """The stage whose rows are scored."""
    model: Annotated[str, NamesStage("model", or_outside="model")] = BASE
    """Who scores: ``base``, a train stage, or a model from outside (a folder, an adapter, ``runs/NAME/STAGE``, an asset, a hub name)."""
    base: Annotated[str, NamesModel()] | None = None
    """Base model of an adapter folder, where it is not the one the adapter names."""
    template: Annotated[str, NamesFile()] | None = None
    """A Jinja chat template file in place of the model's own."""
    max_length: Annotated[int, Ge(2)] = 2048
    """Longer conversations stay without scores."""
    batch_tokens: Annotated[int, Ge(1)] = 4096
    """Tokens computed at once."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu) or a torch device name."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the products; ``auto`` = bf16 where it is faster here, and what was begun stays what it was."""

    @property
    def gives(self) -> Gives:
        """The rows with their scores."""
        return "rows"

    def check(self, context: Context) -> None:
        """The device is here, and the recipe's own model."""
        context.check_device(self.device)
        if self.model == BASE:
            context.base_folder()

    def run(self, context: Context) -> Mapping[str, Any]:
        """Score the rows; what was computed for a row before, in this run, is not computed again."""
        context.settle_threads()
        out, read = context.out, context.run.stage(self.data)
        rows_file = read.file("rows", "train.parquet")
        refuse_prompts(rows_file)
        lineage = self._lineage(context).spoken(self.template)
        by = f"{self._label(context)}@{lineage.identity[:8]}"
        dtype_name, device = self._numbers(context.run.path / CACHE, lineage.identity)
        cache = _cache_folder(context.run.path / CACHE, lineage.identity, dtype_name, self.max_length)
        opening = answer_opening(lineage.template)
        known = _cached(cache)
        ids = _ids(rows_file)
        wanted = ids - set(known["id"])
        if len(wanted) < len(ids):
            context.display.note(f"{len(ids) - len(wanted):,} rows were scored before")
        if wanted:
            parts = _parts(rows_file, wanted, CACHE_ROWS * context.peers.size)
            model = _Scorer(lineage, dtype_name, device, context.peers)
            _compute(self, parts, len(wanted), opening, model, cache, context.display)
            known = _cached(cache)
        columns, counts = _with_scores(rows_file, known, by)
        facts = {
            "model": context.model if self.model == BASE else self.model,
            "by": by,
            "dtype": dtype_name,
            "max_length": self.max_length,
            "opening": lineage.template.tokenizer.decode(opening.tolist()),
            "sources": _by_source(rows_file, known),
        }
        decisions = Decisions(pl.DataFrame(schema=REJECTS), columns=columns, facts=facts, notes=counts)
        apply(STEP, rows_file, decisions, out.path)
        out.file("rows").mkdir(exist_ok=True)
        os.replace(out.file("rows.parquet"), out.file("rows", "train.parquet"))
        for side in ("held_out", "test"):
            if (other := read.file("rows", f"{side}.parquet")).exists():
                shutil.copyfile(other, out.file("rows", f"{side}.parquet"))
        return facts

    @staticmethod
    def section(out: StageDir) -> Section:
        """Per source: rows scored and not, the middle of loss and IFD."""
        facts = read_json(out.file("facts.json"))
        rows = []
        unscored = Counter[str]()
        for source, found in facts["sources"].items():
            spread = [
                Number(found[name]["p50"], "number", found[name]["p25"], found[name]["p75"], 3)
                if name in found
                else None
                for name in ("loss", "ifd")
            ]
            counts = [Number(found[name], "count") for name in ("rows", "scored", "ifd_above_1")]
            rows.append((source, *counts[:2], *spread, counts[2]))
            unscored.update(found["unscored"])
        columns = ("source", "rows", "scored", "loss: median and quartiles", "IFD: median and quartiles", "IFD > 1")
        lost = ", ".join(f"{count:,} {reason}" for reason, count in unscored.items())
        texts = [Text(f"Without scores: {lost}.", "aside")] if lost else []
        by = Text(f"Scored by {facts['by']} ({facts['dtype']}).", "aside")
        return Section(f"Scores: {out.path.name}", out.path.name, (Table("", columns, tuple(rows)), *texts, by))

    def _lineage(self, context: Context) -> Lineage:
        from posttrain.model.targets import resolve_target

        inside = self.model == BASE or self.model in context.stages
        return context.lineage(self.model) if inside else resolve_target(self.model, self.base)

    def _label(self, context: Context) -> str:
        """The name by which scores remember the model: an asset's or hub name, a folder's name, run/stage of a train stage."""
        if self.model in context.stages:
            return f"{context.run.path.resolve().name}/{self.model}"
        model = context.model if self.model == BASE else self.model
        path = Path(model)
        if (path / "manifest.json").is_file():
            return f"{path.resolve().parent.name}/{path.resolve().name}"
        return path.resolve().name if path.exists() else model

    def _numbers(self, cache: Path, identity: str) -> tuple[str, torch.device]:
        """Type of the products and device. ``auto`` goes on with the type in which scores of this model were begun."""
        from posttrain.model import hardware

        device = hardware.resolve_device(self.device)
        begun = [n for n in hardware.DTYPES if _cache_folder(cache, identity, n, self.max_length).is_dir()]
        if self.dtype == "auto" and begun:
            return begun[0], device
        dtype = hardware.choose_dtype(self.dtype, device)
        return next(name for name, known in hardware.DTYPES.items() if known == dtype), device


# ---- rows ------------------------------------------------------------------------------------------------------------


def _with_scores(rows: Path, known: pl.DataFrame, by: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """The new ``scores`` of every row of a file, and how many rows were scored and not, by reason."""
    named = _named(known).select("id", scores=_structs(by))
    old = pl.scan_parquet(rows).select("id", "scores").collect()
    others = pl.element().struct.field("by") != by
    frame = old.select("id", kept=pl.col("scores").list.eval(pl.element().filter(others))).join(
        named, on="id", how="left", maintain_order="left"
    )
    scores = pl.concat_list(pl.col("kept"), pl.col("scores").fill_null([]))
    reasons = old.join(known, on="id", how="left")["reason"].value_counts().sort("reason", nulls_last=False)
    counts = {"scored" if reason is None else f"unscored: {reason}": count for reason, count in reasons.iter_rows()}
    return frame.select(scores=scores), counts


SCORES = ("loss", "mean_logp", "loss_alone", "ifd", "assistant_tokens", "tokens")
"""Names of the scores, in the order in which they are written."""


def _named(known: pl.DataFrame) -> pl.DataFrame:
    """The scored rows with a column for each score."""
    loss, alone = pl.col("nll") / pl.col("assistant_tokens"), pl.col("nll_alone") / pl.col("assistant_tokens")
    return known.filter(pl.col("reason").is_null()).with_columns(
        loss=loss, mean_logp=-loss, loss_alone=alone, ifd=pl.col("nll") / pl.col("nll_alone")
    )


def _structs(by: str) -> pl.Expr:
    entries = [
        pl.struct(name=pl.lit(name), value=pl.col(name).cast(pl.Float64), by=pl.lit(by)).alias(name) for name in SCORES
    ]
    finite = pl.element().struct.field("value").is_finite()
    return pl.concat_list(entries).list.eval(pl.element().filter(finite))


def _by_source(rows: Path, known: pl.DataFrame) -> dict[str, Any]:
    """Per source: rows, those scored, those not by reason, and quantiles of every score."""
    placed = pl.scan_parquet(rows).select("id", "source").collect().join(known, on="id", how="left")
    facts = {}
    for (source,), part in sorted(placed.group_by("source")):
        named = _named(part)
        reasons = part["reason"].drop_nulls().value_counts().sort("reason")
        facts[str(source)] = {
            "rows": len(part),
            "scored": len(named),
            "unscored": dict(reasons.iter_rows()),
            "ifd_above_1": int((named["ifd"] > 1).sum()),
            **{name: _quantiles(named[name]) for name in SCORES if len(named)},
        }
    return facts


def _quantiles(values: pl.Series) -> dict[str, float]:
    numbers = values.to_numpy()
    return {name: float(np.quantile(numbers, q)) for name, q in QUANTILES.items()} | {"mean": float(numbers.mean())}


# ---- computing -------------------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """What is computed for one row: its examples, and its answers alone. ``reason``: why there are none."""

    row_id: str
    examples: tuple[Tokens, ...]
    alone: tuple[Tokens, ...]
    reason: str | None


def _answers(
    rows: Sequence[SftRow], ids: Sequence[str], template: ChatTemplate, opening: NDArray[np.int32], max_length: int
) -> list[_Answer]:
    """The rows encoded as for training; a row one of whose examples can't be encoded or is too long has none.

    ``opening``: what stands before an answer alone. Pairs with the same prompt and chosen reply are one conversation, which is encoded once.
    """
    contents = [row.id for row in rows]
    # in this ledger a conversation stands at its content: pairs made of one record share their origin
    distinct = {content: replace(row, origin=Origin(content, 0)) for content, row in zip(contents, rows, strict=True)}
    ledger = Ledger()
    encoded = encode_rows(list(distinct.values()), template, max_length, "drop", ledger)
    reasons = {reject.origin.file: reject.reason for reject in ledger.rejects}
    examples = grouped((example.row_id, _unweighted(example)) for example in encoded.examples)
    return [
        _Answer(row_id, (), (), reasons[content])
        if content in reasons
        else _Answer(
            row_id,
            tuple(examples[content]),
            tuple(alone for example in examples[content] for alone in answers_alone(example, opening)),
            None,
        )
        for content, row_id in zip(contents, ids, strict=True)
    ]


def _unweighted(example: Tokens) -> Tokens:
    """The example with weight 1 at every supervised token: scores are plain means."""
    return replace(example, weights_T=(example.weights_T != 0).astype(np.float32))


class _Scorer(NamedTuple):
    """Who scores."""

    lineage: Lineage
    dtype_name: str
    device: torch.device
    peers: Peers
    """Who shares the work."""


def _compute(
    stage: ScoreStage,
    parts: Iterator[pl.DataFrame],
    total: int,
    opening: NDArray[np.int32],
    scorer: _Scorer,
    cache: Path,
    display: Display,
) -> None:
    """Score rows, a part at a time; every part is a file of the cache. ``total``: rows of all parts."""
    from posttrain.model import hardware
    from posttrain.model.adapters import frozen_model
    from posttrain.model.lengths import check_fits
    from posttrain.model.shared import shared_model

    lineage, dtype = scorer.lineage, hardware.DTYPES[scorer.dtype_name]
    where = (lineage.folder, lineage.adapter, dtype, scorer.device)
    display.tick("loading the model", 0, 0)
    model, shared = frozen_model(*where), shared_model(scorer.peers, *where)
    display.tick("loading the model", 1, 1)
    done = 0
    for part in parts:
        ids = part["id"].to_list()
        answers = _answers(frame_rows(part), ids, lineage.template, opening, stage.max_length)
        check_fits(model, [example for answer in answers for example in answer.examples], "max_length of this stage")
        advance = _part_progress(display, done, len(ids), total, answers)
        frame = _likelihoods(shared, model, answers, stage.batch_tokens, dtype, advance)
        with atomic_path(cache / f"{ids[0]}.parquet") as temporary:
            frame.write_parquet(temporary)
        done += len(ids)
        display.tick(SCORING, done, total)


def _part_progress(
    display: Display, before: int, rows: int, total: int, answers: Sequence[_Answer]
) -> Callable[[int], None]:
    """From examples computed to rows on the display."""
    examples = sum(len(answer.examples) + len(answer.alone) for answer in answers)
    computed = 0

    def advance(count: int) -> None:
        nonlocal computed
        computed += count
        if computed < examples:
            display.tick(SCORING, before + rows * computed // examples, total)

    return advance


def _likelihoods(
    shared: SharedModel | None,
    model: nn.Module,
    answers: Sequence[_Answer],
    batch_tokens: int,
    dtype: torch.dtype,
    progress: Callable[[int], None],
) -> pl.DataFrame:
    """The lines of ``_CACHED`` for these rows."""
    from posttrain.model.score import weigh
    from posttrain.model.shared import group_logps

    under = [example for answer in answers for example in answer.examples]
    alone = [example for answer in answers for example in answer.alone]
    groups = [[example] for example in [*under, *alone]]
    logps = group_logps(shared, model, groups, batch_tokens, dtype, progress)
    sums = weigh([*under, *alone], logps).nll_N.tolist()
    nll, nll_alone = iter(sums[: len(under)]), iter(sums[len(under) :])
    lines = []
    for answer in answers:
        own = sum(next(nll) for _ in answer.examples)
        own_alone = sum(next(nll_alone) for _ in answer.alone)
        reason = answer.reason if math.isfinite(own) and math.isfinite(own_alone) else "not_finite"
        lines.append(
            {
                "id": answer.row_id,
                "reason": reason,
                "nll": own,
                "nll_alone": own_alone,
                "assistant_tokens": sum(example.supervised for example in answer.examples),
                "tokens": max((len(example) for example in answer.examples), default=0),
            }
        )
    return pl.DataFrame(lines, schema=_CACHED)


def _ids(rows: Path) -> set[str]:
    return set(pl.scan_parquet(rows).select(pl.col("id").unique()).collect()["id"])


def _parts(rows: Path, wanted: AbstractSet[str], size: int) -> Iterator[pl.DataFrame]:
    """The wanted rows, each once, in parts of ``size``.

    The rows of a block are taken in the order of their ids, so that what is computed together, and with it the
    rounding, does not depend on the order of the rows.
    """
    seen: set[str] = set()
    for _, block in blocks(rows, list(SCHEMA)):
        fresh = block.filter(pl.col("id").is_in(sorted(wanted - seen))).unique("id", keep="any").sort("id")
        seen.update(fresh["id"])
        for begin in range(0, len(fresh), size):
            yield fresh.slice(begin, size)


def _cache_folder(cache: Path, identity: str, dtype_name: str, max_length: int) -> Path:
    return cache / f"{identity[:16]}-{dtype_name}-{max_length}"


def _cached(folder: Path) -> pl.DataFrame:
    """All lines of the cache, each row once."""
    parts = [pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))]
    return pl.concat([pl.DataFrame(schema=_CACHED), *parts]).unique("id", keep="first", maintain_order=True)
