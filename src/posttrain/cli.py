"""The command line: thin verbs. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from posttrain import __version__
from posttrain.errors import LostPeerError, PosttrainError
from posttrain.parallel.peers import ALONE, LAUNCHED, Peers

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain.artifacts import RunDir
    from posttrain.lab.engine import Experiment
    from posttrain.lab.one_stage import OneStage
    from posttrain.lab.recipe import Recipe

app = typer.Typer(
    name="posttrain",
    help="Post-train language models end to end, with proof of every step.\n\n"
    "Start with: posttrain run recipes/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, for example recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the recipe, for example sft.learning_rate=1e-4.", show_default=False
    ),
]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Which split of a folder or hub data set.", show_default=False)
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", help="Which configuration of a hub data set or its clone.", show_default=False)
]
Conversations = Annotated[
    str, typer.Option("--conversations", help="A data file of any known format, or a demo asset.")
]
RowFormat = Annotated[str, typer.Option("--format", help="Row format, where it should not be detected.")]
Template = Annotated[
    Path | None, typer.Option("--template", help="A Jinja chat template instead of the tokenizer's own.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the run folders.")]
_A_MODEL = "A run's train stage (runs/NAME/STAGE), an adapter or model folder, a demo asset or a hub name."
_OR_GGUF = f"{_A_MODEL} Or a GGUF file."
ColumnNames = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="MAPPING",
        help="Which column is what: '{user: question, assistant: meta.reply}'; also system, messages, chosen, ...",
    ),
]


_OPTIONS_ARE_KEYS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Of a command whose options are keys of a configuration."""


