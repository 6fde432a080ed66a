"""``kind: online``: learning from one's own replies (docs/online.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from posttrain.artifacts import Ledger
from posttrain.config import Problem
from posttrain.errors import DataError
from posttrain.online.config import OnlineSettings, settings_problems
from posttrain.references import Gives, NamesFile, NamesStage
from posttrain.stages.base import BASE, Context, StageKind

if TYPE_CHECKING:
    from posttrain.model.lineage import Lineage
    from posttrain.online.prompts import Prompt
    from posttrain.online.scores import Scorer
    from posttrain.report.reading import Gap, Stage
    from posttrain.report.values import Section
    from posttrain.train.loop import Trainee


@dataclass(frozen=True, kw_only=True)
class _Inputs(StageKind):
    """What it takes from other stages (a base of its own: its keys come first)."""

    kind: Literal["online"]
    data: Annotated[str, NamesStage("rows")] | None = None
    """The stage whose prompts are answered; its held-out rows are measured on. null where a score is a task, whose prompts these are."""
    start_from: Annotated[str, NamesStage("model", or_outside="model", goes_on=True)] = BASE
    """``base`` (the recipe's model), an earlier stage that gives a model, or a model from outside. It is also the reference."""
    template: Annotated[str, NamesFile()] | None = None
    """A Jinja chat template file in place of the one that the starting weights were made with."""


@dataclass(frozen=True, kw_only=True)
class OnlineStage(OnlineSettings, _Inputs):
    """Learn from one's own replies: sample, score, step. ``prompts`` x ``replies`` are a step; ``micro_batch_tokens`` only moves memory."""

    accounts_for_rows: ClassVar[bool] = True
    compares_models: ClassVar[bool] = True
    is_shared: ClassVar[bool] = True

    @property
    def gives(self) -> Gives:
        """A model that writes."""
        return "model"

    def settled(self) -> Self:
        """With the learning rate written out."""
        return replace(self, learning_rate=self.peak_learning_rate)

    def problems(self, stages: Mapping[str, StageKind]) -> Iterable[Problem]:
        """What can't work, and prompts that are missing or there twice."""
        yield from settings_problems(self)
        if (self.task_score is None) == (self.data is None):
            text = (
                "whose prompts are answered? name a data stage (data: prompts)"
                if self.data is None
                else "the task has prompts of its own: leave data away"
            )
            yield Problem(("data",), text)

    def check(self, context: Context) -> None:
        """The device is here, the template can be used, and the scores and the task's prompts can be read."""
        folder = context.base_folder()
        context.check_device(self.device)
        if self.template is not None or self.start_from == BASE:
            context.check_template(folder, self.template)
        self.sampler.check()
        for score in self.scores:
            score.check()

    def run(self, context: Context) -> Mapping[str, Any]:
        """Encode the prompts, and learn or go on learning."""
        from posttrain.model.lineage import write_record

        lineage = self._lineage(context)
        result = self._learn(context, lineage)
        decided = f"template: {self.template}" if self.template is not None else self.start_from
        write_record(context.out, lineage, context.base_folder(), decided)
        context.display.note(
            f"{result['steps']:,} steps, reward {result['first_reward']:.3f} -> {result['last_reward']:.3f}, "
            f"{result['tokens_per_second']:,.0f} tok/s sampled and learned, peak memory {result['peak_memory_bytes'] / 1e9:.2f} GB"
        )
        return result

    def join(self, context: Context) -> None:
        """Encode the same prompts, answer a share of them and compute a share of every step; scores are told."""
        self._learn(context, self._lineage(context))

    def _lineage(self, context: Context) -> Lineage:
        """What learns, with the template that its prompts are written with."""
        return context.lineage(self.start_from).spoken(self.template)

    def _learn(self, context: Context, lineage: Lineage) -> dict[str, Any]:
        from posttrain.model import hardware
        from posttrain.model.second_adapter import InMemory
        from posttrain.online.config import settings_warnings
        from posttrain.online.loop import OnlineInputs, train_online
        from posttrain.online.planned import saved_reward
        from posttrain.online.rollout import Drawing
        from posttrain.online.scores import Opening, RewardModelScore, open_scores
        from posttrain.stages.train import base_name

        out, display = context.out, context.display
        context.settle_threads()
        hardware.reset_peak_memory(hardware.resolve_device(self.device))
        prompts, held_out = self._prompts(context, lineage)
        display.note(f"{len(prompts):,} prompts to learn on, {len(held_out):,} to measure on")
        for warning in settings_warnings(self):
            display.note(f"warning: {warning}")
        tokenizer = lineage.template.tokenizer
        drawing = Drawing(
            lineage.stops,
            lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
            self.temperature,
            self.max_new_tokens,
        )
        with ExitStack() as stack:
            scores = context.located(self).scores

            def open_scorer(policy: Trainee) -> Scorer:
                requests = context.run.path / ".requests.sqlite"
                on = InMemory(policy.model, lineage.folder, policy.compute_dtype)
                return open_scores(scores, Opening(stack, requests, out.file("calls.jsonl"), display, on, []))

            inputs = OnlineInputs(
                model_folder=lineage.folder,
                adapter_folder=lineage.adapter,
                companions=replace(lineage.companions(), base=base_name(lineage, context)),
                prompts=prompts,
                held_out=held_out,
                drawing=drawing,
                open_scorer=open_scorer,
                rewards=[saved_reward(s.lineage, lineage.folder) for s in scores if isinstance(s, RewardModelScore)],
            )
            display.tick("loading the model", 0, 0)
            return train_online(
                self,
                inputs,
                out,
                seed=context.seed,
                digest=context.identity,
                observer=display.record,
                on_interrupt=lambda: display.note("stopping after this step; Ctrl-C again stops at once"),
                on_progress=display.tick,
                stop_asked=context.run.stop_asked,
                peers=context.peers,
            )

    def _prompts(self, context: Context, lineage: Lineage) -> tuple[list[Prompt], list[Prompt]]:
        """The prompts to learn on and to measure on."""
        from posttrain.data.rows import read_any
        from posttrain.model.companions import read_object
        from posttrain.online.prompts import encode_questions, parted, questions_of_rows, questions_of_tasks

        task = self.task_score
        if task is not None:
            sides = parted(questions_of_tasks(task.task.tasks(), task.task.name, self.suffix), task.held_out)
        else:
            assert self.data is not None, "checked with the recipe"
            rows = context.run.stage(self.data)
            files = [rows.file("rows", f"{side}.parquet") for side in ("train", "held_out")]
            train, measured = (
                questions_of_rows(read_any(path) if path.exists() else (), self.suffix) for path in files
            )
            sides = train, measured
        # what the model can't reach is told by the sampler; this is only about prompts
        room = read_object(lineage.folder / "config.json").get("max_position_embeddings")
        room = room if isinstance(room, int) else None
        ledger = Ledger()
        prompts = encode_questions(sides[0], lineage.template, self.max_prompt_tokens, room, ledger)
        ledger.write(context.out.file("ledger.json"))
        if not prompts:
            dropped = ", ".join(f"{count} {reason}" for reason, count in ledger.dropped.items()) or "there were none"
            raise DataError(
                f"no prompt is left to answer ({dropped})",
                where=str(context.out.path),
                fix=f"raise max_prompt_tokens (it is {self.max_prompt_tokens}), or give other rows; see ledger.json",
            )
        return prompts, encode_questions(sides[1], lineage.template, self.max_prompt_tokens, room, Ledger())

    @classmethod
    def sections(cls, stages: Sequence[Stage], gaps: list[Gap]) -> tuple[Section, ...]:
        """How the reward went, by part, and what the replies became."""
        from posttrain.online.section import online_section

        return tuple(online_section(stage, gaps) for stage in stages)
