"""Run a recipe: stages in the order of their references, each finished once, resumed where it was cut.

A stage's identity is the digest of its configuration, the recipe's seed, what it reads (by digest) and the model. A stage
that is complete under the same identity is not run again; one that was running goes on; one whose
identity changed starts anew, and the old folder is kept under ``.replaced/``.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import assets
from posttrain.artifacts import (
    Ledger,
    RunDir,
    StageDir,
    digest,
    file_digest,
    provenance,
    read_json,
    remove_leftovers,
    write_error,
    write_json,
    write_text,
)
from posttrain.config import resolved_yaml
from posttrain.data.config import DataStage
from posttrain.data.mix import row_repeats
from posttrain.data.pipeline import inputs_digest, prepare
from posttrain.data.rows import read_feedback, read_pairs, read_rows
from posttrain.encode.clock import clock, stopped_at
from posttrain.encode.preferences import (
    EncodedUnits,
    FeedbackTokens,
    encode_feedback,
    encode_pairs,
    sequences_of,
)
from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import EncodedRows, encode_rows
from posttrain.errors import ConfigError, DataError, InterruptedRunError, PosttrainError
from posttrain.judge.config import JudgeSource
from posttrain.lab.benchmarking import check_benchmarks, tasks_digest
from posttrain.lab.display import Display
from posttrain.lab.evaluation import evaluate
from posttrain.lab.recipe import BASE, JUDGE_TARGETS, Recipe, Stage, execution_order, stage_inputs
from posttrain.model.companions import TEMPLATE_FILE
from posttrain.objectives.kto import KtoObjective, balance_warning
from posttrain.report.config import ReportStage
from posttrain.report.data_page import write_data_page
from posttrain.report.page import write_report
from posttrain.stages.eval import EvalStage
from posttrain.stages.train import TrainStage
from posttrain.tasks import AnyBenchmark, benchmark_files, with_files
from posttrain.tasks.prompts import BUILTIN, load_prompts
from posttrain.types import RowKind

if TYPE_CHECKING:
    from posttrain.lab.models import Lineage
    from posttrain.train.loop import Reference

READERS: dict[RowKind, Callable[[Path], Sequence[Any]]] = {
    "conversations": read_rows,
    "pairs": read_pairs,
    "feedback": read_feedback,
}
"""How the rows of each kind are read."""
CLOCK_FILE = "clock.json"
"""The file of a run that says what time its chat templates are told."""
SHOWN_REJECTS = 3
"""Dropped rows shown in an error."""
RESULTS_VERSION = 3
"""Raised when a stage's results would differ for the same configuration, so that old runs are computed again."""


