"""What is left out of a golden, what becomes a digest, and how two goldens are compared.

Times, speeds, memory, versions, ports and folders are left out. What hangs on the arithmetic of the processor (losses, weights, replies)
is compared to the bit on the machine it was recorded on; elsewhere losses must agree to 1e-4, digests marked ``~`` only be there, and
what follows from drawn replies is skipped.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from safetensors.numpy import load_file

from conftest import Outcome

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
KILLED = "sft_then_dpo"
"""The recipe whose run is also killed and goes on: from its last checkpoint, which is that of the last step."""


def machine() -> dict[str, str]:
    """What the last bits of a product of matrices hang on."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(re.findall(r"^(model name|flags)\s*: (.*)$", cpu, re.MULTILINE))
    flags = hashlib.sha256(" ".join(sorted(lines.get("flags", "").split())).encode()).hexdigest()[:12]
    return {
        "processor": lines.get("model name", ""),
        "flags": flags,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": str(torch.get_num_threads()),
    }


# ---- what is left out ----------------------------------------------------------------------------------------------

UNSTEADY = re.compile(
    r"started|finished|time|provenance|versions|machine|cores|fingerprint|identity|digest|matmul_(share|peak_flops)|"
    r"base_model_name_or_path|(peft|transformers)_version|.*(seconds|seconds/.*|_per_second|memory_bytes)"
)
"""Keys that differ from run to run or from machine to machine."""
GAP = r"[\s*|,]+"
IN_TEXT = [
    (r"\\(?=[-+]?\d)", ""),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:#"),
    (r"\b([0-9a-f]{64}|[0-9a-f]{12}|(?<=@)[0-9a-f]{16})\b", "#"),
    (r'(?<="request": ")[0-9a-f]{16}', "#"),  # of a writer that was trained: its adapter's files name the folder
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?( UTC)?", "#"),
    (r"\b\d[\d.,]*\s+(seconds?|minutes?|min|hours?|h|s|ms)\b", r"# s"),
    (rf"\b\d[\d.,]*({GAP}(tok/s|tokens per second|tokens/s))\b", r"#\1"),
    (r"[-−+]?\b\d[\d.,]*\s+[kMG]?B\b", "# B"),
    (rf"(matmul peak{GAP})(–|\d+(\.\d+)?%)", r"\1#"),
    (r"\b\d+(\.\d+)?%\s+of\s+(the\s+)?(matmul|matrix)", r"#% of \2\3"),
    (r"\S+% against the plan", "#% against the plan"),
    (r"\b\d+\s+cores", "# cores"),
    (r"\b\d+\.\d+\.\d+[\w.+]*", "#"),
    (r"Linux-\S+", "#"),
]
MAY_BE_UNSTEADY = re.compile(r"[\d%]|matmul|Linux-|[a-f]{12}")
"""What every pattern above needs: most of a hundred thousand texts are words."""
PROGRESS = re.compile(r"^(\s*step \d+/\d+ |.*\beta \d|  .*\d+/\d+$|  .*working, \d|\s*[\w ]+ \d+:\d\d$)")
TIMED = re.compile(
    r"^[|*!\[ ]*(Tokens per second|Peak memory|Time of the (stage|replies)|Of it training steps|Training time|Speed( of \S+)?$|"
    r"Speed, tokens per second by step|Speed, median over steps$|Time$|provenance\.|result\S*(second|seconds|bytes)\b)"
)
"""Rows of tables that tell times and memory: only their label is kept, and not the lines they go on in."""


def steady_text(text: str, place: Path) -> str:
    """A text without what differs from run to run; runs of blanks and rules (the widths of columns) are one blank."""
    text = re.sub(r"[ \t\u2500-\u257f]+", " ", text.replace(f"{place}/", "").replace(str(place), "."))
    if not MAY_BE_UNSTEADY.search(text):
        return text
    text = re.sub(
        r"-?\b\d+\.\d{10,}(e-?\d+)?", lambda found: f"{float(found[0]):.9g}", text
    )  # the last digits are a processor's own
    for pattern, instead in IN_TEXT:
        text = re.sub(pattern, instead, text)
    return text