def main() -> None:
    """Entry point: a posttrain error is one message on stderr and exit code 2; Ctrl-C is 130."""
    warnings.showwarning = _show_warning
    launched = LAUNCHED in os.environ
    if launched:  # until it has joined the others there is nothing to be ended with care
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: os._exit(130))
    try:
        app()
    except PosttrainError as error:
        if launched:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # this is the end already
        told = isinstance(error, LostPeerError) and launched  # by the process that started all
        if not told:
            typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _show_warning(message: Warning | str, *details: object, **more: object) -> None:
    """One line instead of a place in the source: it is for users."""
    typer.echo(f"warning: {message}", err=True)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Handle options that stand before any command."""
    if version:
        typer.echo(f"posttrain {__version__}")
        raise typer.Exit


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(soft_wrap=True, stderr=stderr)


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check all that is checked before a run, and name the stages that would run."),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            help="Share the steps of trainings among so many processes of this machine, one a GPU; torchrun does so on several machines.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="Where several processes are started: local (this machine), or ray (a Ray cluster; one a GPU, unless --processes says).",
        ),
    ] = "local",
    backend: Annotated[
        str, typer.Option("--backend", help="Of several processes: nccl, gloo, or auto (nccl on CUDA, else gloo).")
    ] = "auto",
) -> None:
    """Run a recipe: every stage that is not finished yet, in order. Killed? Run it again: it resumes exactly."""
    from posttrain.lab.recipe import load_recipe

    begun = "WORLD_SIZE" in os.environ  # by a launcher, as one of several
    _check_engine(engine, backend, several=begun or engine == "ray" or processes is not None)
    if (engine == "ray" or processes not in (None, 1)) and not dry_run:
        load_recipe(recipe, overrides or [])  # what is wrong with it is said before any process is begun
        words = ["run", "--runs", str(runs), "--backend", backend, "--", str(recipe), *(overrides or [])]
        raise typer.Exit(_launch(engine, processes, backend, words))
    with _joined(backend if begun else None, None if dry_run else runs) as peers:
        if not peers.leads:
            return
        loaded = load_recipe(recipe, overrides or [])
        with _experiment(loaded, runs / loaded.name, peers=peers) as experiment:
            if dry_run:
                experiment.rehearse()
                return
            experiment.execute()
        _show_end(experiment.run)


def _check_engine(engine: str, backend: str, *, several: bool) -> None:
    """Raise a ConfigError for one that is unknown, and for a backend where there is one process."""
    from posttrain.errors import ConfigError
    from posttrain.table import did_you_mean

    known = ("local", "ray")
    if engine not in known:
        problem = f"unknown engine {engine!r}{did_you_mean(engine, known)}"
        raise ConfigError(problem, where="--engine", fix=f"known: {', '.join(known)}")
    if backend != "auto" and not several:
        problem = "a backend joins several processes, and this is one"
        raise ConfigError(problem, where="--backend", fix="give --processes N too, or leave it out")


def _launch(engine: str, processes: int | None, backend: str, words: list[str]) -> int:
    """Run the command in several processes; returns the code that it ends with."""
    if engine == "ray":
        from posttrain.parallel.ray_launch import launch_on_ray

        return launch_on_ray(processes, backend, words, lambda text: typer.echo(f"note: {text}", err=True))
    from posttrain.parallel.launch import launch

    assert processes is not None
    return launch(processes, backend, words)


@contextlib.contextmanager
def _joined(backend: str | None, runs: Path | None) -> Iterator[Peers]:
    """The processes that this one was started with, which take part to the end of the block.

    ``backend``: None = it was started by itself. ``runs``: the folder that all must see; None where none of them writes.
    """
    if backend is None:
        yield ALONE
        return
    from posttrain.lab.engine import follow
    from posttrain.parallel.joined import JoinedPeers, joined

    peers = joined(backend)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        if runs is not None:
            peers.check_shared(runs)
        if isinstance(peers, JoinedPeers) and not peers.leads:
            follow(peers)
        yield peers
    finally:
        if isinstance(peers, JoinedPeers) and peers.leads:
            peers.end()


@app.command()
def start(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    queue: Annotated[bool, typer.Option("--queue", help="Run it when those queued before have ended.")] = False,
) -> None:
    """Run a recipe in a process of its own, which outlives this terminal; it stops with: posttrain stop."""
    from posttrain.lab import processes
    from posttrain.lab.queue import enqueue

    if queue:
        entry = enqueue(recipe, overrides or [], runs)
        typer.echo(f"{runs / entry.name} is queued; a run that fails does not stop the others.")
        return
    started = processes.start(recipe, overrides or [], runs)
    place = runs / started.run.path.name
    typer.echo(f"Started (pid {started.pid}). See: {place / processes.RUN_LOG}. Stop it: posttrain stop {place}")


@app.command()
def stop(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, for example runs/quickstart.")
    ],
    now: Annotated[
        bool, typer.Option("--now", help="Not after this step, but as Ctrl-C does; killed if it takes 30 seconds.")
    ] = False,
) -> None:
    """Stop a run after the step it is at, with a checkpoint. Run its recipe again: it goes on from there."""
    from posttrain.lab import processes

    processes.stop(_run_folder(run_folder), "now" if now else "after step")
    typer.echo("It ends now." if now else "It ends after this step, or after this stage where that has no steps.")


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Run only the train stages of a recipe, and the data stages they read."""
    from posttrain.errors import ConfigError
    from posttrain.lab.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    only = [name for name, stage in loaded.stages.items() if stage.kind == "train"]
    if not only:
        raise ConfigError("this recipe has no train stage", where=str(recipe))
    with _experiment(loaded, runs / loaded.name) as experiment:
        experiment.execute(only)
    _show_end(experiment.run, page=False)


@contextlib.contextmanager
def _experiment(recipe: Recipe, folder: Path, *, stderr: bool = False, peers: Peers = ALONE) -> Iterator[Experiment]:
    """A recipe ready to be run, with progress on the terminal; Ctrl-C is one clear message."""
    from posttrain.artifacts import RunDir
    from posttrain.lab.ending import interrupted
    from posttrain.lab.engine import Experiment
    from posttrain.report.live import Display

    run_folder = RunDir(folder)
    try:
        with Display(_console(stderr=stderr)) as display:
            yield Experiment(recipe, run_folder, display, peers=peers)
    except KeyboardInterrupt:
        raise interrupted(run_folder) from None


