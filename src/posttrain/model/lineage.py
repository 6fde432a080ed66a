"""What a model name means, as one value: weights, tokenizer, chat template and what ends a reply. No torch here.

    the recipe's base, a folder from outside    -> Lineage(folder)
    what a train stage has written              -> stage_lineage(its folder)

A train stage writes tokenizer, template and end tokens beside its weights (`posttrain.model.companions`) and ``model.json`` with
the rest: on which weights an adapter lies, and where the template came from. So a stage that starts from another, an evaluation,
a judge and a chat read what was trained, however long the chain of stages.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from posttrain.artifacts import StageDir, digest, file_digest, write_json
from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.encode.tokens import stop_sequences
from posttrain.errors import ModelError, TemplateError
from posttrain.model.companions import Companions, end_ids, read_object, tokenizer_files

RECORD = "model.json"
"""The file of a train stage that says what its weights belong to."""
SCHEMA = 1
TRAINED = ("train", "online")
"""Kinds of stages that write weights of their own."""


@dataclass(frozen=True)
class Lineage:
    """All that makes a model what it is."""

    folder: Path
    """HF folder: all weights, or those the adapter lies on."""
    adapter: Path | None = None
    """PEFT folder."""
    template_file: Path | None = None
    """A Jinja file in place of the model's own template."""
    now: datetime | None = None
    """The time its template was told when it was trained; None: that of this run."""

    @property
    def home(self) -> Path:
        """The folder with tokenizer, template and end tokens: the adapter's where it has them, else that of the weights."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if self.adapter is not None and own else self.folder

    @cached_property
    def template(self) -> ChatTemplate:
        """Tokenizer and chat template. Raises ModelError or TemplateError where there is none."""
        template = load_template(load_tokenizer(self.home), self.template_file)
        return template if self.now is None else replace(template, now=self.now)

    @cached_property
    def stops(self) -> list[tuple[int, ...]]:
        """Token sequences that end a reply: those the template trains, and the end tokens of the model."""
        try:
            written = stop_sequences(self.template)
        except TemplateError:
            written = ()
        own = end_ids(self.home) or end_ids(self.folder)
        return list(dict.fromkeys([w for w in written if w] + [(i,) for i in own]))

    @property
    def manner(self) -> str:
        """Digest of what turns a conversation into ids: models with the same can be scored on the same tokens."""
        tokenizer = [[path.name, file_digest(path)] for path in tokenizer_files(self.home)]
        return digest([tokenizer, template_text(self.template), _time_told(self.template)])

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template at all."""
        return self.template_file is not None or bool(load_tokenizer(self.home).chat_template)

    @cached_property
    def identity(self) -> str:
        """Digest of all its files."""
        whole = model_digest(self.folder)
        parts = [whole] if self.adapter is None else [whole, model_digest(self.adapter)]
        if self.template_file is not None:
            parts.append(file_digest(self.template_file))
        return parts[0] if len(parts) == 1 else digest(parts)

    def spoken(self, template: str | Path | None) -> Lineage:
        """The model with the template of a Jinja file; None leaves it as it is."""
        return self if template is None else replace(self, template_file=Path(template))

    def companions(self) -> Companions:
        """What is written beside weights that were trained as this model is spoken to."""
        text = None if self.template_file is None else self.template.text
        return Companions(self.home, text, tuple(stop[0] for stop in self.stops if len(stop) == 1))


def template_text(template: ChatTemplate) -> str:
    """The Jinja source that renders a conversation."""
    return template.text if template.text is not None else str(template.tokenizer.get_chat_template())


def _time_told(template: ChatTemplate) -> str | None:
    """What a template that asks for the time is told."""
    return template.now.isoformat(timespec="seconds") if template.reads_clock else None


def model_digest(folder: Path) -> str:
    """Identity of a model: sha256 over its configuration, tokenizer and weights."""
    names = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt"))
    return _files_digest(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in names))


@cache
def _files_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Digest of files as they are; size and time are there so that each state is read once, and a new one again."""
    return digest([[path.name, file_digest(path)] for path, *_ in files])


# ---- what a train stage hands on -----------------------------------------------------------------------------------


def write_record(out: StageDir, lineage: Lineage, base: Path, template_from: str) -> None:
    """Write model.json of a stage that trained ``lineage`` (docs/run-folder.md).

    base: the folder of the recipe's model, which is told apart from folders of the run. template_from: what decided the template.
    """
    adapted = out.file("adapter").is_dir()
    # relative, so that it stays right when the run folder is moved as a whole
    folder = os.path.relpath(lineage.folder.resolve(), out.path.resolve())
    on: dict[str, Any] = {"recipe": True} if lineage.folder == base else {"folder": folder}
    record = {
        "schema": SCHEMA,
        "weights": "adapter" if adapted else "model",
        "on": on if adapted else None,
        "template": {"from": template_from, "sha256": digest(template_text(lineage.template))},
        "clock": _time_told(lineage.template),
        "stops": lineage.stops,
    }
    write_json(out.file(RECORD), record)


def stage_lineage(out: StageDir, base: Callable[[], Path], template: str | None = None) -> Lineage:
    """What a finished train stage hands on.

    base: the folder of the recipe's model, asked for only where the stage's adapter lies on it. template: the stage's own template
    file, for runs from before model.json. Raises ModelError where the stage has written nothing.
    """
    recorded = out.file(RECORD).is_file()
    on, now = _recorded(out.file(RECORD)) if recorded else ({}, None)
    if out.file("model").is_dir():
        return Lineage(out.file("model"), now=now).spoken(None if recorded else template)
    if not out.file("adapter").is_dir():
        raise ModelError(
            "this stage has no weights (adapter/ or model/)", where=str(out.path), fix="run it first: posttrain run"
        )
    if not recorded:
        return Lineage(base(), out.file("adapter")).spoken(template)
    folder = base() if on.get("recipe") else Path(os.path.normpath(out.path / str(on.get("folder"))))
    if not folder.is_dir():
        raise ModelError(
            f"the weights under this stage's adapter are missing: {folder}",
            where=str(out.path),
            fix="keep the folders of a run together, or run the recipe again",
        )
    return Lineage(folder, out.file("adapter"), now=now)


def _recorded(path: Path) -> tuple[dict[str, Any], datetime | None]:
    """(what an adapter lies on, the time its template was told) by the record beside it. Raises ModelError where that is damaged."""
    record = read_object(path)
    on, clock = record.get("on"), record.get("clock")
    try:
        return dict(on or {}), None if clock is None else datetime.fromisoformat(clock)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path.name} is damaged: {error}", where=str(path), fix="run the stage again") from error
