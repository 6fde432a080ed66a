"""The model card of an exported model, written from what its run recorded. No folder of this machine stands in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from posttrain import assets
from posttrain.artifacts import Manifest, RunDir, StageDir, read_json
from posttrain.errors import RunError
from posttrain.report import markdown, values
from posttrain.report.reading import parse
from posttrain.tasks.records import TaskRecord, read_record

LANGUAGE_SHARE = 0.05
"""A language that fewer rows are in is not one of the model's."""
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
_LICENCES = {"Apache License": "apache-2.0", "MIT License": "mit"}
_SETTINGS = (
    "objective",
    "adapter",
    "learning_rate",
    "schedule",
    "warmup",
    "batch_size",
    "epochs",
    "max_steps",
    "max_length",
    "weight_decay",
)


@dataclass(frozen=True)
class Told:
    """What is known of where a model comes from."""

    title: str
    base: str
    """The name of the model it was made from."""
    licence: str | None = None
    trained: bool = False
    datasets: tuple[str, ...] = ()
    """Names on the hub."""
    languages: tuple[str, ...] = ()
    sections: tuple[values.Section, ...] = field(default=())


def told_of(name: str, folder: Path, adapted: bool) -> Told:
    """What can be said of a model from outside a run: name is how it was given, folder where its (base) weights are."""
    base = public_name(name if not Path(name).exists() else str(folder), folder)
    title = Path(name).resolve().name if Path(name).exists() else name
    return Told(title, base, licence_of(base, folder), trained=adapted)


def told_of_stage(run: RunDir, stage: str, model: str, folder: Path) -> Told:
    """What a run says of the model that one of its train stages left."""
    title = f"{run.path.resolve().name}/{stage}"
    chain = [] if stage == "base" else list(_chain(run, stage))
    base = public_name(model, folder)
    found = Told(title if chain else base, base, licence_of(base, folder), trained=bool(chain))
    if not chain:
        return found
    sources = [source for name, _ in chain for source in _sources(run, name)]
    sections = (_data(sources), *(_settings(name, config) for name, config in reversed(chain)), *_results(run, stage))
    return replace(
        found,
        datasets=tuple(
            dict.fromkeys(name for source in sources if (name := _hub_data(str(source.get("path"))))).keys()
        ),
        languages=_languages(run, [name for name, _ in chain]),
        sections=sections,
    )


def write_card(told: Told, relation: str, library: str, files: Sequence[values.Block]) -> str:
    """README.md: front matter as the hub reads it, and the sections. files: what is said of this folder itself."""
    front: dict[str, Any] = {"base_model": told.base, "base_model_relation": relation, "library_name": library}
    front |= {"pipeline_tag": "text-generation"}
    for key, value in (("license", told.licence), ("language", [*told.languages]), ("datasets", [*told.datasets])):
        if value:
            front[key] = value
    front["tags"] = ["posttrain"]
    made = (
        f"Made from {told.base} with posttrain."
        if told.trained
        else f"The weights of {told.base}, written by posttrain."
    )
    sections = (values.Section("This folder", "files", tuple(files)), *told.sections)
    page = values.Page("", told.title, sections)
    body = "\n\n".join(markdown.blocks(page.sections, 2))
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n# {markdown.inline(told.title)}\n\n{markdown.inline(made)}\n\n{body}\n"


# ---- names -----------------------------------------------------------------------------------------------------------


def public_name(name: str, folder: Path) -> str:
    """How a model is called where this disk is unknown: its name on the hub or as an asset, else the name of its folder."""
    resolved = folder.resolve()
    if (found := _HUB_CACHE.search(f"{resolved}/")) is not None:
        return f"{found[1]}/{found[2]}"
    asset = next((key for key in assets.MODELS if resolved.name.startswith(f"{key}-")), None)
    if asset is not None and resolved.parent == (assets.cache_folder() / "models").resolve():
        return asset
    return name if not Path(name).expanduser().exists() and not Path(name).is_absolute() else resolved.name


def licence_of(name: str, folder: Path) -> str | None:
    """The licence that a model's card, asset or LICENSE file says; None where none does."""
    if name in assets.MODELS:
        return assets.MODELS[name].licence.lower()
    card = _read(folder / "README.md")
    if card.startswith("---"):
        try:
            front = yaml.safe_load(card.split("---")[1])
        except yaml.YAMLError:
            front = None
        if isinstance(front, dict) and isinstance(front.get("license"), str):
            return str(front["license"])
    text = _read(folder / "LICENSE")[:300]
    return next((licence for words, licence in _LICENCES.items() if words in text), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _hub_data(path: str) -> str | None:
    """The name on the hub of a source of rows."""
    found = re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", path) or re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)", path)
    local = path.endswith((".json", ".jsonl", ".csv", ".parquet", ".gz", ".zst", ".tsv", ".txt", ".arrow"))
    return found[1] if found and not Path(path).exists() and not (local and not path.startswith("hf:")) else None