def _show_end(run_dir: RunDir, *, page: bool = True, summary: bool = True) -> None:
    """The headline numbers of a run, and where to look."""
    from posttrain.stages import KINDS
    from posttrain.stages.page import terminal_summary

    console = _console()
    if summary:
        console.print(terminal_summary(run_dir, KINDS))
    written = run_dir.path / "report" / "index.html"
    found = page and written.exists()
    console.print(f"\nOpen {written}" if found else f"\nResults are in {run_dir.path}", highlight=False)


@app.command()
def ablate(
    recipe: RecipeFile,
    kind: Annotated[
        str, typer.Option("--kind", help="leave_one_out (a recipe a source), or sub_samples (5 to 100% of the rows).")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the recipes.")],
) -> None:
    """Write the recipes of a data ablation, complete and runnable, beside the unchanged one."""
    from posttrain.errors import ConfigError
    from posttrain.lab.ablation import Kind, ablation_recipes
    from posttrain.table import did_you_mean

    known: tuple[Kind, ...] = get_args(Kind)
    chosen = next((name for name in known if name == kind), None)
    if chosen is None:
        raise ConfigError(f"unknown plan {kind!r}{did_you_mean(kind, known)}", fix=f"known: {', '.join(known)}")
    for planned in ablation_recipes(recipe, out, chosen):
        typer.echo(f"posttrain run {planned.path}    # {planned.changed}")


def _search(kind: Literal["sweep", "tune"], words: str, about: str) -> None:
    """Add a command that runs a recipe under many settings."""
    usage = f"posttrain {kind} RECIPE {words} [--KEY VALUE]..."

    @app.command(kind, help=f"{about}\n\n{usage}", context_settings=_OPTIONS_ARE_KEYS)
    def command(
        ctx: typer.Context,
        recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe.")] = "",
        runs: Runs = Path("runs"),
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be tried and how long it takes; run nothing.")
        ] = False,
        help_wanted: Annotated[bool, typer.Option("--help", help="Show this message with all options.")] = False,
    ) -> None:
        from posttrain.errors import ConfigError
        from posttrain.lab.searches import cost_section, options, search_recipe
        from posttrain.report import terminal
        from posttrain.stages import KINDS
        from posttrain.stages.page import write_report

        if help_wanted:
            typer.echo(ctx.get_help() + "\n\n" + options(kind))
            raise typer.Exit
        if not recipe:
            raise ConfigError("no recipe", where=f"posttrain {kind}", fix=usage)
        loaded = search_recipe(kind, recipe, ctx.args, runs)
        if dry_run:
            _console().print(terminal.section(cost_section(kind, loaded, recipe, runs)), highlight=False)
            return
        with _experiment(loaded, runs / loaded.name) as experiment:
            experiment.execute()
        write_report(experiment.run, KINDS)
        _show_end(experiment.run)


_search(
    "sweep",
    "sft.learning_rate=1e-4,2e-4",
    "Run a stage of a recipe, and all it reads, under many settings: a grid, or --search.name random or asha over {low: .., high: ..}. "
    "What settings share is run once. Killed? Run it again: it goes on.",
)
_search(
    "tune",
    "[KEY=VALUE]...",
    "Find learning rate, epochs, rank and effective batch of a training, one after the other, by its held-out loss.",
)


