"""Several runs beside each other: curves over one another, where their recipes differ, and their results with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.artifacts import RunDir
from posttrain.board.curves import columns, read_on, thinned, trained
from posttrain.board.pages.runs import listing_of
from posttrain.board.web import is_run, language_of, render, settings_of, word
from posttrain.errors import PosttrainError
from posttrain.report.values import Cell, Label, Line, Number, Table
from posttrain.stages import KINDS
from posttrain.stages.page import flattened, measured_lines

FEWEST, MOST = 2, 8


def page(request: Request) -> Response:
    """The comparison, or the choice of what is compared."""
    chosen, listing = request.query_params.getlist("run"), listing_of(request).all()
    language = language_of(request)
    if not chosen:
        return render(request, "compare.html", listing=listing, runs=[], settings=None, results=None)
    runs = _chosen(request)
    recipes = {run.path.name: _settings(run) for run in runs}
    return render(
        request,
        "compare.html",
        listing=listing,
        runs=[run.path.name for run in runs],
        settings=differing(recipes, word(language, "compare.setting")),
        results=results({run.path.name: _lines(run) for run in runs}, word(language, "compare.measure")),
    )


def _chosen(request: Request) -> list[RunDir]:
    """The runs that are asked for. Raises HTTPException where one is not there, or they are too few or too many."""
    names, runs = list(dict.fromkeys(request.query_params.getlist("run"))), settings_of(request).runs
    if not FEWEST <= len(names) <= MOST:
        raise HTTPException(400, word(language_of(request), "compare.how_many", fewest=FEWEST, most=MOST))
    for name in names:
        if not is_run(runs, name):
            raise HTTPException(404, f"there is no run {name!r}")
    return [RunDir(runs / name) for name in names]


def curves(request: Request) -> Response:
    """The curves of all runs, thinned."""
    found = {}
    for run in _chosen(request):
        parts = {name: columns(read_on(run.stage(name).file("metrics.jsonl"), 0).records) for name in trained(run)}
        found[run.path.name] = {
            name: {split: thinned(values) for split, values in splits.items()} for name, splits in parts.items()
        }
    return JSONResponse(found)


# ---- settings ------------------------------------------------------------------------------------------------------


def _settings(run: RunDir) -> dict[str, str]:
    try:
        value = yaml.load(
            (run.path / "recipe.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
        return dict(flattened(value)) if isinstance(value, dict) else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def differing(recipes: Mapping[str, Mapping[str, str]], heading: str) -> Table:
    """Only what is not the same in all recipes, a line a setting; of a stage that not all have its kind alone."""
    stages = [{_stage(key) for key in settings} for settings in recipes.values()]
    common = set.intersection(*stages)
    keys = dict.fromkeys(key for settings in recipes.values() for key in settings)
    told = [key for key in keys if key != "name" and (_stage(key) in common or key == f"{_stage(key)}.kind")]
    several = {key: [settings.get(key) for settings in recipes.values()] for key in told}
    rows = tuple((key, *values) for key, values in several.items() if len(set(values)) > 1)
    return Table("", (heading, *recipes), rows)


def _stage(key: str) -> str:
    """The stage that a setting is of, as ``stages.sft``; nothing of one of the recipe itself."""
    return ".".join(key.split(".")[:2]) if key.startswith("stages.") else ""


# ---- results -------------------------------------------------------------------------------------------------------


def _lines(run: RunDir) -> Sequence[Line]:
    """What a run measured; nothing where it has not, or can't be read."""
    try:
        return measured_lines(run, KINDS)
    except (PosttrainError, OSError):
        return ()


def results(measured: Mapping[str, Sequence[Line]], heading: str) -> Table:
    """Every measure that a report has at a glance, a line for each model, a column for each run, with its interval."""
    found: dict[str, dict[tuple[str, str], tuple[Label, dict[str, Number]]]] = {}
    for run, lines in measured.items():
        for one in lines:
            for model, number in one.cells.items():
                group = found.setdefault(one.group, {})
                group.setdefault((one.label.text, model), (one.label, {}))[1][run] = number
    rows: list[tuple[Cell, ...] | str] = []
    for name, measures in found.items():
        rows.append(name)
        rows += [
            (replace(label, text=f"{text} \N{MIDDLE DOT} {model}"), *(cells.get(run) for run in measured))
            for (text, model), (label, cells) in measures.items()
        ]
    return Table("", (heading, *measured), tuple(rows))


ROUTES = [Route("/compare", page), Route("/compare/curves", curves)]
