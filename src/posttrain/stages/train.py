"""``kind: train``: supervised fine-tuning, preference alignment or a reward model, whichever its objective says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from posttrain import assets
from posttrain.artifacts import Ledger, StageDir, digest, write_json
from posttrain.errors import ConfigError, DataError
from posttrain.model.config import LoraAdapter
from posttrain.references import Gives, NamesStage
from posttrain.stages.base import BASE, Context, StageKind
from posttrain.train.config import TrainSettings

if TYPE_CHECKING:
    from posttrain.encode.template import ChatTemplate
    from posttrain.encode.tokens import EncodedRows
    from posttrain.model.lineage import Lineage
    from posttrain.report.reading import Gap, Stage
    from posttrain.report.values import Section
    from posttrain.train.loop import Reference

SHOWN_REJECTS = 3
"""Dropped rows shown in an error."""


@dataclass(frozen=True, kw_only=True)
class _Inputs(StageKind):
    """What a training run takes from other stages (a base of its own: its keys come first)."""

    kind: Literal["train"]
    data: Annotated[str, NamesStage("rows")]
    """The stage whose rows are trained on."""
    start_from: Annotated[str, NamesStage("model", or_outside="model", goes_on=True)] = BASE
    """``base`` (the recipe's model), an earlier train stage, or a model from outside, with a slash in its name: ``./adapter`` (any PEFT folder, on the recipe's model), ``runs/NAME/STAGE``."""


@dataclass(frozen=True, kw_only=True)
class TrainStage(TrainSettings, _Inputs):
    """One training run. The mathematics depends on ``batch_size`` only; ``micro_batch_tokens`` only moves memory."""

    accounts_for_rows: ClassVar[bool] = True
    is_shared: ClassVar[bool] = True

    @classmethod
    def sections(cls, stages: Sequence[Stage], gaps: list[Gap]) -> tuple[Section, ...]:
        """How the loss went, what it cost, which rows it learned from."""
        from posttrain.train.section import training_sections

        return training_sections(stages, gaps)

    @property
    def gives(self) -> Gives:
        """A model that writes, or one that scores."""
        return "reward_model" if self.objective.head == "score" else "model"

    def settled(self) -> Self:
        """With the learning rate written out."""
        return replace(self, learning_rate=self.peak_learning_rate)

    def check(self, context: Context) -> None:
        """The device is here, the template can be used, and every process has a row of a step."""
        folder = context.base_folder()
        self._check_peers(context)
        context.check_device(self.device)
        if self.shard is not None and self.shard.cpu_offload:
            self._check_offload(context)
        if self.template is not None or self.start_from == BASE:
            context.check_template(folder, self.template)

    def run(self, context: Context) -> Mapping[str, Any]:
        """Encode the rows, and train or go on training."""
        from posttrain.model.lineage import write_record
        from posttrain.train.loop import train

        display, lineage = context.display, self._lineage(context)
        result = train(self, **self._arguments(context, lineage))
        decided = f"template: {self.template}" if self.template is not None else self.start_from
        write_record(context.out, lineage, context.base_folder(), decided)
        display.note(
            f"{result['steps']:,} steps, loss {result['first_loss']:.3f} -> {result['last_loss']:.3f}, "
            f"{result['tokens_per_second']:,.0f} tok/s, peak memory {result['peak_memory_bytes'] / 1e9:.2f} GB"
        )
        return result

    def join(self, context: Context) -> None:
        """Encode the same rows, and compute a share of every step."""
        from posttrain.train.loop import train

        train(self, **self._arguments(context, self._lineage(context)))

    def _lineage(self, context: Context) -> Lineage:
        """What is trained, with the template that it is trained with."""
        return context.lineage(self.start_from).spoken(self.template)

    def _arguments(self, context: Context, lineage: Lineage) -> dict[str, Any]:
        """What a training is given beside its settings; encodes the rows."""
        from posttrain.data.mix import row_repeats
        from posttrain.data.rows import read_kind
        from posttrain.encode.facts import EXAMPLES_FILE, example_facts
        from posttrain.model import hardware
        from posttrain.train.loop import TrainInputs

        out, display = context.out, context.display
        context.settle_threads()
        hardware.reset_peak_memory(hardware.resolve_device(self.device))
        if self.template is not None:
            start = context.lineage(self.start_from)
            if start.has_template and start.manner != lineage.manner:
                display.note(
                    f"template: {self.template} takes the place of the template that {self.start_from} was made with"
                )
        files = {side: context.run.stage(self.data).file("rows", f"{side}.parquet") for side in ("train", "held_out")}
        rows = {side: read_kind(path, self.objective.row_kind) for side, path in files.items()}
        ledger = Ledger()
        encoded = self._encode(rows["train"], lineage.template, ledger, "encoding rows", context)
        examples = repeated_examples(encoded.examples, row_repeats(files["train"]), ledger)
        ledger.write(out.file("ledger.json"))
        write_json(out.file("lengths.json"), encoded.lengths(self.max_length).as_dict())
        if not encoded.examples:
            raise _nothing_left(ledger, encoded, self.max_length, out)
        held_out = self._encode(rows["held_out"], lineage.template, Ledger(), "encoding held-out rows", context)
        facts = example_facts(examples, lineage.stops, len(lineage.template.tokenizer))
        write_json(out.file(EXAMPLES_FILE), asdict(facts))
        display.note(_encoding_note(ledger, examples))
        if (warning := self.objective.units_warning(examples, str(context.run.stage(self.data).path))) is not None:
            display.note(f"warning: {warning}")
        inputs = TrainInputs(
            model_folder=lineage.folder,
            adapter_folder=lineage.adapter,
            companions=replace(lineage.companions(), base=base_name(lineage, context)),
            examples=examples,
            held_out=held_out.examples,
            origins={row.id: str(row.origin) for side in rows.values() for row in side},
            reference=self._reference(context) if self.objective.needs_reference else None,
        )
        display.tick("loading the model", 0, 0)
        return {
            "inputs": inputs,
            "out": out,
            "seed": context.seed,
            "digest": context.identity,
            "observer": display.record,
            "on_interrupt": lambda: display.note("stopping after this step; Ctrl-C again stops at once"),
            "on_progress": display.tick,
            "go_on": context.go_on,
            "stop_asked": context.run.stop_asked,
            "peers": context.peers,
        }

    def _check_offload(self, context: Context) -> None:
        """Raise ConfigError where there is no device that weights could be kept out of."""
        from posttrain.model.hardware import resolve_device

        if resolve_device(self.device).type != "cuda":
            raise ConfigError(
                "cpu_offload keeps weights out of a CUDA device's memory, and this trains on none",
                where=f"stages.{context.name}.shard.cpu_offload",
                fix="leave it out",
            )

    def _check_peers(self, context: Context) -> None:
        """Raise ConfigError where a step has too few rows for the processes that share it."""
        if context.peers.size > self.batch_size:
            raise ConfigError(
                f"{context.peers.size} processes can't share a step of {self.batch_size} rows",
                where=f"stages.{context.name}.batch_size",
                fix=f"--processes {self.batch_size} at most, or a larger batch_size",
            )

    def _encode(
        self, rows: Sequence[Any], template: ChatTemplate, ledger: Ledger, label: str, context: Context
    ) -> EncodedRows[Any]:
        """The units of the objective's kind of rows."""
        from posttrain.encode.preferences import encode_kind

        def progress(done: int) -> None:
            context.display.tick(label, done, len(rows))

        kind = self.objective.row_kind
        return encode_kind(kind, rows, template, self.max_length, self.over_length, ledger, progress)

    def _reference(self, context: Context) -> Reference:
        """What the objective compares with; stages with the same reference share its file."""
        from posttrain.train.loop import Reference

        name = getattr(self.objective, "reference", None) or self.start_from
        lineage = context.lineage(name)
        start = context.lineage(self.start_from)
        quantised = self.adapter.quantize if isinstance(self.adapter, LoraAdapter) else None
        same_weights = (
            isinstance(self.adapter, LoraAdapter) and lineage.adapter is None and lineage.folder == start.folder
        )
        identity = digest([lineage.identity, quantised]) if quantised and same_weights else lineage.identity
        cache = context.run.path / ".reference" / f"{identity[:16]}.safetensors"
        if name == self.start_from or same_weights:
            return Reference(cache, identity, adapter_off=name != self.start_from)
        return Reference(cache, identity, lineage.folder, lineage.adapter)