def steady_lines(text: str, place: Path) -> list[str]:
    """The lines of an output, without those of progress."""
    text = re.sub(r"^  Peak memory .*\n( {12,}\S.*\n)*", "", text, flags=re.MULTILINE)
    lines = [
        found[0] if (found := TIMED.match(line)) else line for line in text.splitlines() if not PROGRESS.match(line)
    ]
    lines = [re.sub(r"while training \S+", "while training #", line) for line in lines]
    return [line.strip() for line in steady_text("\n".join(lines), place).splitlines() if line.strip()]


def steady(value: Any, place: Path, timed: Collection[float] = ()) -> Any:
    """A JSON value without what differs from run to run. ``timed``: numbers that are times or memory wherever they stand."""
    if isinstance(value, dict):
        if value.get("unit") == "seconds" or TIMED.match(str(value.get("label", ""))):
            return value.get("label")
        kept = {key: held for key, held in value.items() if not UNSTEADY.fullmatch(key)}
        return {
            key: sorted(held) if key == "inputs" and isinstance(held, dict) else steady(held, place, timed)
            for key, held in kept.items()
        }
    if isinstance(value, list):
        first = value[0].get("text") if value and isinstance(value[0], dict) else value[0] if value else None
        row_of_times = isinstance(first, str) and TIMED.match(first)
        return first if row_of_times else [steady(entry, place, timed) for entry in value]
    if isinstance(value, str):
        return steady_text(value, place)
    return "#" if isinstance(value, int | float) and value in timed else value


def steady_summary(run: Path, place: Path) -> Any:
    """A run's summary.json without what differs from run to run; times in its tables are known from the stages' records."""
    records = [path for path in run.rglob("*.json") if path.name not in ("summary.json", "tokenizer.json")]
    timed = {value for path in records for value in _times(json.loads(path.read_text(encoding="utf-8")))}
    return steady(json.loads((run / "summary.json").read_text(encoding="utf-8")), place, timed)


def _times(value: Any, key: str = "") -> Iterator[float]:
    """The numbers under unsteady keys."""
    if isinstance(value, dict):
        for name, held in value.items():
            yield from _times(held, name)
    elif isinstance(value, list):
        for held in value:
            yield from _times(held)
    elif isinstance(value, int | float) and value and UNSTEADY.fullmatch(key):
        yield value


class _Visible(HTMLParser):
    """Text of a page outside scripts, styles and drawings, a line a block."""

    HIDDEN = ("script", "style", "svg")
    INLINE = re.compile("span|b|i|em|strong|a|code|td|th|abbr|sub|sup|small|br|mark|time")

    def __init__(self) -> None:
        super().__init__()
        self.text, self.hidden = "", 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden += tag in self.HIDDEN
        self.text += " " if self.INLINE.fullmatch(tag) else "\n"

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self.HIDDEN
        self.text += "" if self.INLINE.fullmatch(tag) else "\n"

    def handle_data(self, data: str) -> None:
        self.text += "" if self.hidden else re.sub(r"\s+", " ", data)


def visible(page: Path, place: Path) -> list[str]:
    """The visible text of a page."""
    parser = _Visible()
    parser.feed(page.read_text(encoding="utf-8"))
    return steady_lines(parser.text, place)


# ---- digests -------------------------------------------------------------------------------------------------------


EVERYWHERE = re.compile(r"((adapter_|generation_|tokenizer_)?config|tokenizer)\.json|recipe\.yaml")
"""Files that are the same on every machine."""
OF_ROWS = re.compile(r"(ledger|lengths)\.json")
"""What is the same on every machine, as all that a data stage writes, where no row was drawn or chosen by a model."""


def sha(value: Any) -> str:
    data = (
        value
        if isinstance(value, bytes)
        else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()
    )
    return hashlib.sha256(data).hexdigest()[:8]