# ---- the run ---------------------------------------------------------------------------------------------------------


def _config(out: StageDir) -> Mapping[str, Any]:
    """The configuration of a stage; nothing where it can't be read: a card says what is known."""
    try:
        return parse(
            Manifest, {k: v for k, v in (out.manifest() or {}).items() if k != "schema"}, out.file("manifest.json")
        ).config
    except RunError:
        return {}


def _chain(run: RunDir, stage: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The train stages behind a model, the last one first; a model from outside ends them."""
    seen = set()
    while stage not in seen and run.stage(stage).file("manifest.json").is_file():
        seen.add(stage)
        config = _config(run.stage(stage))
        yield stage, config
        stage = str(config.get("start_from", "base"))


def _sources(run: RunDir, trained: str) -> list[Mapping[str, Any]]:
    """Where the rows of a train stage come from, through all stages of rows."""
    name, found = str(_config(run.stage(trained)).get("data", "")), []
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop(0)
        config = _config(run.stage(name))
        if name in seen or not config:
            continue
        seen.add(name)
        waiting += [str(config["data"])] if config.get("data") else []
        for source in config.get("sources") or ():
            path = str(source.get("path"))
            if run.stage(path).file("manifest.json").is_file():
                waiting.append(path)
            else:
                found.append(source)
    return found


def _data(sources: Sequence[Mapping[str, Any]]) -> values.Section:
    rows = []
    for source in sources:
        path = str(source.get("path"))
        name = source.get("name") or _hub_data(path) or Path(path).name
        rows.append((str(name), str(source.get("format") or "auto"), str(source.get("max_rows") or "all")))
    table = values.Table("", ("source", "format", "rows read at most"), tuple(dict.fromkeys(rows)))
    return values.Section("Data", "data", (table,))


def _settings(name: str, config: Mapping[str, Any]) -> values.Section:
    items = tuple((key, _plain(config[key])) for key in _SETTINGS if config.get(key) is not None)
    return values.Section(f"Training: {name}", f"training-{name}", (values.Facts(items),))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items() if one is not None)
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _languages(run: RunDir, trained: Sequence[str]) -> tuple[str, ...]:
    """Languages of the rows that were trained on, where a profile counted them."""
    found: dict[str, None] = {}
    for name in trained:
        data = run.stage(str(_config(run.stage(name)).get("data", "")))
        if data.file("profile.json").is_file():
            for one in read_json(data.file("profile.json")).get("languages") or ():
                if one["share"] >= LANGUAGE_SHARE and re.fullmatch("[a-z]{2,3}", str(one["language"])):
                    found[str(one["language"])] = None
    return tuple(found)


def _results(run: RunDir, stage: str) -> Iterable[values.Section]:
    """The headline measures of every evaluation of this model so far, with intervals, beside its baseline."""
    for name in run.stages():
        out = run.stage(name)
        manifest = out.manifest() or {}
        if manifest.get("kind") != "eval" or manifest.get("status") != "complete":
            continue
        rows: list[tuple[values.Cell, ...]] = []
        baselines = set()
        for path in sorted([*out.path.glob("*.json"), *out.path.glob("benchmarks/*.json")]):
            try:
                record = read_record(path)
            except RunError:  # a file of another kind
                continue
            if stage in record.models:
                baselines.add(record.baseline)
                rows += _lines(record, stage)
        if rows:
            first = f"before ({', '.join(sorted(baselines))})"
            table = values.Table("", ("measure", stage, first, "difference", "prompts or rows"), tuple(rows))
            yield values.Section(f"Results: {name}", f"results-{name}", (table, _INTERVALS))


_INTERVALS = values.Text(
    "Intervals as the run's evaluation recorded them (95% unless its settings say otherwise).", "aside"
)


def _lines(record: TaskRecord, stage: str) -> Iterable[tuple[values.Cell, ...]]:
    """A line for every headline measure of a record."""
    found = {(one.model, one.measure): one for one in record.results if one.category is None}
    changes = {one.measure: one for one in record.differences if one.b == stage and one.a == record.baseline}
    for measure in record.measures:
        own = found.get((stage, measure.key))
        if not measure.headline or own is None:
            continue
        cells = [
            values.Number(one.estimate, measure.unit, one.low, one.high)
            if one and not one.by_definition and one.estimate is not None
            else None
            for one in (own, found.get((record.baseline, measure.key)) if record.baseline != stage else None)
        ]
        change = changes.get(measure.key)
        moved = values.Number(change.difference, measure.unit, change.low, change.high, signed=True) if change else None
        yield (f"{record.title}: {measure.label}", *cells, moved, values.Number(own.prompts, "count"))
