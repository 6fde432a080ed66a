"""The command line: thin verbs. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from posttrain import __version__
from posttrain.errors import InterruptedRunError, PosttrainError

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain.artifacts import RunDir
    from posttrain.lab.engine import Experiment
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
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the run folders.")]
_A_MODEL = "A run's train stage (runs/NAME/STAGE), an adapter or model folder, a demo asset or a hub name."
ColumnNames = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="MAPPING",
        help="Which column is what: '{user: question, assistant: meta.reply}'; also system, messages, chosen, ...",
    ),
]


def main() -> None:
    """Entry point: a posttrain error is one message on stderr and exit code 2; Ctrl-C is 130."""
    warnings.showwarning = _show_warning
    try:
        app()
    except PosttrainError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(130 if isinstance(error, InterruptedRunError) else 2)


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
def run(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Run a recipe: every stage that is not finished yet, in order. Killed? Run it again: it resumes exactly."""
    from posttrain.lab.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with _experiment(loaded, runs / loaded.name) as experiment:
        experiment.execute()
    _show_end(experiment.run)


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
def _experiment(recipe: Recipe, folder: Path, *, stderr: bool = False) -> Iterator[Experiment]:
    """A recipe ready to be run, with progress on the terminal; Ctrl-C is one clear message."""
    from posttrain.artifacts import RunDir
    from posttrain.lab.display import Display
    from posttrain.lab.engine import Experiment

    try:
        with Display(_console(stderr=stderr)) as display:
            yield Experiment(recipe, RunDir(folder), display)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted", where=str(folder), fix="run the same command again: what is finished is kept"
        ) from None


def _show_end(run_dir: RunDir, *, page: bool = True) -> None:
    """The headline numbers of a run, and where to look."""
    from posttrain.stages import KINDS
    from posttrain.stages.page import terminal_summary

    console = _console()
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


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, for example runs/quickstart.")],
) -> None:
    """Write report/index.html, report/report.md and summary.json anew from what a run folder holds."""
    from posttrain.artifacts import RunDir
    from posttrain.errors import RunError
    from posttrain.stages import KINDS
    from posttrain.stages.page import write_report

    if not (run_folder / "recipe.yaml").is_file():
        raise RunError(
            "no recipe.yaml here: this is not a run folder", where=str(run_folder), fix="give a folder below runs/"
        )
    typer.echo(f"Open {write_report(RunDir(run_folder), KINDS)}")