@dataclass(frozen=True)
class Experiment:
    """A recipe with its run folder and its display."""

    recipe: Recipe
    run: RunDir
    display: Display

    @cached_property
    def base_folder(self) -> Path:
        """The local folder of the recipe's model, fetched where needed."""
        from posttrain.model.folder import check_model_folder
        from posttrain.model.source import model_folder

        folder = model_folder(self.recipe.model, self.display.tick)
        check_model_folder(folder)
        return folder

    @cached_property
    def base_digest(self) -> str:
        """Identity of the model's files."""
        from posttrain.lab.models import model_digest

        return model_digest(self.base_folder)

    def execute(self, only: Sequence[str] | None = None) -> None:
        """Run all stages, or the named ones with everything they read. Holds the run's lock."""
        wanted = _closure(self.recipe, only) if only else set(self.recipe.stages)
        with self.run.lock():
            write_text(self.run.path / "recipe.yaml", resolved_yaml(self.recipe))
            remove_leftovers(self.run.path)
            self._check_files(wanted)
            with stopped_at(self._clock()):
                for name in execution_order(self.recipe):
                    if name in wanted:
                        self._stage(name, self.recipe.stages[name])

    def _clock(self) -> datetime:
        """The time chat templates are told in this run, however often it is resumed: that of its first start."""
        path = self.run.path / CLOCK_FILE
        if not path.is_file():
            write_json(path, {"now": clock().isoformat(timespec="seconds")})
        return datetime.fromisoformat(read_json(path)["now"])

    def _check_files(self, names: set[str]) -> None:
        """Find out before anything runs that the model, a file or a device is missing, or that a template is broken."""
        for name in names:
            stage = self.recipe.stages[name]
            if isinstance(stage, EvalStage):
                check_benchmarks(stage.benchmarks, stage.models, stage.judge, f"stages.{name}")
            for key, path in _own_files(stage).items():
                if not path.is_file():
                    raise DataError(f"no such {key} file", where=f"stages.{name}.{key}: {path}")
            if isinstance(stage, EvalStage) and stage.prompts is not None:
                load_prompts(stage.prompts)
        for name in names:
            stage = self.recipe.stages[name]
            if isinstance(stage, TrainStage | EvalStage):
                from posttrain.encode.template import load_template, load_tokenizer  # a second to import

                folder = self.base_folder
                if stage.device not in ("auto", "cpu"):
                    _check_device(stage.device, f"stages.{name}.device")
                if stage.template is not None or (isinstance(stage, TrainStage) and stage.start_from == BASE):
                    load_template(load_tokenizer(folder), None if stage.template is None else Path(stage.template))

    def _stage(self, name: str, stage: Stage) -> None:
        out = self.run.stage(name)
        inputs = self._input_digests(name, stage)
        identity = digest({"stage": stage, "seed": self.recipe.seed, "inputs": inputs, "code": RESULTS_VERSION})
        manifest = out.manifest()
        if isinstance(stage, ReportStage):
            manifest = None  # reading artefacts is cheap, and the report must show what is there now
        if manifest is not None and manifest["digest"] == identity and manifest["status"] == "complete":
            self.display.stage(name, stage.kind, "unchanged")
            return
        resuming = manifest is not None and manifest["digest"] == identity
        self.display.stage(name, stage.kind, "resuming" if resuming else "running")
        if manifest is not None and not resuming:
            self._set_aside(out, manifest)
        fields: dict[str, Any] = {
            "kind": stage.kind,
            "status": "running",
            "config": stage,
            "digest": identity,
            "inputs": inputs,
            "started": time.time(),
            "provenance": provenance(),
        }
        begin = time.perf_counter()
        if resuming and manifest is not None and manifest.get("seconds"):  # of the sessions before
            fields["seconds"] = manifest["seconds"]
            begin -= manifest["seconds"]
        out.write_manifest(fields)
        try:
            result = self._run(name, stage, out, identity)
        except InterruptedRunError:
            out.write_manifest(fields | {"seconds": time.perf_counter() - begin})
            raise
        except Exception as error:
            told = str(error) if isinstance(error, PosttrainError) else traceback.format_exc()
            ended = {"finished": time.time(), "seconds": time.perf_counter() - begin}
            out.write_manifest(fields | {"status": "failed", "error": told} | ended)
            raise
        seconds = time.perf_counter() - begin
        from_result = {key: result.get(key) for key in ("peak_memory_bytes", "device", "dtype")}
        done = {"status": "complete", "finished": time.time(), "seconds": seconds, **from_result, "result": result}
        out.write_manifest(fields | done)

    def _input_digests(self, name: str, stage: Stage) -> dict[str, str]:
        """What the stage reads, by content."""
        if isinstance(stage, ReportStage):
            return {}
        found = {key: self._stage_digest(other) for key, other in stage_inputs(self.recipe, name).items()}
        if isinstance(stage, DataStage):
            found["sources"] = inputs_digest(stage, self._resolve)
        else:
            found[BASE] = self.base_digest
        found |= {key: file_digest(path) for key, path in _own_files(stage).items()}
        if isinstance(stage, EvalStage):
            found |= {f"benchmarks.{key}": tasks_digest(_fetched(one)) for key, one in stage.benchmarks.items()}
            from posttrain.lab.targets import resolve_target

            found |= {f"others.{key}": resolve_target(target).identity for key, target in stage.others.items()}
        return found

    def _stage_digest(self, name: str) -> str:
        manifest = self.run.stage(name).manifest()
        assert manifest is not None, f"{name} comes before those that read it"
        return str(manifest["digest"])

    def _set_aside(self, out: StageDir, manifest: Mapping[str, Any]) -> None:
        target = self.run.path / ".replaced" / f"{out.path.name}-{manifest['digest'][:8]}"
        try:
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            os.replace(out.path, target)
        except OSError as error:
            raise write_error(error, target) from error
        self.display.note(f"its configuration or inputs changed; the old results are in {target}")

    def _resolve(self, name: str) -> Path | None:
        """A demo data set's file, fetched with progress."""
        return assets.resolve_data(name, self.display.tick)

    def _run(self, name: str, stage: Stage, out: StageDir, identity: str) -> dict[str, Any]:
        match stage:
            case DataStage():
                return self._data(stage, out)
            case TrainStage():
                return self._train(stage, out, identity)
            case EvalStage():
                return self._eval(stage, out)
            case ReportStage():
                return {"page": str(write_report(self.run, stage.title))}

    # ---- one method a kind -----------------------------------------------------------------------------------------

    def _data(self, stage: DataStage, out: StageDir) -> dict[str, Any]:
        result = prepare(stage, out, self.recipe.seed, self._resolve, self.display.tick)
        if stage.profile:
            write_data_page(out.path, f"{self.recipe.name}: {out.path.name}")
        test = f", {result['test_rows']:,} to test" if "test_rows" in result else ""
        self.display.note(f"{result['train_rows']:,} rows to train on, {result['held_out_rows']:,} held out{test}")
        return result

    def _train(self, stage: TrainStage, out: StageDir, identity: str) -> dict[str, Any]:
        from posttrain.lab.models import write_record
        from posttrain.model import hardware
        from posttrain.train.loop import TrainInputs, train

        hardware.reset_peak_memory(hardware.resolve_device(stage.device))
        start = self._lineage(stage.start_from)
        lineage = start.spoken(stage.template)
        template = lineage.template
        decided = f"template: {stage.template}" if stage.template is not None else stage.start_from
        if stage.template is not None and start.has_template and start.manner != lineage.manner:
            self.display.note(f"{decided} takes the place of the template that {stage.start_from} was made with")
        files = {side: self.run.stage(stage.data).file("rows", f"{side}.parquet") for side in ("train", "held_out")}
        rows = {side: READERS[stage.objective.rows](path) for side, path in files.items()}
        ledger = Ledger()
        encoded = self._encode(rows["train"], template, stage, ledger, "encoding rows")
        examples = repeated_examples(encoded.examples, row_repeats(files["train"]), ledger)
        ledger.write(out.file("ledger.json"))
        write_json(out.file("lengths.json"), encoded.lengths_record(stage.max_length))
        if not encoded.examples:
            raise _nothing_left(ledger, encoded, stage.max_length, out)
        held_out = self._encode(rows["held_out"], template, stage, Ledger(), "encoding held-out rows")
        self._tell_encoding(ledger, examples)
        if isinstance(stage.objective, KtoObjective):
            self._check_balance(stage.objective, examples, self.run.stage(stage.data).path)
        inputs = TrainInputs(
            model_folder=lineage.folder,
            adapter_folder=lineage.adapter,
            companions=replace(lineage.companions(), base=self._base_name(lineage)),
            examples=examples,
            held_out=held_out.examples,
            origins={row.id: str(row.origin) for side in rows.values() for row in side},
            reference=self._reference(stage) if stage.objective.needs_reference else None,
        )
        self.display.tick("loading the model", 0, 0)
        result = train(
            stage,
            inputs,
            out,
            seed=self.recipe.seed,
            digest=identity,
            observer=self.display.record,
            on_interrupt=lambda: self.display.note("stopping after this step; Ctrl-C again stops at once"),
            on_progress=self.display.tick,
        )
        write_record(out, lineage, self.base_folder, decided)
        self.display.note(
            f"{result['steps']:,} steps, loss {result['first_loss']:.3f} -> {result['last_loss']:.3f}, "
            f"{result['tokens_per_second']:,.0f} tok/s, peak memory {result['peak_memory_bytes'] / 1e9:.2f} GB"
        )
        return result

    def _reference(self, stage: TrainStage) -> Reference:
        """What a stage compares with; stages with the same reference share its file."""
        from posttrain.train.loop import Reference

        name = getattr(stage.objective, "reference", None) or stage.start_from
        lineage = self._lineage(name)
        identity = lineage.identity
        cache = self.run.path / ".reference" / f"{identity[:16]}.safetensors"
        if name == stage.start_from:
            return Reference(cache, identity)
        return Reference(cache, identity, lineage.folder, lineage.adapter)

    def _check_balance(self, objective: KtoObjective, examples: Sequence[FeedbackTokens], data: Path) -> None:
        desirable = sum(example.desirable for example in examples)
        counts = (desirable, len(examples) - desirable)
        told = balance_warning(*counts, objective.desirable_weight, objective.undesirable_weight)
        if told is not None and 0 in counts:
            raise DataError(told, where=str(data), fix="add rows of the other kind, or train another objective")
        if told is not None:
            self.display.note(f"warning: {told}")

    def _eval(self, stage: EvalStage, out: StageDir) -> dict[str, Any]:
        rows = None if stage.data is None else self.run.stage(stage.data).file("rows", "held_out.parquet")
        # read when their turn comes, and once: an identity is a hash over all weights
        contenders = {name: cache(partial(self._contender, stage, name)) for name in stage.models}
        requests = self.run.path / ".requests.sqlite"
        return evaluate(self._with_files(stage), out, rows, contenders, requests, self.recipe.seed, self.display)

    def _contender(self, stage: EvalStage, name: str) -> Lineage:
        """What a model name of an evaluation means; a base without a template is spoken to as the stages that were trained from it."""
        from posttrain.lab.targets import resolve_target

        if name in stage.others:
            return resolve_target(stage.others[name])
        lineage = self._lineage(name).spoken(stage.template)
        if name != BASE or lineage.has_template:
            return lineage
        trained = (self._lineage(other).home / TEMPLATE_FILE for other in stage.models if other in self.recipe.stages)
        return lineage.spoken(next((file for file in trained if file.is_file()), None))

    def _with_files(self, stage: EvalStage) -> EvalStage:
        """The stage with files of the hub fetched, and stages that judge as their folders."""
        benchmarks = {key: _fetched(benchmark) for key, benchmark in stage.benchmarks.items()}
        judge = stage.judge
        if judge is not None:
            judge = replace(judge, judges=tuple(self._judge_source(source) for source in judge.judges))
        return replace(stage, benchmarks=benchmarks, judge=judge)

    def _judge_source(self, source: JudgeSource) -> JudgeSource:
        own: dict[str, Any] = {
            key: str(self.run.stage(value).path)
            for key in JUDGE_TARGETS
            if (value := getattr(source, key)) in self.recipe.stages
        }
        return replace(source, **own)

    # ---- helpers of the methods above ------------------------------------------------------------------------------

    def _lineage(self, model_name: str) -> Lineage:
        """What a model name of the recipe means: the base, or what a train stage has written."""
        from posttrain.lab.models import Lineage, stage_lineage

        if model_name == BASE:
            return Lineage(self.base_folder)
        return stage_lineage(self.run.stage(model_name), lambda: self.base_folder)

    def _base_name(self, lineage: Lineage) -> str:
        """How an adapter names what it lies on: the recipe's model by its name on the hub, everything else by its folder."""
        model = self.recipe.model
        on_hub = lineage.folder == self.base_folder and not Path(model).is_dir() and model not in assets.MODELS
        return model if on_hub else str(lineage.folder.resolve())

    def _encode(
        self, rows: Sequence[Any], template: ChatTemplate, stage: TrainStage, ledger: Ledger, label: str
    ) -> EncodedRows | EncodedUnits[Any]:
        """The units of the objective's kind of rows."""

        def progress(done: int) -> None:
            self.display.tick(label, done, len(rows))

        match stage.objective.rows:
            case "conversations":
                return encode_rows(rows, template, stage.max_length, stage.over_length, ledger, progress)
            case "pairs":
                return encode_pairs(rows, template, stage.max_length, ledger, progress)
            case "feedback":
                return encode_feedback(rows, template, stage.max_length, ledger, progress)

    def _tell_encoding(self, ledger: Ledger, examples: Sequence[Any]) -> None:
        sequences = [sequence for example in examples for sequence in sequences_of(example)]
        tokens = sum(map(len, sequences))
        share = sum(sequence.supervised for sequence in sequences) / tokens
        dropped = ", ".join(f"{count} {reason}" for reason, count in ledger.steps[0].dropped.items()) or "none"
        self.display.note(f"{len(examples):,} examples, {tokens:,} tokens, {share:.0%} supervised; dropped: {dropped}")