def contents(path: Path, place: Path) -> Any:
    """Digest of a file's contents; of a JSON object one by key, so that a difference has a name."""
    match path.suffix:
        case ".json" if path.name != "tokenizer.json":  # long, and the same bytes wherever it is copied
            summary = path.name == "summary.json" and (path.parent / "recipe.yaml").exists()
            value = (
                steady_summary(path.parent, place)
                if summary
                else steady(json.loads(path.read_text(encoding="utf-8")), place)
            )
            if summary:
                del value[
                    "sections"
                ]  # sums of times; the page and its Markdown say the same, and test_summary has it whole
            by_key = isinstance(value, dict) and not (EVERYWHERE.fullmatch(path.name) or OF_ROWS.fullmatch(path.name))
            return {key: sha(held) for key, held in value.items()} if by_key else sha(value)
        case ".jsonl":
            lines = [steady(json.loads(line), place) for line in path.read_text(encoding="utf-8").splitlines()]
            of_calls = any("attempt" in line for line in lines)  # answers come in any order
            return sha(sorted(sha(line) for line in lines) if of_calls else lines)
        case ".parquet":
            return sha(steady(pl.read_parquet(path).to_dicts(), place))
        case ".safetensors":
            return sha([(name, str(t.dtype), t.shape, sha(t.tobytes())) for name, t in sorted(load_file(path).items())])
        case ".html":
            return sha(visible(path, place))
        case ".svg" | ".md" | ".yaml" | ".jinja":
            return sha(steady_lines(path.read_text(encoding="utf-8"), place))
        case _:
            return sha(path.read_bytes())


def rows_by_model(folder: Path) -> bool:
    """Whether rows of a run were drawn or chosen by a model: then all that follows hangs on the last bits."""
    kinds = {json.loads(path.read_text())["kind"] for path in folder.glob("*/manifest.json")}
    return bool(kinds & {"score", "synth", "online"})


def artefacts(folder: Path, place: Path) -> dict[str, Any]:
    """Digests of all that a folder holds, by relative path; identities in names are left out."""
    found: dict[str, Any] = {}
    by_model = rows_by_model(folder)
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"\b[0-9a-f]{16}\b", "#", path.relative_to(folder).as_posix())
        if (
            path.is_dir()
            or path.suffix in (".sqlite", ".lock")
            or path.name in (".lock", ".exit.json", "clock.json")
            or "speed" in name
        ):
            continue
        above = folder / name.split("/")[0] / "manifest.json"
        of_data = above.exists() and json.loads(above.read_text())["kind"] == "data"
        of_rows = of_data or OF_ROWS.fullmatch(path.name)
        sign = "=" if (of_rows and not by_model) or EVERYWHERE.fullmatch(path.name) else "~"
        value = contents(path, place)
        found[name] = {k: sign + v for k, v in value.items()} if isinstance(value, dict) else sign + value
    return found


# ---- comparing -----------------------------------------------------------------------------------------------------


