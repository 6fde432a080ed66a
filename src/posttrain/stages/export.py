"""``kind: export``: a model taken home, in the form another runtime reads, with a card and proof of what was written.

hf             merged weights as a HF folder (safetensors, tokenizer, template, generation config)
adapter        the PEFT folder, with the name of its base in place of a path
gguf           one file for llama.cpp, with tokenizer and chat template
gguf-adapter   the LoRA adapter alone, for the GGUF file of its base
ollama         gguf with a Modelfile
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from posttrain.artifacts import RunDir, StageDir, atomic_path, read_json, write_json, write_text
from posttrain.errors import ModelError
from posttrain.references import NamesFile, NamesModel, NamesStage
from posttrain.report import values
from posttrain.stages.base import BASE, Context, StageKind
from posttrain.stages.card import Told, told_of, told_of_stage, write_card
from posttrain.types import Display, Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from posttrain.generate.gguf_replies import GgufReplies
    from posttrain.model.agreement import Agreement
    from posttrain.model.lineage import Lineage

PROBES, PROBE_TOKENS = 4, 256
"""Texts on which what was written is compared with what was trained, and the longest of them."""
_MADE: Mapping[str, tuple[str, str]] = {
    "hf": ("finetune", "transformers"),
    "adapter": ("adapter", "peft"),
    "gguf": ("quantized", "gguf"),
    "gguf-adapter": ("adapter", "gguf"),
    "ollama": ("quantized", "gguf"),
}
"""Form -> what its card says of its relation to the base, and which library reads it."""


@dataclass(frozen=True, kw_only=True)
class ExportStage(StageKind):
    """Write a model for another runtime; what is written is compared with what was trained."""

    kind: Literal["export"]
    model: Annotated[str, NamesStage("model", or_outside="model")] = BASE
    """What is exported: a train stage, ``base``, or a model from outside (``runs/NAME/STAGE``, an adapter, a folder, an asset, a hub name)."""
    base: Annotated[str, NamesModel()] | None = None
    """Base model of an adapter folder, where it is not the one the adapter names."""
    to: Literal["hf", "adapter", "gguf", "gguf-adapter", "ollama"]
    """``hf``: merged folder. ``adapter``: PEFT folder. ``gguf``: one file for llama.cpp. ``gguf-adapter``: the LoRA adapter alone for it. ``ollama``: gguf with a Modelfile."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the weights of ``hf``. Merged in fp32 whatever it is; bf16 rounds six times as much away as fp16."""
    type: Literal["f32", "f16", "bf16", "q8_0"] = "f16"
    """Type of the matrices of a GGUF file. ``f32`` and ``f16`` give the same greedy text as the folder; ``bf16`` and ``q8_0`` need not."""
    template: Annotated[str, NamesFile()] | None = None
    """A Jinja chat template file in place of the model's own."""

    def check(self, context: Context) -> None:
        """The base is there, and what is named outside of the recipe is finished."""
        if self.model == BASE:
            context.base_folder()
        elif self.model not in context.stages:
            _refuse_unfinished(Path(self.model))

    def run(self, context: Context) -> Mapping[str, Any]:
        """Write the files, and what they say of what was trained."""
        from posttrain.model.targets import EXPORTED

        if self.model == BASE or self.model in context.stages:
            lineage = context.lineage(self.model)
            told = told_of_stage(context.run, self.model, context.model, lineage.folder)
            rows = held_out_rows(context.run, self.model)
        else:
            lineage, told, rows = open_target(self.model, self.base)
        return export(self, lineage.spoken(self.template), told, rows, context.out.file(EXPORTED), context.display)

    @staticmethod
    def section(out: StageDir) -> values.Section:
        """What was written, and how far it is from what was trained."""
        result = (out.manifest() or {}).get("result") or {}
        return export_section(result, out.path.name)


def export_section(result: Mapping[str, Any], name: str) -> values.Section:
    """What was written, for a page and the terminal."""
    facts: list[tuple[str, values.Cell]] = [
        ("Form", str(result.get("form"))),
        ("Made from", result.get("model")),
        ("Size", values.Number(result.get("bytes"), "bytes")),
    ]
    if (found := result.get("agreement")) is not None:
        facts += [
            ("Largest difference of logits from what was trained", values.Number(found["largest"], "scientific")),
            ("Same likeliest token", values.Number(found["top1"], "share")),
            ("Compared at", f"{found['tokens']:,} places of {found['texts']} texts"),
        ]
    if (heard := result.get("llama_cpp")) is not None:
        facts += [
            ("llama.cpp: greedy replies like those of the merged weights", f"{heard['same']} of {heard['replies']}"),
            ("Same first token", f"{heard['same_first_tokens']} of {heard['first_tokens']}"),
            ("KL divergence of the first token, nats", values.Number(heard["divergence"], "scientific")),
        ]
    sizes = tuple((one["name"], values.Number(one["bytes"], "bytes")) for one in result.get("files", ()))
    files = values.Table("", ("File", "Size"), sizes)
    notes = tuple(str(note) for note in result.get("notes", ()))
    warned = (values.Notice("warning", "to know", notes),) if notes else ()
    return values.Section(f"Export: {name}", name, (values.Facts(tuple(facts)), files, *warned))