def repeated_examples(examples: list[Any], repeats: Mapping[str, int], ledger: Ledger) -> list[Any]:
    """The examples of an epoch, each as often as its row counts (see ``data.mix``); repetitions go to the ledger."""
    if not repeats:
        return examples
    step = ledger.step("repeat", rows_in=len(examples))
    out = [example for example in examples for _ in range(repeats.get(example.row_id, 1))]
    step.rows_out, step.added = len(out), len(out) - len(examples)
    return out


def _check_device(name: str, where: str) -> None:
    from posttrain.model.hardware import resolve_device

    try:
        resolve_device(name)
    except ConfigError as error:
        raise ConfigError(error.problem, where=where, fix=error.fix) from error


def _own_files(stage: Stage) -> dict[str, Path]:
    """The files a stage's configuration names, by key; they are part of its identity."""
    found = {}
    if isinstance(stage, TrainStage | EvalStage) and stage.template is not None:
        found["template"] = Path(stage.template)
    if isinstance(stage, EvalStage):
        if stage.prompts is not None:
            found["prompts"] = BUILTIN if stage.prompts == "builtin" else Path(stage.prompts)
        for key, benchmark in stage.benchmarks.items():
            for name, file in benchmark_files(benchmark).items():
                if not assets.is_hub_file(file):
                    found[f"benchmarks.{key}.{name}"] = Path(file)
        for place, source in enumerate(stage.judge.judges if stage.judge is not None else ()):
            if source.gguf is not None:
                found[f"judge.judges.{place}.gguf"] = Path(source.gguf)
    return found