@app.command()
def new(
    out: Annotated[Path, typer.Option("-o", "--out", help="The recipe to write, a new YAML file.")],
    model: Annotated[str, typer.Option("--model", help="A Hugging Face folder, a hub name or a demo asset.")],
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Rows to imitate; may be given several times.")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("--pairs", help="Preferences (or judged replies); may be given several times.")
    ] = None,
    goal: Annotated[
        str | None, typer.Option("--goal", help="An objective: sft, dpo, simpo, kto, reward, ...", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights.")] = False,
    lora: Annotated[bool, typer.Option("--lora", help="Train an adapter.")] = False,
    qlora: Annotated[bool, typer.Option("--qlora", help="Train an adapter over 4-bit weights.")] = False,
    device: Annotated[
        str, typer.Option("--device", help="What it should fit: 24GB, rtx4090, cpu, or auto (this machine).")
    ] = "auto",
    template: Template = None,
) -> None:
    """Write a complete recipe for your model and rows from published guidance, with the reason beside each choice."""
    from posttrain.errors import ConfigError
    from posttrain.lab.first_recipe import Wish, write_first_recipe
    from posttrain.plan.guidance import Method

    chosen: list[Method] = [name for name, asked in zip(get_args(Method), (full, lora, qlora), strict=True) if asked]
    if len(chosen) > 1:
        raise ConfigError("one method only", where="posttrain new", fix=" or ".join(f"--{name}" for name in chosen))
    wish = Wish(
        model=model,
        data=tuple(data or ()),
        pairs=tuple(pairs or ()),
        goal=goal,
        method=chosen[0] if chosen else None,
        device=device,
        template=template,
    )
    for warning in write_first_recipe(wish, out).warnings:
        warnings.warn(warning, stacklevel=1)
    typer.echo(f"{out} is written. What fits: posttrain plan {out}. Run it: posttrain run {out}")


@app.command()
def plan(
    target: Annotated[
        str,
        typer.Argument(metavar="RECIPE|MODEL", help="A recipe, or a model folder, a demo asset or a hub name."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes to the recipe; of a model, settings of a train stage, for example max_length=4096.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="A size of memory (24GB), a card (rtx4090, h100, ...), cpu, or auto (here).")
    ] = "auto",
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Also run the step on tensors without values, and hold the formulas against it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Say what fits on a device before anything is loaded: memory by part, full beside LoRA and QLoRA, what to change first."""
    import json

    from posttrain.artifacts import write_text
    from posttrain.lab import planning
    from posttrain.report import terminal

    found = planning.plan(target, overrides or [], device, runs, trace=trace)
    if html is not None:
        from posttrain.report.html import page

        write_text(html, page(found.page))
        typer.echo(f"Open {html}", err=True)
    if as_json:
        typer.echo(json.dumps(found.record, ensure_ascii=False))
    else:
        _console().print(
            terminal.page(found.page), *map(terminal.section, found.page.sections), sep="\n", highlight=False
        )


@app.command()
def board(
    runs: Runs = Path("runs"),
    port: Annotated[int, typer.Option("--port", help="0 = any that is free.")] = 7860,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Who can reach it: this machine only, or 0.0.0.0 = everyone who has the token that is printed.",
        ),
    ] = "127.0.0.1",
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="A folder whose rows may be looked at; may be given several times."),
    ] = None,
    recipes: Annotated[
        list[Path] | None, typer.Option("--recipes", help="A folder of recipes to start from; by default ./recipes.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A host name under which a proxy gives it to others.")
    ] = None,
    under: Annotated[str, typer.Option("--under", help="A path that a proxy leaves in front, as /b/x4.")] = "",
) -> None:
    """Open the board: a web page over the runs. Start, watch, compare, chat; a run goes on when the page or the board is closed.

    From another machine: ssh -L 7860:localhost:7860 HOST, then open http://localhost:7860.
    """
    from posttrain.board.server import Place, serve

    place = Place(host, port, tuple(name or ()), under)
    serve(runs, tuple(data or ()), tuple(recipes or (Path("recipes"),)), place, lambda text: typer.echo(text, err=True))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, for example runs/quickstart.")],
) -> None:
    """Write report/index.html, report/report.md and summary.json anew from what a run folder holds."""
    from posttrain.stages import KINDS
    from posttrain.stages.page import write_report

    typer.echo(f"Open {write_report(_run_folder(run_folder), KINDS)}")


def _run_folder(path: Path) -> RunDir:
    """The run folder of a path. Raises RunError where there is none."""
    from posttrain.artifacts import RunDir
    from posttrain.errors import RunError

    if (path / "recipe.yaml").is_file():
        return RunDir(path)
    of_stage = (path / "manifest.json").is_file() and (path.resolve().parent / "recipe.yaml").is_file()
    if of_stage or path.is_file():
        problem = "this is one stage of a run" if of_stage else "this is a file"
        raise RunError(problem, where=str(path), fix=f"give the run: {path.parent}")
    problem = "no recipe.yaml here: this is not a run folder" if path.is_dir() else "there is no folder of this name"
    raise RunError(problem, where=str(path), fix="give a folder below runs/")


@app.command()
def doctor(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or while it trains.")],
    language: Annotated[str, typer.Option("--lang", help="en or zh.")] = "en",
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what went wrong in a run, why, and what to change. Exit code 0: no alarm; 1: an alarm; 2: the folder can't be read.

    What can't be told from the run is listed with what would tell; it is never counted as healthy.
    """
    import json
    from dataclasses import replace

    from posttrain.doctor.diagnosis import diagnose, diagnosis_json, diagnosis_section
    from posttrain.doctor.words import Words
    from posttrain.report import terminal
    from posttrain.stages import KINDS
    from posttrain.stages.page import read_stages

    words, stages = Words(language), read_stages(_run_folder(run_folder), KINDS)
    found = diagnose(stages.stages, stages.gaps)
    if as_json:
        typer.echo(json.dumps(diagnosis_json(found, words), ensure_ascii=False))
    else:
        shown = replace(diagnosis_section(found, words), folded=False)
        _console().print(terminal.section(shown), highlight=False)
    if found.alarms:
        raise typer.Exit(1)


@app.command()
def show(
    conversations: Conversations,
    model: Annotated[str, typer.Option("--model", help=f"Whose tokenizer and chat template are used. {_A_MODEL}")],
    row: Annotated[int, typer.Option("--row", min=0, help="Which row; 0 is the first.")] = 0,
    template: Template = None,
    row_format: RowFormat = "auto",
    columns: ColumnNames = None,
    split: SplitOption = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print tokens with ids, texts and weights as JSON.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with the coloured tokens.")] = None,
) -> None:
    """Show one row at every stage: messages, rendered text, tokens. What is trained on is coloured."""
    import json

    from posttrain.artifacts import write_text
    from posttrain.assets import resolve_data
    from posttrain.data.config import Source
    from posttrain.data.pipeline import row_at
    from posttrain.encode.show import as_json as row_json
    from posttrain.encode.show import show_row
    from posttrain.lab.options import parse_columns
    from posttrain.lab.row_page import row_page
    from posttrain.model.targets import resolve_target
    from posttrain.report import terminal
    from posttrain.report.html import page

    source = Source(path=conversations, format=row_format, columns=parse_columns(columns), split=split, config=config)
    found = row_at(source, row, resolve_data)
    value = show_row(found, resolve_target(model).spoken(template).template, number=row)
    if html is not None:
        write_text(html, page(row_page(value)))
        typer.echo(f"Open {html}", err=True)
    if as_json:
        typer.echo(json.dumps(row_json(value), ensure_ascii=False))
    else:
        drawn = row_page(value)
        _console().print(terminal.page(drawn), *map(terminal.section, drawn.sections), sep="\n", soft_wrap=False)
    if value.rejected is not None:
        raise typer.Exit(2)


def _group(name: str, about: str) -> typer.Typer:
    """Add a group of commands."""
    group = typer.Typer(name=name, help=about, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    app.add_typer(group)
    return group


data_app = _group(
    "data", "One step of data engineering on files of any known format; options of a step are its keys in a recipe."
)
judge_app = _group(
    "judge",
    "Let a model judge replies: pairs or single ones, with its bias measured; or measure the judge against labels.",
)


def _one_stage(
    group: typer.Typer,
    name: str,
    words: str,
    about: str,
    more: str | None = None,
    folder: str = "Folder to write into, a run folder.",
) -> None:
    """Add a command that is a recipe of one stage; its options are keys of the recipe."""
    verb = name.rpartition(" ")[2]
    usage = f"posttrain {name} {words} -o DIR [--KEY VALUE]..."
    place = typer.Option(None, "-o", "--out", help=folder)

    @group.command(verb, help=f"{about}\n\n{usage}", epilog=more, context_settings=_OPTIONS_ARE_KEYS)
    def command(
        ctx: typer.Context,
        out: Path | None = place,
        as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
        help_wanted: Annotated[bool, typer.Option("--help", help="Show this message with all options.")] = False,
    ) -> None:
        from posttrain.lab.one_stage import one_stage, options_of

        if help_wanted:
            typer.echo(ctx.get_help() + "\n\n" + options_of(name))
            raise typer.Exit
        _run_one(one_stage(name, ctx.args), out, as_json)


def _run_one(found: OneStage, out: Path | None, as_json: bool) -> None:
    """Run the recipe of a command, and show what came of it."""
    from posttrain.errors import ConfigError
    from posttrain.report import terminal

    if out is None:
        raise ConfigError("no output folder", where=f"posttrain {found.name}", fix="say where to write: -o DIR")
    recipe = found.recipe(out)
    with found.run_folder(out) as folder:
        with _experiment(recipe, folder, stderr=as_json) as experiment:
            experiment.execute()
        if as_json:
            typer.echo(found.json(folder))
            return
        if found.name != "eval":
            _console().print(terminal.section(found.section(folder, recipe, out)), highlight=False)
    if "report" in recipe.stages:
        _show_end(experiment.run, summary=found.name == "eval")


for _name, _about in {
    "filter": "Drop rows by rules: format, length, language, garbled, repetition, template, refusal, harmful, pii, secrets.",
    "dedup": "Drop duplicates and near-duplicates: exact, n-gram, MinHash, SimHash or embeddings, verified pair by pair.",
    "decontaminate": "Find and drop rows that hold prompts of benchmarks (the rule of Tulu 3).",
    "select": "Choose rows by difficulty, IFD, GRAPE, diversity or quality; scores come from posttrain score.",
    "mix": "Decide how much of each source is trained on.",
    "split": "Split into train, validation and test; near-duplicates and equal prompts stay together.",
    "profile": "Describe rows: lengths, turns, languages, sources, what every step removed. Tables, profile.html, profile.json.",
}.items():
    _one_stage(data_app, f"data {_name}", "FILES...", _about)
_one_stage(
    app,
    "score",
    "FILES... --model MODEL",
    "Score rows with a model: loss, IFD and mean log-prob of the answers. Killed? Run it again: it goes on.",
)
_one_stage(
    app, "arena", "FILE", "Rate models from judged pairs: ratings with intervals, win matrix, style control, one page."
)
_one_stage(
    app,
    "eval",
    "MODELS...",
    "Run benchmarks on models, with judges where they need one, and write one report. A model is runs/NAME/STAGE, a model or adapter folder, "
    "an asset or a hub name; NAME=TARGET names it. The first is the baseline. Killed? Run it again: it goes on.",
    "Benchmarks with prompts of their own: pairwise, safety, diversity. With your file: mt_bench, alpaca_eval, arena_hard, ifeval, "
    "gsm8k, overlap. What each measures and its keys: docs/benchmarks.md. Without --prompts only benchmarks are measured.",
)
for _name, _about in {
    "pairs": "Which of two replies is better: both orders, win rates with intervals, and the judge's bias.",
    "single": "Rate single replies from 1 to 10, or from 1 to 5 by your own criteria.",
    "calibrate": "Judge labelled pairs or rated replies: how far the judge agrees with people, and whether it is good enough.",
}.items():
    _one_stage(judge_app, f"judge {_name}", "FILE", _about)


synth_app = _group(
    "synth",
    "Let a model make rows: instructions from seeds, topics, rows or nothing, and preferences among replies. Nothing that came back is lost.",
)


def _synth(name: str, words: str, about: str) -> None:
    """Add a command that makes rows by one pipeline."""
    usage = f"posttrain synth {name} {words}--local MODEL | --endpoint URL --model NAME -o DIR [--KEY VALUE]..."

    @synth_app.command(name, help=f"{about}\n\n{usage}", context_settings=_OPTIONS_ARE_KEYS)
    def command(
        ctx: typer.Context,
        out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write into, a run folder.")] = None,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Say what will be asked, in requests, tokens and money, and ask nothing."),
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
        help_wanted: Annotated[bool, typer.Option("--help", help="Show this message with all options.")] = False,
    ) -> None:
        from posttrain.lab.one_stage import one_stage, options_of

        if help_wanted:
            typer.echo(ctx.get_help() + "\n\n" + options_of(f"synth {name}"))
            raise typer.Exit
        found = one_stage(f"synth {name}", ctx.args)
        if not dry_run:
            _run_one(found, out, as_json)
            return
        import json

        from posttrain.report import plain, terminal
        from posttrain.synth.estimate import estimate_section

        place = out or Path("out")
        recipe = found.recipe(place)
        with _experiment(recipe, place, stderr=True) as experiment:
            experiment.check_files([found.stage])
        section = estimate_section(recipe.stages[found.stage])  # type: ignore[arg-type]
        if as_json:
            typer.echo(json.dumps(plain.section(section), ensure_ascii=False))
        else:
            _console().print(terminal.section(section), highlight=False)


for _name, (_words, _about) in {
    "self-instruct": (
        "",
        "Grow a pool of tasks out of seeds, with inputs and outputs (Self-Instruct, arXiv:2212.10560).",
    ),
    "alpaca": ("", "Ask a strong teacher for many whole tasks a request (Alpaca)."),
    "ultrachat": (
        "",
        "Let two models, or two roles of one, talk about a tree of topics (UltraChat, arXiv:2305.14233).",
    ),
    "magpie": ("", "Let a local chat model write the user's turn itself, then the reply (MAGPIE, arXiv:2406.08464)."),
    "evolve": (
        "ROWS ",
        "Make the instructions of rows harder or wider, and answer them (Evol-Instruct, arXiv:2304.12244).",
    ),
    "preferences": (
        "ROWS --score.by HOW ",
        "Sample replies to the prompts of rows, score them, and write the pairs that the scores are sure of.",
    ),
}.items():
    _synth(_name, _words, _about)


@app.command()
def chat(
    target: Annotated[
        str,
        typer.Argument(help=_OR_GGUF),
    ],
    base: Annotated[
        str | None, typer.Option("--base", help="Base model of an adapter folder, where it is not the one it names.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this one prompt and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = always the most likely token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample from the most likely tokens of this total probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 512,
    template: Annotated[
        Path | None, typer.Option("--template", help="A Jinja chat template instead of the model's own.")
    ] = None,
) -> None:
    """Talk to a model in the terminal; replies stream. /reset forgets the conversation, /quit ends."""
    from posttrain.generate.engine import Sampling
    from posttrain.lab.chat import converse

    sampling = Sampling(temperature, top_p, max_new_tokens, seed=seed)
    converse(target, base, prompt, system, sampling, template)


@app.command("serve")
def serve_model(
    target: Annotated[str, typer.Argument(metavar="MODEL", help=_OR_GGUF)],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 = any free one, told as a line of JSON when ready.")
    ] = 8000,
    host: Annotated[str, typer.Option(help="Another than loopback needs a key.")] = "127.0.0.1",
    key: Annotated[
        str | None,
        typer.Option(
            envvar="POSTTRAIN_SERVE_KEY", help="What clients must send as their API key. The variable keeps it secret."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Base model of an adapter folder, where it is not the one it names.")
    ] = None,
    template: Template = None,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Replies made at once; others wait their turn.")] = 4,
    with_parent: Annotated[bool, typer.Option("--with-parent", help="End when stdin closes.")] = False,
) -> None:
    """Serve a model as an OpenAI-compatible endpoint: chat, completions, log-probabilities, streaming."""
    from posttrain.lab.serve.process import serve

    serve(target, base, template, host, port, key, slots, with_parent)


@app.command()
def verify(
    target: Annotated[
        str | None, typer.Argument(metavar="[TARGET]", help="Check the forms a model can be exported in. " + _A_MODEL)
    ] = None,
    conversations: Annotated[
        str | None,
        typer.Option("--conversations", help="Rows for the invariants of training: a data file, or a demo asset."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help=f"Whose invariants. {_A_MODEL}")] = None,
    rows: Annotated[int, typer.Option("--rows", min=2, help="How many rows to compute with.")] = 8,
    template: Template = None,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Longer rows are left out.")] = 512,
    row_format: RowFormat = "auto",
    columns: ColumnNames = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Prove the training invariants on your own model and rows, or (TARGET) that a model is the same in every form; exit code 1 if one does not hold."""
    from posttrain.errors import ConfigError

    if target is not None:
        if conversations is not None or model is not None:
            fix = "posttrain verify TARGET, or posttrain verify --conversations FILE --model MODEL"
            raise ConfigError("these are two checks", where="posttrain verify", fix=fix)
        from posttrain.lab.forms import verify_forms

        if not verify_forms(target, template, as_json, _console()):
            raise typer.Exit(1)
        return
    if conversations is None or model is None:
        missing = "--conversations" if conversations is None else "--model"
        fix = "posttrain verify --conversations FILE --model MODEL, or posttrain verify TARGET"
        raise ConfigError(f"{missing} is missing", where="posttrain verify", fix=fix)
    from posttrain.data.config import Source
    from posttrain.lab.options import parse_columns
    from posttrain.lab.verify import verify_model

    source = Source(path=conversations, format=row_format, columns=parse_columns(columns))
    if not verify_model(source, model, rows, template, max_length, as_json, _console()):
        raise typer.Exit(1)


@app.command(
    help="Compare two models on the same prompts. Difference with interval, permutation test, and what could have been found.\n\n"
    "posttrain compare A B FILE [--KEY VALUE]...: one row a model and prompt with scores, or one row a judged pair. Differences are B - A.",
    context_settings=_OPTIONS_ARE_KEYS,
)
def compare(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    help_wanted: Annotated[bool, typer.Option("--help", help="Show this message with all options.")] = False,
) -> None:
    """See the help above."""
    import json

    from posttrain.lab import comparison
    from posttrain.report import terminal

    if help_wanted:
        typer.echo(ctx.get_help() + "\n\n" + comparison.options())
        raise typer.Exit
    settings = comparison.settings_of(ctx.args)
    found = comparison.compare(settings)
    if as_json:
        typer.echo(json.dumps(comparison.compare_json(settings, found), ensure_ascii=False))
    else:
        _console().print(terminal.section(comparison.compare_section(settings, found)), highlight=False)


_one_stage(
    app,
    "export",
    "TARGET --to hf|adapter|gguf|gguf-adapter|ollama",
    "Take a model home: a merged HF folder, a PEFT adapter, a GGUF file for llama.cpp, or a folder for Ollama. "
    "TARGET is a run's train stage (runs/NAME/STAGE), an adapter or model folder, a demo asset or a hub name. DIR must be new.",
    folder="New folder to write into.",
)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors (put it beside yaml-language-server's $schema)."""
    import json

    from posttrain.config import json_schema
    from posttrain.lab.recipe import Recipe

    typer.echo(json.dumps(json_schema(Recipe), indent=2))