def repeated_examples(examples: list[Any], repeats: Mapping[str, int], ledger: Ledger) -> list[Any]:
    """The examples of an epoch, each as often as its row counts (see ``data.mix``); repetitions go to the ledger."""
    if not repeats:
        return examples
    step = ledger.step("repeat", rows_in=len(examples))
    out = [example for example in examples for _ in range(repeats.get(example.row_id, 1))]
    step.rows_out, step.added = len(out), len(out) - len(examples)
    return out


def _encoding_note(ledger: Ledger, examples: Sequence[Any]) -> str:
    from posttrain.encode.preferences import sequences_of

    sequences = [sequence for example in examples for sequence in sequences_of(example)]
    tokens = sum(map(len, sequences))
    share = sum(sequence.supervised for sequence in sequences) / tokens
    dropped = ", ".join(f"{count} {reason}" for reason, count in ledger.steps[0].dropped.items()) or "none"
    return f"{len(examples):,} examples, {tokens:,} tokens, {share:.0%} supervised; dropped: {dropped}"


def base_name(lineage: Lineage, context: Context) -> str:
    """How an adapter names what it lies on: the recipe's model by its name on the hub, everything else by its folder."""
    model = context.model
    on_hub = lineage.folder == context.base_folder() and not Path(model).is_dir() and model not in assets.MODELS
    return model if on_hub else str(lineage.folder.resolve())


def _nothing_left(ledger: Ledger, encoded: EncodedRows[Any], max_length: int, out: StageDir) -> DataError:
    dropped = ", ".join(f"{count} {reason}" for reason, count in ledger.steps[0].dropped.items())
    examples = "".join(f"\n  {r.origin}: {r.reason}: {r.detail}" for r in ledger.rejects[:SHOWN_REJECTS])
    fix = f"see {out.file('ledger.json')} for every row and its reason"
    if len(encoded.conversation_lengths):
        shortest = int(encoded.conversation_lengths.min())
        fix = f"raise max_length (it is {max_length}, the shortest row has {shortest} tokens), or over_length: truncate"
    return DataError(f"nothing to train on: all rows were dropped ({dropped}){examples}", where=str(out.path), fix=fix)
