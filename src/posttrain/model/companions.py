"""What stands beside the weights of a folder so that it works by itself: tokenizer, chat template, end tokens. No torch here.

A folder of weights that were trained says in the ecosystem's own files how it is spoken to (``tokenizer.json``, ``chat_template.jinja``)
and where its replies end (``generation_config.json``), be it a whole model or an adapter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.artifacts import write_json, write_text
from posttrain.errors import ModelError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
)
SENSES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""How images and sound become what the towers of a model take."""
TEMPLATE_FILE, GENERATION_FILE = "chat_template.jinja", "generation_config.json"
AGAIN = "download the folder again"
TEMPLATE_FOLDER = "additional_chat_templates"


@dataclass(frozen=True)
class Companions:
    """What is written beside weights."""

    home: Path
    """The folder whose tokenizer, template and generation config are copied."""
    template: str | None = None
    """A chat template in place of that folder's own."""
    ends: tuple[int, ...] = ()
    """Ids that end a reply, in place of those of that folder; none = they stay."""
    base: str | None = None
    """What an adapter's configuration calls the model it lies on; None = what PEFT has written."""

    def write(self, folder: Path) -> None:
        """Write them into an existing folder."""
        copy_tokenizer(self.home, folder)
        if self.template is not None:
            _replace_template(folder, self.template)
        if self.ends:
            path = folder / GENERATION_FILE
            written = read_object(path) if path.is_file() else {}
            written.pop("_from_model_config", None)
            write_json(path, written | {"eos_token_id": self.ends[0] if len(self.ends) == 1 else list(self.ends)})
        adapter = folder / "adapter_config.json"
        if self.base is not None and adapter.is_file():
            write_json(adapter, read_object(adapter) | {"base_model_name_or_path": self.base})


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer, template, generation and processor files of a model folder; those that are not there are left out."""
    for name in (*TOKENIZER_FILES, *SENSES, TEMPLATE_FILE, GENERATION_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / TEMPLATE_FOLDER).is_dir():
        shutil.copytree(source / TEMPLATE_FOLDER, folder / TEMPLATE_FOLDER, dirs_exist_ok=True)


def _replace_template(folder: Path, template: str) -> None:
    """One template, in the one place that every runtime of today reads; no other is left to contradict it."""
    shutil.rmtree(folder / TEMPLATE_FOLDER, ignore_errors=True)
    config = folder / "tokenizer_config.json"
    if config.is_file() and (settings := read_object(config)).pop("chat_template", None) is not None:
        write_json(config, settings)
    write_text(folder / TEMPLATE_FILE, template)


def end_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end a reply by a folder's generation config, or its model config where that says nothing.

    Raises ModelError for anything but ids: a text, a negative number, a list in a list.
    """
    for name in (GENERATION_FILE, "config.json"):
        path = folder / name
        settings = read_object(path) if path.is_file() else {}
        text = settings.get("text_config")
        for part in (settings, text if isinstance(text, dict) else {}):
            if (found := part.get("eos_token_id")) is not None:
                listed: list[Any] = found if isinstance(found, list) else [found]
                wrong = [one for one in listed if not isinstance(one, int) or isinstance(one, bool) or one < 0]
                if wrong:
                    raise ModelError(
                        f"{wrong[0]!r} is not a token id",
                        where=f"{path}: eos_token_id",
                        fix="give the id of the token that ends a reply, or a list of such ids",
                    )
                return tuple(dict.fromkeys(listed))
    return ()


def tokenizer_files(folder: Path) -> Iterable[Path]:
    """The files that decide how text becomes ids, templates apart."""
    return (folder / name for name in TOKENIZER_FILES if name != "tokenizer_config.json" and (folder / name).is_file())


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file of a model folder. Raises ModelError where it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} can't be read as JSON: {error}", where=str(path), fix=AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} must hold a JSON object", where=str(path), fix=AGAIN)
    return found