# ---- what is exported --------------------------------------------------------------------------------------------------


def open_target(target: str, base: str | None) -> tuple[Lineage, Told, Path | None]:
    """A model from outside a recipe: what it is, what is known of it, and rows to compare on."""
    from posttrain.model.targets import resolve_target

    path, lineage = Path(target), resolve_target(target, base)
    if _is_stage(path):
        run, model = RunDir(path.parent), base or _recipe_model(path.parent)
        return lineage, told_of_stage(run, path.name, model, lineage.folder), held_out_rows(run, path.name)
    named = base or target
    if lineage.adapter is not None and base is None:
        named = str(read_json(lineage.adapter / "adapter_config.json").get("base_model_name_or_path"))
    return lineage, told_of(named, lineage.folder, lineage.adapter is not None), None


def _is_stage(path: Path) -> bool:
    return (path / "manifest.json").is_file() and (path.parent / "recipe.yaml").is_file()


def _refuse_unfinished(path: Path) -> None:
    """Raise ModelError for a stage whose weights are not final."""
    from posttrain.model.companions import read_object

    status = read_object(path / "manifest.json").get("status") if _is_stage(path) else "complete"
    if status != "complete":
        problem = f"this stage is not complete (it is {status}), so its weights are not final"
        raise ModelError(problem, where=str(path), fix="finish it first: posttrain run")


def _recipe_model(run: Path) -> str:
    from posttrain.config import read_yaml

    return str(read_yaml(run / "recipe.yaml").value["model"])


def held_out_rows(run: RunDir, stage: str) -> Path | None:
    """The held-out conversations of a train stage; None where it has none."""
    config = (run.stage(stage).manifest() or {}).get("config") or {}
    path = run.stage(str(config.get("data", ""))).file("rows", "held_out.parquet")
    return path if path.is_file() else None


