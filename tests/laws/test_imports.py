"""Laws of the house: which room may know which, who loads torch, and what no module may do."""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import json
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "posttrain"
MODULES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package as Python reads it; a second's work, so not for whoever only collects tests."""
    return {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in MODULES.items()}


FLOORS = [
    {"types", "errors", "holder"},
    {"table", "config", "artifacts", "assets", "parallel"},
    {"references"},
    {"report", "stats", "encode"},
    {"data", "objectives", "model"},
    {"generate", "plan"},
    {"judge"},
    {"tasks"},
    {"synth", "train"},
    {"online"},
    {"doctor", "sweep"},
    {"stages"},
    {"lab"},
    {"board"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SAME_FLOOR = {(room, known) for room in ("config", "assets", "encode", "artifacts") for known in ("table", "artifacts")}
SAME_FLOOR |= {("report", "stats")}
NARROW = {
    "types": set(),
    "errors": set(),
    "objectives": {"types", "errors", "references"},
    "report": {"types", "errors", "table", "artifacts", "config", "stats.intervals"},
}
"""Rooms that may know less than their floor allows."""
FOREIGN = {"transformers": {"model", "encode"}, "peft": {"model"}, "bitsandbytes": {"model"}}


def room_of(module: str) -> str:
    return module.removesuffix(".py").split("/")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module a tree imports, wherever it does; names taken from the package itself count as modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "posttrain":
                yield from (f"posttrain.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def own_imports(module: str) -> set[str]:
    """What a module imports of the package, without the leading ``posttrain.``."""
    names = {name.removeprefix("posttrain.") for name in imported(trees()[module]) if name.startswith("posttrain.")}
    return {name for name in names if not name.startswith("__")}


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in MODULES} - {"__init__"} <= FLOOR.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__.py"])
def test_imports_point_down(module: str) -> None:
    room = room_of(module)
    for target in own_imports(module):
        other = target.split(".")[0]
        below = FLOOR[other] < FLOOR[room]
        assert other == room or below or (room, other) in SAME_FLOOR, (
            f"{module} imports {target}, which is not below it"
        )
        if room in NARROW and other != room:
            assert any(target == known or target.startswith(f"{known}.") for known in NARROW[room]), (
                f"{module}: {target}"
            )


def imported_modules(module: str) -> set[str]:
    """The files of the package that a module imports, also within functions and for types alone."""
    found = set()
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "posttrain":
            base = str(node.module).replace(".", "/").removeprefix("posttrain").lstrip("/")
            for alias in node.names:
                inside = f"{base}/{alias.name}".lstrip("/")
                names = (f"{inside}.py", f"{inside}/__init__.py", f"{base}.py", f"{base}/__init__.py".lstrip("/"))
                found.add(next(name for name in names if name in MODULES))
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {module: imported_modules(module) for module in MODULES}
    while free := [module for module, known in left.items() if not known & left.keys()]:
        for module in free:
            del left[module]
    assert sorted(left) == [], "these stand in a circle, or above one"


def test_the_law_sees_imports_in_functions_and_upwards() -> None:
    tree = ast.parse("def f():\n    from posttrain.cli import app\n    import torch\nfrom posttrain import assets")
    assert set(imported(tree)) == {"posttrain.cli", "torch", "posttrain.assets"}
    assert FLOOR["cli"] > FLOOR["data"]


@pytest.mark.parametrize(("package", "rooms"), FOREIGN.items())
def test_third_parties_are_touched_in_one_place(package: str, rooms: set[str]) -> None:
    users = {room_of(m) for m, tree in trees().items() for name in imported(tree) if name.split(".")[0] == package}
    assert users == rooms


def test_only_the_report_kernel_formats_for_a_terminal() -> None:
    """The others know the console that they print its values on."""
    others = {module: tree for module, tree in trees().items() if room_of(module) != "report"}
    known = {name for tree in others.values() for name in imported(tree) if name.split(".")[0] == "rich"}
    assert known == {"rich.console"}


LOADS_TORCH = {
    "tasks.held_out.likelihood",
    *(
        "generate.decode",
        "generate.gguf_replies",
        "generate.growing",
        "generate.local",
        "generate.shared",
        "generate.voices",
        "generate.ways",
    ),
    *("lab.forms", "lab.verify"),
    *("model.agreement", "model.gguf.architectures", "model.gguf.file"),
    *("model.adapters", "model.attention", "model.export", "model.forward"),
    *(
        "model.fused",
        "model.hardware",
        "model.kv_cache",
        "model.lengths",
        "model.load",
        "model.outline",
        "model.packed_kernels",
        "model.peft_parts",
    ),
    *(
        "model.logprobs",
        "model.own",
        "model.prepacked_weights",
        "model.proof",
        "model.quantise",
        "model.score",
        "model.second_adapter",
        "model.shared",
        "model.sharded",
    ),
    *(
        "train.checkpoint",
        "train.divided_checkpoint",
        "train.loop",
        "train.measured",
        "train.optimizer",
        "train.quantisation",
    ),
    *("train.reference", "train.step_trace", "train.tasks"),
    *("parallel.joined", "parallel.launch"),
    *("online.critic", "online.loop", "online.rollout", "online.server", "online.units"),
}
"""The modules that compute with tensors. Everything else is there for a machine without torch."""
HEAVY = ["torch", "transformers", "peft", "datasets", "huggingface_hub", "matplotlib", "sklearn"]


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_only_modules_that_compute_with_tensors_load_torch() -> None:
    names = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in MODULES]
    assert set(names) > LOADS_TORCH
    done = fresh(
        "import importlib, json, sys\n"
        "found = {}\n"
        f"for name in {[name for name in names if name not in LOADS_TORCH | {'__init__'}]!r}:\n"
        "    importlib.import_module('posttrain.' + name)\n"
        f"    for heavy in {HEAVY!r}:\n"
        "        if heavy in sys.modules: found.setdefault(heavy, name)\n"
        "print(json.dumps(found))"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}, "loaded first by this module"


HELP = "import sys; sys.argv = ['posttrain', *{}]\nfrom posttrain.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code\n"
LIGHT = {
    "--help": ["torch", "transformers", "peft", "polars"],
    "run --help": ["torch", "transformers", "peft", "polars"],
    "data --help": ["torch", "transformers", "peft", "polars"],
    "plan --help": ["torch", "transformers", "peft", "polars"],
    "schema": ["torch", "transformers", "peft"],
    "data dedup --help": ["torch", "transformers", "peft", "scipy.special", "scipy.sparse"],
}
"""What a command does not load. In one process, in this order: what one of them may load stays loaded for the next."""


def test_the_command_line_answers_without_torch() -> None:
    asked = (
        HELP.format(line.split()) + f"assert not set({without!r}) & set(sys.modules), {line!r}\n"
        for line, without in LIGHT.items()
    )
    done = fresh("".join(asked))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.demo_model
def test_a_row_is_shown_without_torch_which_runs_when_it_is_used(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    arguments = ["show", "--conversations", str(tmp_path / "rows.jsonl"), "--model", str(tiny_model), "--json"]
    done = fresh(
        HELP.format(arguments) + "assert 'torch._C' not in sys.modules\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    assert list(pool.map(lambda n: sys.modules['torch'].ones(n).sum().item(), range(4))) == [0, 1, 2, 3]\n"
        "import torch.nn.functional as F\n"
        "assert F.relu(sys.modules['torch'].ones(1)) == 1"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"]


def test_help_takes_less_than_half_a_second_of_cpu_time() -> None:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "posttrain", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(3)) < 0.5


def test_no_code_asks_which_kind_of_stage_it_has() -> None:
    asked = re.compile(r"isinstance\([^)]*(?<!Names)Stage\b|\bcase (?!Names)\w+Stage\(")
    assert [module for module, path in MODULES.items() if asked.search(path.read_text(encoding="utf-8"))] == []


def test_an_objective_is_named_in_its_own_file_only() -> None:
    """By its class or its name; ``reward`` is also a kind of judge, so there the class alone counts."""
    from posttrain.objectives import Objective

    kinds = get_args(get_args(Objective)[0])
    own = {kind.__module__.removeprefix("posttrain.").replace(".", "/") + ".py": kind for kind in kinds}
    for module, tree in trees().items():
        if module == "objectives/__init__.py" or module.startswith("report/"):
            continue
        others = [kind for kind in kinds if kind is not own.get(module)]
        forbidden = {kind.__name__ for kind in others} | {kind().name for kind in others} - {"reward"}
        found = {text for node in ast.walk(tree) for text in _words(node)}
        assert found & forbidden == set(), module


def _words(node: ast.AST) -> list[str]:
    """Names and whole texts of a node."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
            return [name]
        case ast.Constant(value=str(text)):
            return [text]
        case _:
            return []


def configuration_fields() -> list[tuple[str, str]]:
    from posttrain.config import sections
    from posttrain.lab.recipe import Recipe

    return [(section.path or "recipe", key.name) for section in sections(Recipe) for key in section.keys]


def test_every_configuration_field_is_read_by_some_code() -> None:
    read: set[str] = set()
    for module, tree in trees().items():
        if module.endswith("config.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    fields = configuration_fields()
    assert len(fields) > 40
    assert [f"{section}: {name}" for section, name in fields if name not in read] == []


WORDS = {
    "ArenaStage.anchor",
    "ArenaStage.style_columns",
    "ArenaStage.cluster",
    "ArenaStage.model_a",
    "ArenaStage.model_b",
    "ArenaStage.winner",
    "ArenaStage.weight",
    *(
        "Recipe.name",
        "ReportStage.title",
        "TrainStage.device",
        "ScoreStage.device",
        "EvalStage.device",
        "LoraAdapter.targets",
    ),
    *("Source.format", "Source.columns", "Source.name", "Source.split", "Source.config"),
    *("Benchmark.name", "Benchmark.columns", "Benchmark.split", "Benchmark.config"),
    *(
        "LanguageFilter.keep",
        "Harmful.extra_terms",
        "Harmful.score",
        "DedupStep.prefer",
        "SplitStep.topic",
        "MixStep.leave_out",
    ),
    *("SelectStep.scored_by", "SelectStep.labels", "SelectStep.compare", "Medium.signal", "Diversity.order_by"),
    *("Deita.complexity", "Deita.quality", "FewButGood.order_by"),
    *(
        "DedupStep.encoder",
        "EmbeddingTier.encoder",
        "EmbeddingDistance.encoder",
        "DiversityBenchmark.encoder",
    ),  # of a table
    *("SafetyBenchmark.language", "SafetyBenchmark.text_column", "SafetyBenchmark.type_column"),
    *("JudgeStage.cache", "JudgeSource.endpoint", "JudgeSource.model", "JudgeSource.api_key_env", "Plan.criteria"),
    *(
        "Budget.shared",
        "JudgeConfig.shared_budget",
        "ModelSource.endpoint",
        "ModelSource.model",
        "ModelSource.api_key_env",
    ),
    *("OnlineStage.suffix", "OnlineStage.device", "FunctionScore.function", "TaskScore.measure"),
    *("ServerSampler.url", "ServerSampler.api_key_env", "ServerSampler.adapter_folder"),  # a folder that is written
    *("ScoredByTask.measure", "Check.kind", "Preferences.suffix", "SweepStage.metric", "SweepStage.model"),
}
"""Texts of a configuration that name no file, model, rows or stage."""


def test_a_configuration_names_nothing_without_a_marker() -> None:
    from posttrain.config import configurations, fields_of, shape_of
    from posttrain.lab.recipe import Recipe
    from posttrain.references import Marker

    def unmarked(annotation: Any) -> bool:
        shape = shape_of(annotation)
        inner = shape.members or (get_args(shape.base) if get_origin(shape.base) in (tuple, dict) else ())
        if shape.base is str:
            return not any(isinstance(limit, Marker) for limit in shape.limits)
        return any(unmarked(part) for part in (inner[-1:] if get_origin(shape.base) is dict else inner))

    fields = [(owner, *field) for owner in configurations(Recipe) for field in fields_of(owner).items()]
    found = {f"{owner.__name__}.{name}" for owner, name, annotation in fields if unmarked(annotation)}
    assert found == WORDS


TWINS = {("generate/cost.py:Caps", "generate/cost.py:Spending")}
"""Pairs of records with the same fields and another meaning: what may be spent, and what was."""


def test_a_record_is_declared_once() -> None:
    """No two dataclasses or named tuples share more than 80% of their fields, configurations excepted."""
    from posttrain.config import configurations
    from posttrain.lab.recipe import Recipe

    settings = {owner.__name__ for owner in configurations(Recipe)}
    fields: dict[str, set[str]] = {}
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name not in settings:
                record = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
                record = record or any(ast.unparse(base) == "NamedTuple" for base in node.bases)
                own = [
                    a for a in node.body if isinstance(a, ast.AnnAssign) and "ClassVar" not in ast.unparse(a.annotation)
                ]
                names = {a.target.id for a in own if isinstance(a.target, ast.Name)}
                if record and len(names) > 2:
                    fields[f"{module}:{node.name}"] = names
    pairs = itertools.combinations(fields.items(), 2)
    alike = {(a, b) for (a, one), (b, other) in pairs if len(one & other) > 0.8 * max(len(one), len(other))}
    assert alike == TWINS


def test_configurations_are_frozen() -> None:
    for module in (m for m in MODULES if m.endswith("/config.py")):
        name = f"posttrain.{module.removesuffix('.py').replace('/', '.')}"
        loaded = __import__(name, fromlist=["_"])
        own = [v for v in vars(loaded).values() if isinstance(v, type) and v.__module__ == name]
        assert own
        for kind in own:
            assert dataclasses.is_dataclass(kind)
            assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]


def test_no_module_is_a_drawer() -> None:
    drawers = re.compile(r"(^|_)(utils?|helpers?|common|misc)(_|$)")
    parts = {part for module in MODULES for part in module.removesuffix(".py").split("/")}
    assert [part for part in parts if drawers.search(part)] == []


@pytest.mark.parametrize("module", list(MODULES))
def test_no_exception_is_swallowed(module: str) -> None:
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}:{node.lineno}: bare except"
            silent = all(isinstance(s, ast.Pass) or _is_ellipsis(s) for s in node.body)
            assert not silent, f"{module}:{node.lineno}: swallowed"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "suppress":
            named = {arg.id for arg in node.args if isinstance(arg, ast.Name)}
            assert not named & {"Exception", "BaseException"}, f"{module}:{node.lineno}: suppresses everything"


def _is_ellipsis(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and statement.value.value is ...
    )


def test_no_print_and_no_path_of_a_machine() -> None:
    for module, path in MODULES.items():
        calls = [n for n in ast.walk(trees()[module]) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert not any(call.func.id == "print" for call in calls if isinstance(call.func, ast.Name)), module
        assert not re.search(r"/(home|root|work|tmp/w)/", path.read_text(encoding="utf-8")), module


def test_sources_are_ascii_but_for_content() -> None:
    """Comments and names are ASCII; foreign text stands in strings only."""
    for module, path in MODULES.items():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            comment = line.partition("  # ")[2] if not line.lstrip().startswith("#") else line
            assert comment.isascii(), f"{module}:{number}"


def test_every_file_that_is_no_module_is_installed_too() -> None:
    declared = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert found == {path for pattern in declared["posttrain"] for path in SOURCE.glob(pattern)}