def differences(old: Any, new: Any, here: bool, where: str = "") -> Iterator[str]:
    """What differs, by name. ``here``: the machine is the one of the recording, so every bit counts."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            name = f"{where} > {key}" if where else str(key)
            if key not in new or key not in old:
                yield f"{name}: {'gone' if key in old else 'new'}"
            else:
                yield from differences(old[key], new[key], here, name)
    elif _texts(old) and _texts(new):
        if [_masked(line, here) for line in old] != [_masked(line, here) for line in new]:
            yield "\n".join(
                [f"{where}:", *list(difflib.unified_diff(old, new, "recorded", "now", lineterm="", n=0))[2:]]
            )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, here, f"{where}[{number}]")
    elif not same(old, new, here):
        yield f"{where}: {str(old)[:300]} -> {str(new)[:300]}"


def _texts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, str) and not v.startswith(("0x", "-0x")) for v in value)
    )


def _masked(text: str, here: bool) -> str:
    return text if here else re.sub(r"@[0-9a-f]+|[\d.,−+-]+(e[−+-]?\d+)?", "#", text)


def same(old: Any, new: Any, here: bool) -> bool:
    """Whether two values are equal: to the bit on the machine of the recording, elsewhere losses to 1e-4, what follows from them to 1%."""
    if here or old == new or type(old) is not type(new):
        return bool(old == new)
    if isinstance(old, str) and re.match(r"-?0x", old):
        return math.isclose(float.fromhex(old), float.fromhex(new), rel_tol=1e-4, abs_tol=1e-6)
    if isinstance(old, str):
        return old.startswith("~") or _masked(old, here) == _masked(new, here)
    return isinstance(old, float) and math.isclose(old, new, rel_tol=1e-2, abs_tol=1e-3)


def told(done: Outcome, place: Path) -> dict[str, Any]:
    """How a command ended and what it said: stdout, errors and warnings."""
    lines = [line for line in done.err.splitlines() if "`torch.jit" not in line]  # said where a library is loaded first
    errors = [line for line in lines if re.match(r"error: |warning: |  fix: ", line)]
    said = {"exit": done.code, "out": steady_lines(done.out, place)}
    return said | ({"err": steady_lines("\n".join(errors), place)} if errors else {})


def tiny(recipe: Path) -> list[str]:
    """Overrides that make a recipe of the project run in seconds; rows and models from elsewhere become ones that are here."""
    changes = ["model=model"]
    stages = yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        match stage["kind"]:
            case "score":
                changes += [f"{name}.dtype=fp32", f"{name}.device=cpu", f"{name}.max_length=600"]
            case "data" if stage["sources"][0]["path"] not in stages:
                for k, source in enumerate(stage["sources"]):
                    changes.append(f"{name}.sources.{k}.max_rows={32 if {'rows', 'steps'} & stage.keys() else 16}")
                    if not source["path"].endswith("_demo"):
                        own = "pairs.jsonl" if stage.get("rows") == "pairs" else "rows.jsonl"
                        changes.append(f"{name}.sources.{k}.path={own}")
                if "held_out" in stage or "steps" not in stage:
                    changes.append(f"{name}.held_out=8")
            case "synth":
                changes += [f"{name}.rows_wanted=8", f"{name}.round_size=8", f"{name}.held_out=0.4"]
                if stage["pipeline"]["name"] == "magpie":  # weights drawn by chance never end a turn
                    own = "{name: preferences, data: {path: rows.jsonl}, score: {by: length}, rows: candidates, keep_cut: true}"
                    changes += [f"{name}.pipeline={own}", f"{name}.steps=[]"]
                elif stage["pipeline"]["score"]["by"] == "checks":
                    changes.append(f"{name}.pipeline.score.checks=[{{kind: max_words, expected: 10}}]")
                else:
                    changes.append(f"{name}.pipeline.min_margin=1")
                changes.append(f"{name}.pipeline.max_tokens=16")
            case "train":
                limit = (
                    1400 if stage.get("objective", {}).get("name") == "kto" else 600
                )  # long replies are the bad ones
                quick = ("max_steps=3", "batch_size=2", "dtype=fp32", "device=cpu", f"max_length={limit}")
                changes += [f"{name}.{key}" for key in quick]
                # by itself it hangs on the seconds that a step takes
                changes.append(f"{name}.checkpoint_every={1 if recipe.stem == KILLED else 3}")
            case "online":
                quick = (
                    "steps=2",
                    "prompts=2",
                    "replies=2",
                    "max_new_tokens=6",
                    "evaluation_prompts=4",
                    "evaluate_every=1",
                )
                changes += [f"{name}.{key}" for key in (*quick, "dtype=fp32", "device=cpu", "max_prompt_tokens=600")]
            case "eval":
                changes += [
                    f"{name}.{key}" for key in ("max_new_tokens=4", "resamples=100", "max_length=600", "device=cpu")
                ]
                if "prompts" not in stage:
                    changes.append(f"{name}.prompts=prompts.yaml")
                for key in stage.get("benchmarks", ()):
                    changes += [f"{name}.benchmarks.{key}.max_prompts=4", f"{name}.benchmarks.{key}.max_tokens=4"]
    return changes