def _fetched(benchmark: AnyBenchmark) -> AnyBenchmark:
    """The benchmark with its files of the hub in the local cache."""
    files = benchmark_files(benchmark)
    return with_files(benchmark, {k: str(assets.hub_file(f)) for k, f in files.items() if assets.is_hub_file(f)})


def _closure(recipe: Recipe, names: Sequence[str]) -> set[str]:
    """The named stages and everything they read, directly or not."""
    wanted: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo += stage_inputs(recipe, name).values()
    return wanted


def _nothing_left(
    ledger: Ledger, encoded: EncodedRows | EncodedUnits[Any], max_length: int, out: StageDir
) -> DataError:
    dropped = ", ".join(f"{count} {reason}" for reason, count in ledger.steps[0].dropped.items())
    examples = "".join(f"\n  {r.origin}: {r.reason}: {r.detail}" for r in ledger.rejects[:SHOWN_REJECTS])
    fix = f"see {out.file('ledger.json')} for every row and its reason"
    if len(encoded.conversation_lengths):
        shortest = int(encoded.conversation_lengths.min())
        fix = f"raise max_length (it is {max_length}, the shortest row has {shortest} tokens), or over_length: truncate"
    return DataError(f"nothing to train on: all rows were dropped ({dropped}){examples}", where=str(out.path), fix=fix)