@app.command()
def show(
    conversations: Annotated[
        str, typer.Option("--conversations", help="A data file of any known format, or a demo asset.")
    ],
    model: Annotated[str, typer.Option("--model", help=f"Whose tokenizer and chat template are used. {_A_MODEL}")],
    row: Annotated[int, typer.Option("--row", min=0, help="Which row; 0 is the first.")] = 0,
    template: Annotated[
        Path | None, typer.Option("--template", help="A Jinja chat template instead of the tokenizer's own.")
    ] = None,
    row_format: Annotated[str, typer.Option("--format", help="Row format, where it should not be detected.")] = "auto",
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
    from posttrain.encode import show as row_view
    from posttrain.lab.options import parse_columns
    from posttrain.model.targets import resolve_target

    source = Source(path=conversations, format=row_format, columns=parse_columns(columns), split=split, config=config)
    found = row_at(source, row, resolve_data)
    value = row_view.show_row(found, resolve_target(model).spoken(template).template, number=row)
    if html is not None:
        write_text(html, row_view.as_html(value))
        typer.echo(f"Open {html}", err=True)
    if as_json:
        typer.echo(json.dumps(row_view.as_json(value), ensure_ascii=False))
    else:
        console = _console()
        console.print(row_view.as_terminal(value, colours=console.color_system is not None), soft_wrap=False)
    if value.rejected is not None:
        raise typer.Exit(2)


data_app = typer.Typer(
    name="data",
    help="One step of data engineering on files of any known format; options of a step are its keys in a recipe.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(data_app)
_STEP_CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
OutFolder = Annotated[Path, typer.Option("-o", "--out", help="Folder to write into.")]


def _data_step(kind: str, about: str) -> None:
    """Add ``posttrain data <kind>``."""

    @data_app.command(kind, help=about, context_settings=_STEP_CONTEXT)
    def command(
        ctx: typer.Context,
        out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write into.")] = None,
        row_format: Annotated[
            str, typer.Option("--format", help="Row format, where it should not be detected.")
        ] = "auto",
        columns: ColumnNames = None,
        from_split: SplitOption = None,
        config: ConfigOption = None,
        workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; the result is the same.")] = 1,
        engine: Annotated[str, typer.Option("--engine", help="local, or ray (extra ray).")] = "local",
        seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what is random.")] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="Print ledger and facts as JSON.")] = False,
        help_wanted: Annotated[
            bool, typer.Option("--help", help="Show this message with all options of the step.")
        ] = False,
    ) -> None:
        import json

        from posttrain.errors import ConfigError
        from posttrain.lab import one_stage
        from posttrain.lab.options import parse_columns, split_arguments
        from posttrain.report import terminal

        if help_wanted:
            typer.echo(ctx.get_help() + "\n\n" + one_stage.options_help(kind))
            raise typer.Exit
        files, options = split_arguments(ctx.args)
        if out is None:
            raise ConfigError("no output folder", where=f"posttrain data {kind}", fix="say where to write: -o DIR")
        sources = one_stage.sources_of(files, row_format, parse_columns(columns), from_split, config)
        recipe = one_stage.data_recipe(kind, options, sources, out, seed, workers, engine)
        with _experiment(recipe, out, stderr=as_json) as experiment:
            experiment.execute()
        if as_json:
            typer.echo(json.dumps(one_stage.step_record(kind, out), ensure_ascii=False))
        else:
            _console().print(terminal.section(one_stage.step_section(kind, out)), highlight=False)


for _kind, _about in {
    "filter": "Drop rows by rules: format, length, language, garbled, repetition, template, refusal, harmful, pii, secrets.",
    "dedup": "Drop duplicates and near-duplicates: exact, n-gram, MinHash, SimHash or embeddings, verified pair by pair.",
    "decontaminate": "Find and drop rows that hold prompts of benchmarks (the rule of Tulu 3).",
    "select": "Choose rows by difficulty, IFD, GRAPE, diversity or quality; scores come from posttrain score.",
    "mix": "Decide how much of each source is trained on.",
    "split": "Split into train, validation and test; near-duplicates and equal prompts stay together.",
}.items():
    _data_step(_kind, f"{_about}\n\nposttrain data {_kind} FILES... -o DIR [--KEY VALUE]...")


@data_app.command("profile")
def data_profile(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES...", help="Data files of any known format, or a data stage of a run.")
    ],
    out: OutFolder,
    model: Annotated[
        str | None,
        typer.Option("--model", help=f"Count tokens with this model's tokenizer and chat template. {_A_MODEL}"),
    ] = None,
    row_format: Annotated[str, typer.Option("--format", help="Row format, where it should not be detected.")] = "auto",
    columns: ColumnNames = None,
    split: SplitOption = None,
    config: ConfigOption = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; the result is the same.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print profile.json.")] = False,
) -> None:
    """Describe rows: lengths, turns, languages, sources, what every step removed. A table, profile.html, profile.json."""
    from posttrain.lab.one_stage import sources_of
    from posttrain.lab.options import parse_columns
    from posttrain.lab.profile_command import run_profile

    sources = sources_of(files, row_format, parse_columns(columns), split, config)
    page, tables = run_profile(sources, out, model, workers, _console(stderr=as_json))
    if as_json:
        typer.echo((out / "profile.json").read_text(encoding="utf-8"))
    else:
        _console().print(tables)
        _console().print(f"\nOpen {page}", highlight=False)


@app.command()
def chat(
    target: Annotated[
        str,
        typer.Argument(help=_A_MODEL),
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


@app.command()
def verify(
    conversations: Annotated[
        str, typer.Option("--conversations", help="A data file of any known format, or a demo asset.")
    ],
    model: Annotated[str, typer.Option("--model", help=_A_MODEL)],
    rows: Annotated[int, typer.Option("--rows", min=2, help="How many rows to compute with.")] = 8,
    template: Annotated[
        Path | None, typer.Option("--template", help="A Jinja chat template instead of the tokenizer's own.")
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Longer rows are left out.")] = 512,
    row_format: Annotated[str, typer.Option("--format", help="Row format, where it should not be detected.")] = "auto",
    columns: ColumnNames = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Prove the training invariants on your own model and rows; exit code 1 if one does not hold."""
    from posttrain.data.config import Source
    from posttrain.lab.options import parse_columns
    from posttrain.lab.verify import verify_model

    source = Source(path=conversations, format=row_format, columns=parse_columns(columns))
    if not verify_model(source, model, rows, template, max_length, as_json, _console()):
        raise typer.Exit(1)


@app.command()
def score(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILES...", help="Data files of any known format, rows.parquet or demo assets."),
    ],
    model: Annotated[
        str,
        typer.Option("--model", help=_A_MODEL),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for rows.parquet with the scores, and what is kept.")
    ],
    base: Annotated[
        str | None, typer.Option("--base", help="Base model of an adapter folder, where it is not the one it names.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option("--template", help="A Jinja chat template instead of the model's own.")
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Longer rows stay without scores.")] = 2048,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens computed at once.")] = 4096,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"], typer.Option("--dtype", help="Type of products; auto = the faster one here.")
    ] = "auto",
    row_format: Annotated[str, typer.Option("--format", help="Row format, where it should not be detected.")] = "auto",
    columns: ColumnNames = None,
    split: SplitOption = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Score rows with a model: loss, IFD and mean log-prob of the answers. Killed? Run it again: it goes on."""
    import json

    from posttrain.artifacts import RunDir, read_json
    from posttrain.lab.one_stage import score_recipe, sources_of
    from posttrain.lab.options import parse_columns
    from posttrain.report import terminal
    from posttrain.stages.score import ScoreStage

    sources = sources_of(files, row_format, parse_columns(columns), split, config)
    score_keys = {
        "model": model,
        "base": base,
        "template": None if template is None else str(template),
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        "device": device,
        "dtype": dtype,
    }
    with _experiment(score_recipe(sources, score_keys, out), out, stderr=as_json) as experiment:
        experiment.execute()
    stage = RunDir(out).stage("score")
    if as_json:
        typer.echo(json.dumps(read_json(stage.file("facts.json")), ensure_ascii=False))
    else:
        _console().print(terminal.section(ScoreStage.section(stage)), highlight=False)
        _console().print(f"\nRows are in {stage.file('rows', 'train.parquet')}", highlight=False)


@app.command(
    "eval",
    epilog="Benchmarks with prompts of their own: pairwise, safety, diversity. With your file: mt_bench, alpaca_eval, arena_hard, ifeval, "
    "gsm8k, overlap. What each measures and its keys: docs/benchmarks.md",
)
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODELS...",
            help="runs/NAME/STAGE, a model or adapter folder, an asset or a hub name; NAME=TARGET names it. The first is the baseline.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder; its report is written to report/index.html.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            help="BENCHMARK=PATH, as gsm8k=test.jsonl, or BENCHMARK alone where it has prompts of its own; may be repeated.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", help="endpoint=URL,model=NAME, local=TARGET, reward=TARGET, gguf=FILE, or a YAML file (a panel)."
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="Show and check replies to builtin prompts, or to those of a YAML file."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A key of an eval stage, or BENCHMARK.KEY=VALUE, as gsm8k.max_prompts=50.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of draws and resamples.")] = 0,
) -> None:
    """Run benchmarks on models, with judges where they need one, and write one report. Killed? Run it again: it goes on."""
    from posttrain.lab.eval_command import EvalCommand, eval_recipe

    command = EvalCommand(
        models=tuple(models),
        out=out,
        benchmarks=tuple(benchmark or ()),
        judge=judge,
        prompts=prompts,
        settings=tuple(setting or ()),
        seed=seed,
    )
    with _experiment(eval_recipe(command), out) as experiment:
        experiment.execute()
    _show_end(experiment.run)


@app.command()
def arena(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Judged pairs: JSON Lines, JSON, CSV or Parquet, one row a comparison."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for ratings.json and arena.html.")] = Path("arena"),
    method: Annotated[Literal["bt", "elo"], typer.Option("--method", help="Bradley-Terry or online Elo.")] = "bt",
    interval: Annotated[
        Literal["sandwich", "bootstrap"] | None,
        typer.Option(
            "--interval", help="Kind of interval; sandwich by default, bootstrap for Elo.", show_default=False
        ),
    ] = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", metavar="MODEL=1000", help="A model whose rating is given.")
    ] = None,
    style: Annotated[
        bool, typer.Option("--style", help="Rate at equal style, from the columns tokens_a, tokens_b, headers_a, ...")
    ] = False,
    style_columns: Annotated[
        str | None,
        typer.Option("--style-columns", help="As --style, with these features instead of tokens,headers,lists,bold."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Column (the prompt, say) whose equal values are not independent.")
    ] = None,
    model_a: Annotated[str, typer.Option("--model-a", help="Column of the first model.")] = "model_a",
    model_b: Annotated[str, typer.Option("--model-b", help="Column of the second model.")] = "model_b",
    winner: Annotated[str, typer.Option("--winner", help="Column of the winner: model_a, model_b, tie.")] = "winner",
    weight: Annotated[str | None, typer.Option("--weight", help="Column of the rows' weights.")] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the intervals.")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print ratings.json.")] = False,
) -> None:
    """Rate models from judged pairs. Prints a table with intervals; writes ratings.json, and arena.html with the win matrix."""
    from posttrain.lab import arena as rating

    names = style_columns if style_columns is not None else rating.ARENA_STYLE if style else ""
    command = rating.ArenaCommand(
        file=file,
        out=out,
        method=method,
        interval=interval,
        anchor=None if anchor is None else rating.parse_anchor(anchor),
        style=tuple(name.strip() for name in names.split(",") if name.strip()),
        cluster=cluster,
        model_a=model_a,
        model_b=model_b,
        winner=winner,
        weight=weight,
        confidence=confidence,
    )
    facts = rating.run_arena(command)
    if as_json:
        typer.echo((out / "ratings.json").read_text(encoding="utf-8"), nl=False)
    else:
        _console().print(rating.arena_summary(facts, out), highlight=False)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model named in the file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one; differences are B - A.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="One row a model and prompt with scores, or one row a judged pair.")
    ],
    measures: Annotated[
        list[str] | None,
        typer.Option("--measure", help="Column with numbers or booleans; may be repeated.  [default: score]"),
    ] = None,
    item: Annotated[
        str | None, typer.Option("--item", help="Column of the prompt.  [default: prompt_id, question_id, item or id]")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Column whose equal values mark prompts that are not independent.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Column of the model.  [default: model]")] = None,
    model_a: Annotated[str | None, typer.Option("--model-a", help="Of judged pairs.  [default: model_a]")] = None,
    model_b: Annotated[str | None, typer.Option("--model-b", help="Of judged pairs.  [default: model_b]")] = None,
    winner: Annotated[str | None, typer.Option("--winner", help="Of judged pairs.  [default: winner]")] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option("--resamples", help="Bootstrap resamples and drawn permutations.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare two models on the same prompts. Difference with interval, permutation test, and what could have been found."""
    import json

    from posttrain.lab import comparison as comparing
    from posttrain.report import terminal

    command = comparing.CompareCommand(
        a=a,
        b=b,
        file=file,
        measures=tuple(measures or ()),
        item=item,
        cluster=cluster,
        model=model,
        model_a=model_a,
        model_b=model_b,
        winner=winner,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    found = comparing.compare(command)
    if as_json:
        typer.echo(json.dumps(comparing.compare_json(command, found), ensure_ascii=False))
    else:
        _console().print(terminal.section(comparing.compare_section(command, found)), highlight=False)


judge_app = typer.Typer(
    name="judge",
    help="Let a model judge replies: pairs or single ones, with its bias measured; or measure the judge against labels.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(judge_app)


def _judge_verb(verb: Literal["pairs", "single", "calibrate"], about: str) -> None:
    """Add ``posttrain judge <verb>``."""

    @judge_app.command(verb, help=about, context_settings=_STEP_CONTEXT)
    def command(
        ctx: typer.Context,
        out: Annotated[
            Path | None, typer.Option("-o", "--out", help="Folder for verdicts.jsonl and summary.json.")
        ] = None,
        kind: Annotated[
            str,
            typer.Option("--kind", help="pair, five or binary; for single replies single or rubric; or a YAML file."),
        ] = "single" if verb == "single" else "pair",
        panel: Annotated[
            Path | None, typer.Option("--panel", help="YAML file with several judges; the majority decides.")
        ] = None,
        cache: Annotated[
            Path | None, typer.Option("--cache", help="Request cache; default: requests.sqlite in the folder.")
        ] = None,
        check: Annotated[
            bool, typer.Option("--check/--no-check", help="Try a judge of a YAML file on three calls first.")
        ] = True,
        as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
        help_wanted: Annotated[bool, typer.Option("--help", help="Show this message with all options.")] = False,
    ) -> None:
        from posttrain.artifacts import RunDir
        from posttrain.errors import ConfigError
        from posttrain.lab import judging
        from posttrain.report import terminal
        from posttrain.stages.judge import JudgeStage

        if help_wanted:
            typer.echo(ctx.get_help() + "\n\n" + judging.options_help())
            raise typer.Exit
        if out is None:
            raise ConfigError("no output folder", where=f"posttrain judge {verb}", fix="say where to write: -o DIR")
        recipe = judging.judge_recipe(verb, ctx.args, panel, out, kind, cache, check)
        with _experiment(recipe, out, stderr=as_json) as experiment:
            experiment.execute()
        stage = RunDir(out).stage(verb)
        if as_json:
            typer.echo(stage.file("summary.json").read_text(encoding="utf-8"), nl=False)
        else:
            console = _console()
            console.print(terminal.section(JudgeStage.section(stage)), highlight=False)
            files = f"Every judgment is in {stage.file('verdicts.jsonl')}, all numbers in {stage.file('summary.json')}"
            console.print(f"\n{files}", markup=False, highlight=False)


_JUDGE_VERBS: dict[Literal["pairs", "single", "calibrate"], str] = {
    "pairs": "Which of two replies is better: both orders, win rates with intervals, and the judge's bias.",
    "single": "Rate single replies from 1 to 10, or from 1 to 5 by your own criteria.",
    "calibrate": "Judge labelled pairs or rated replies: how far the judge agrees with people, and whether it is good enough.",
}
for _verb, _about in _JUDGE_VERBS.items():
    _judge_verb(_verb, f"{_about}\n\nposttrain judge {_verb} FILE -o DIR [--KEY VALUE]...")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors (put it beside yaml-language-server's $schema)."""
    import json

    from posttrain.config import json_schema
    from posttrain.lab.recipe import Recipe

    typer.echo(json.dumps(json_schema(Recipe), indent=2))