def _probes(lineage: Lineage, rows: Path | None) -> list[NDArray[np.int32]]:
    """A few texts as ids: held-out rows of the run, or prompts."""
    import numpy as np

    from posttrain.artifacts import Ledger
    from posttrain.data.rows import read_rows, row_kind_of
    from posttrain.encode.template import load_tokenizer
    from posttrain.encode.tokens import encode_prompt, encode_rows
    from posttrain.generate.gguf_replies import QUESTIONS

    prompts = QUESTIONS[:: len(QUESTIONS) // PROBES]
    if not lineage.has_template:
        tokenizer = load_tokenizer(lineage.home)
        return [np.asarray(tokenizer(prompt)["input_ids"], np.int32) for prompt in prompts]
    if rows is not None and (row_kind_of(rows) or "conversations") == "conversations":
        talks = read_rows(rows)[: 4 * PROBES]
        examples = encode_rows(talks, lineage.template, PROBE_TOKENS, "truncate", Ledger()).examples
        if examples:
            return [example.ids_T for example in examples[:PROBES]]
    return [encode_prompt([Message("user", prompt)], lineage.template) for prompt in prompts]


# ---- writing -----------------------------------------------------------------------------------------------------------


def export(
    settings: ExportStage, lineage: Lineage, told: Told, rows: Path | None, folder: Path, display: Display
) -> Mapping[str, Any]:
    """Write a model into a folder, all of it or nothing; returns the stage's ``result``.

    Raises RunError where the disk is full, ModelError where the form has no place for this model, or a tokenizer is missing.
    """
    if settings.to in ("adapter", "gguf-adapter") and lineage.adapter is None:
        raise ModelError(
            "this model has no adapter: all its weights were trained",
            where=str(lineage.folder),
            fix="--to hf or --to gguf",
        )
    if settings.to == "ollama":
        _ = lineage.template  # a Modelfile needs one
    written: _Written
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        display.tick("exporting", 0, 0)
        write: Mapping[str, Callable[[], _Written]] = {
            "hf": lambda: _write_hf(settings, lineage, rows, temporary, display),
            "adapter": lambda: _write_adapter(lineage, told, temporary),
            "gguf": lambda: _write_gguf(settings, lineage, told, temporary),
            "ollama": lambda: _write_ollama(settings, lineage, told, temporary),
            "gguf-adapter": lambda: _write_gguf_adapter(settings, lineage, told, temporary),
        }
        written = write[settings.to]()
        files = [{"name": p.name, "bytes": p.stat().st_size} for p in sorted(temporary.iterdir()) if p.is_file()]
        result = {
            "form": settings.to,
            "model": told.title,
            "base": told.base,
            "type": settings.dtype if settings.to == "hf" else None if settings.to == "adapter" else settings.type,
            "agreement": None if written.agreement is None else asdict(written.agreement),
            "llama_cpp": None if written.replies is None else asdict(written.replies),
            "notes": written.notes,
            "files": files,
            "bytes": sum(one["bytes"] for one in files),  # type: ignore[misc]
        }
        relation, library = _MADE[settings.to]
        if settings.to == "hf" and not told.trained:
            relation = "quantized" if settings.dtype != "fp32" else "finetune"
        section = export_section(result, "")
        write_text(temporary / "README.md", write_card(told, relation, library, section.blocks))
    if written.agreement is not None:
        display.note(f"written folder against what was trained: {written.agreement}")
    if written.replies is not None:
        display.note(f"llama.cpp against what was trained: {written.replies}")
    for note in written.notes:
        display.note(f"to know: {note}")
    return result


@dataclass(frozen=True)
class _Written:
    agreement: Agreement | None = None
    replies: GgufReplies | None = None
    notes: tuple[str, ...] = ()


def _trained(lineage: Lineage) -> Any:
    """The model as it was trained, in fp32 on the CPU: with its adapter, on weights in 4 bits where those were under it."""
    import torch

    from posttrain.model.adapters import saved_model

    return saved_model(lineage.folder, lineage.adapter, torch.float32, torch.device("cpu"))


def _write_hf(settings: ExportStage, lineage: Lineage, rows: Path | None, folder: Path, display: Display) -> _Written:
    """Merged weights, and their logits held against those of the adapter on its base."""
    import torch

    from posttrain.model.agreement import agreement, all_logits
    from posttrain.model.export import merge_adapter, save_model
    from posttrain.model.load import load_model

    texts = _probes(lineage, rows)
    model = _trained(lineage)
    trained = all_logits(model, texts)
    model = merge_adapter(model)
    display.tick("writing", 0, 0)
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    save_model(model, folder, dtypes[settings.dtype])
    _companions(lineage).write(folder)
    del model
    again = all_logits(load_model(folder, torch.float32, torch.device("cpu")), texts)
    return _Written(agreement(trained, again))


def _companions(lineage: Lineage) -> Any:
    """Tokenizer, template and end tokens; only the tokenizer of a base model without a template."""
    from posttrain.model.companions import Companions

    return lineage.companions() if lineage.has_template else Companions(lineage.home)


def _write_adapter(lineage: Lineage, told: Told, folder: Path) -> _Written:
    """The adapter's own files, with the name of its base."""
    assert lineage.adapter is not None
    from posttrain.model.adapters import BASE_RECORD, quantised_base

    config = read_json(lineage.adapter / "adapter_config.json")
    quantised = quantised_base(lineage.adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors", *((BASE_RECORD,) if quantised else ())):
        shutil.copyfile(lineage.adapter / name, folder / name)
    _companions(lineage).write(folder)
    named = str(config.get("base_model_name_or_path") or "")
    base = told.base if not named or Path(named).exists() or Path(named).is_absolute() else named
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": base})
    notes = [f"trained on its base in {quantised}: on other weights it is another model"] if quantised else []
    notes += [f"vLLM: --max-lora-rank {config['r']}"] if config.get("r", 0) > 16 else []
    refused = [
        n for n, odd in (("DoRA", config.get("use_dora")), ("modules_to_save", config.get("modules_to_save"))) if odd
    ]
    notes += [f"vLLM does not load adapters with {' and '.join(refused)}: export --to hf for it"] if refused else []
    return _Written(notes=tuple(notes))


def _write_gguf(settings: ExportStage, lineage: Lineage, told: Told, folder: Path) -> _Written:
    from posttrain.generate import gguf_replies
    from posttrain.model.export import merge_adapter
    from posttrain.model.gguf.file import write_gguf

    path, model = folder / "model.gguf", merge_adapter(_trained(lineage))
    notes = write_gguf(model, lineage, path, settings.type, told.title, told.licence)
    if not lineage.has_template or gguf_replies.missing() is not None:
        return _Written(notes=(*notes, "not compared with what was trained: posttrain verify does it"))
    some = gguf_replies.QUESTIONS[:: len(gguf_replies.QUESTIONS) // PROBES]
    expected = gguf_replies.spoken(model, lineage, some)
    del model
    return _Written(replies=gguf_replies.replies(path, expected), notes=notes)


def _write_ollama(settings: ExportStage, lineage: Lineage, told: Told, folder: Path) -> _Written:
    from posttrain.model.gguf.modelfile import modelfile

    written = _write_gguf(settings, lineage, told, folder)
    text, note = modelfile(lineage)
    write_text(folder / "Modelfile", text)
    return replace(written, notes=(*written.notes, *((note,) if note else ())))


def _write_gguf_adapter(settings: ExportStage, lineage: Lineage, told: Told, folder: Path) -> _Written:
    from posttrain.model.adapters import quantised_base
    from posttrain.model.gguf.file import write_gguf_adapter

    write_gguf_adapter(lineage, folder / "adapter.gguf", settings.type, told.title)
    notes = ["for the GGUF file of its base model: llama.cpp --lora adapter.gguf"]
    quantised = quantised_base(lineage.adapter)
    notes += [f"trained on its base in {quantised}: on other weights it is another model"] if quantised else []
    return _Written(notes=tuple(notes))
