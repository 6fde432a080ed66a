"""What a command of one data step ends with: its ledger and what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.artifacts import Ledger, read_json
from posttrain.data.rows import row_kind_of
from posttrain.report import values as report
from posttrain.report.words import reasons
from posttrain.types import RowKind

SHOWN_COUNTS = 12


def step_folder(kind: str, out: Path) -> Path:
    """The folder of a step in the run of its command."""
    return out / kind / ("mix" if kind == "mix" else f"steps/01-{kind}")


def step_record(kind: str, out: Path) -> dict[str, Any]:
    """Ledger and facts of a command's step."""
    return {
        "ledger": Ledger.read(out / kind / "ledger.json").as_dict(),
        "facts": read_json(step_folder(kind, out) / "facts.json"),
    }


def step_section(kind: str, out: Path) -> report.Section:
    """The account of a command: every step with what came in, was dropped and why, and is left; then what the step found."""
    record = step_record(kind, out)
    # nothing is held out but by a split
    lines = [line for line in record["ledger"]["steps"] if line["name"] != "split" or kind == "split"]
    account = report.table_of(
        "",
        lines,
        ("step", lambda line: line["name"]),
        ("rows in", lambda line: report.Number(line["rows_in"], "count")),
        ("dropped", lambda line: reasons(line["dropped"]) or "-"),
        ("rows out", lambda line: report.Number(line["rows_out"], "count")),
    )
    facts = record["facts"]
    plain = tuple((key, _number(value)) for key, value in facts.items() if isinstance(value, str | int | float))
    counts = tuple(
        (f"{key}: {name}", _number(value))
        for key, inner in facts.items()
        if isinstance(inner, Mapping) and len(inner) <= SHOWN_COUNTS
        for name, value in inner.items()
        if isinstance(value, str | int | float)
    )
    named = [
        _named_table(key, things)
        for key, things in facts.items()
        if isinstance(things, list) and things and all(isinstance(t, Mapping) and "name" in t for t in things)
    ]
    warnings = tuple(map(str, facts.get("warnings", ())))
    rows_file = out / kind / "rows" / "train.parquet"
    where = (
        f"Rows ({_KINDS[row_kind_of(rows_file)]}) are in {rows_file}; {step_folder(kind, out) / 'rejects.parquet'} lists"
        " what was dropped, facts.json beside it says how it was decided"
    )
    blocks: list[report.Block] = [
        account,
        report.Facts((*plain, *counts)),
        *named,
        *([report.Notice("warning", "warning", warnings)] if warnings else []),
        report.Text(where),
    ]
    return report.Section(f"posttrain data {kind}", kind, tuple(blocks))


def _number(value: str | int | float) -> report.Cell:
    """A fact as YAML writes it, floats with the digits that say something: facts.json has them all."""
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else value
    return report.Number(value, "count") if isinstance(value, int) else f"{value:.4g}"


def _named_table(key: str, things: Sequence[Mapping[str, Any]]) -> report.Table:
    """A table of named things with counts, such as benchmarks and their prompts."""
    names = [name for name, value in things[0].items() if isinstance(value, int)]
    rows: tuple[tuple[report.Cell, ...], ...] = tuple(
        (str(t["name"]), *(report.Number(t[name], "count") for name in names)) for t in things
    )
    return report.Table(key, ("", *(name.replace("_", " ") for name in names)), rows)


_KINDS: dict[RowKind | None, str] = {
    "conversations": "conversations",
    "pairs": "pairs of replies",
    "feedback": "judged replies",
    "prompts": "prompts without replies",
    None: "none",
}
