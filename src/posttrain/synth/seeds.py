"""Seed tasks in the format of Self-Instruct: one JSON object a line, with an instruction and instances of input and output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.errors import DataError
from posttrain.table import did_you_mean

BUILTIN = Path(__file__).with_name("seeds.jsonl")
FEWEST = 2


class Seed(NamedTuple):
    """A task written by people."""

    id: str
    instruction: str
    input: str
    output: str
    is_classification: bool


@cache
def read_seeds(file: str, language: str) -> tuple[Seed, ...]:
    """The seeds of a file; of ``builtin`` those in the language.

    Raises DataError with file, line and key for a line that can't be used, and where there are fewer than two seeds: a request shows several.
    """
    path = BUILTIN if file == "builtin" else Path(file)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read these seeds: {error}", where=file, fix="give a JSON Lines file in UTF-8") from None
    found = [_seed(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    seeds = tuple(seed for seed, spoken in found if file != "builtin" or spoken == language)
    if len(seeds) < FEWEST:
        problem = f"{len(seeds)} seed task{'' if len(seeds) == 1 else 's'}: at least {FEWEST} are needed, and 50 or more do well"
        raise DataError(problem, where=file, fix="write more of them, or use builtin")
    if len({seed.id for seed in seeds}) < len(seeds):
        twice = next(seed.id for place, seed in enumerate(seeds) if seed.id in {s.id for s in seeds[:place]})
        raise DataError(f"two seeds have the id {twice!r}", where=file, fix="give each an id of its own")
    return seeds


def _seed(line: str, where: str) -> tuple[Seed, str | None]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=where, fix="one JSON object a line") from None
    if not isinstance(record, Mapping):
        raise DataError("not a JSON object", where=where, fix="one JSON object a line")
    instruction = record.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        hint = did_you_mean("instruction", record)
        raise DataError(
            f"no text under 'instruction'{hint} (keys: {', '.join(map(str, record))})",
            where=where,
            fix="the format is that of Self-Instruct's seed_tasks.jsonl: instruction, instances: [{input, output}]",
        )
    instances = record.get("instances") or [record]
    first: Any = instances[0] if isinstance(instances, list) else None
    texts = [first.get(key, "") for key in ("input", "output")] if isinstance(first, Mapping) else [None]
    if not all(isinstance(text, str) for text in texts):
        fix = "the format is that of Self-Instruct's seed_tasks.jsonl: instruction, instances: [{input, output}]"
        raise DataError("instances must be a list of {input, output} with texts", where=where, fix=fix)
    given, output = (str(text) for text in texts)
    try:
        f"{instruction}{given}{output}".encode()
    except UnicodeEncodeError:
        raise DataError("half of a character (a lone surrogate)", where=where, fix="mend the text") from None
    seed_id = str(record.get("id") or f"seed_{where.rpartition(':')[2]}")
    return Seed(seed_id, instruction, given, output, bool(record.get("is_classification"))), record.get("language")
