"""How the steps before made rows what they are: what each dropped, the clusters of duplicates, the table of benchmarks.

Read from the folders of a data stage or of one step; of the rows only excerpts of a few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from posttrain.artifacts import read_json
from posttrain.data import profile_records as records
from posttrain.table import grouped

EXAMPLES = 3
"""Removed rows shown for each reason of each step."""
CLUSTER_EXAMPLES, CLUSTER_MEMBERS = 6, 4
EXCERPT = 400
"""Characters shown of a turn."""


class ChainFacts(NamedTuple):
    """What a profile says of the steps before."""

    funnel: tuple[records.FunnelLine, ...] = ()
    removed: tuple[records.Removed, ...] = ()
    clusters: records.Clusters | None = None
    contamination: records.Contamination | None = None


def chain_facts(chain: Path | None) -> ChainFacts:
    """The facts of the folder of a data stage or of one step; of None nothing.

    Of two steps that leave clusters or benchmarks the later one counts: it is about what is left.
    """
    if chain is None:
        return ChainFacts()
    steps = chain_steps(chain)
    removed = [entry for label, folder in (*steps, ("mix", chain / "mix")) for entry in _removed(label, folder)]
    clusters = [folder for _, folder in steps if (folder / "clusters.parquet").exists()]
    benchmarks = [folder / "benchmarks.parquet" for _, folder in steps if (folder / "benchmarks.parquet").exists()]
    tested = pl.read_parquet(benchmarks[-1]) if benchmarks else None
    return ChainFacts(
        funnel(chain, steps),
        (*_unread(chain), *removed),
        _clusters(clusters[-1]) if clusters else None,
        records.Contamination(tuple(tested.columns), tuple(tested.to_dicts())) if tested is not None else None,
    )


def _steps_of(ledger: Path) -> list[dict[str, Any]]:
    return read_json(ledger)["steps"] if ledger.exists() else []


def chain_steps(chain: Path) -> list[tuple[str, Path]]:
    """(name, folder) of the finished steps of a data stage (``steps/01-filter``), or of the one step whose folder it is."""
    folders = sorted(path.parent for path in (chain / "steps").glob("*/ledger.json"))
    if folders:
        return [(folder.name, folder) for folder in folders]
    return [(step["name"], chain) for step in _steps_of(chain / "ledger.json")[-1:]]


def funnel(chain: Path, steps: Sequence[tuple[str, Path]]) -> tuple[records.FunnelLine, ...]:
    """One line a step, in order: rows in and out, and what was dropped.

    The stage's own ledger comes first (reading, formats, exact duplicates) and last (held-out rows, the mix of the others);
    the lines of its chain of steps stand between, once each.
    """
    inner = [(label, line) for label, folder in steps if folder != chain for line in _steps_of(folder / "ledger.json")]
    names = {line["name"] for _, line in inner}
    outer = [(None, line) for line in _steps_of(chain / "ledger.json") if line["name"] not in names]
    last = [one for one in outer if one[1]["name"] in ("split", "mix")]
    lines = [*(one for one in outer if one not in last), *inner, *last]
    start = lines[0][1]["rows_in"] if lines else 0
    return tuple(
        records.FunnelLine(
            step=line["name"],
            **{key: line[key] for key in ("rows_in", "added", "rows_out", "dropped", "notes")},
            kept_share=line["rows_out"] / (line["rows_in"] + line["added"]) if line["rows_in"] else None,
            share_of_start=line["rows_out"] / start if start else None,
            folder=label,
        )
        for label, line in lines
    )


def _unread(chain: Path) -> list[records.Removed]:
    """What the stage itself dropped (unreadable, of no format, exact duplicates): its ledger keeps place and detail, no text."""
    path = chain / "ledger.json"
    found = grouped(
        ((reject["step"], reject["reason"]), records.RemovedExample(reject["file"], reject["line"], reject["detail"]))
        for reject in (read_json(path)["rejects"] if path.exists() else ())
    )
    return [records.Removed(*key, len(examples), tuple(examples[:EXAMPLES])) for key, examples in found.items()]


def _removed(label: str, folder: Path) -> list[records.Removed]:
    """Every reason of a step with its count and a few rows: those with the smallest content ids, whatever the order."""
    path = folder / "rejects.parquet"
    if not path.exists():
        return []
    frame = pl.scan_parquet(path, glob=False, row_index_name="place")
    places = frame.select("place", "id", "reason", "file", "line").collect().sort("id", "file", "line")
    counts = places.group_by("reason").len().sort(["len", "reason"], descending=[True, False])
    chosen = places.group_by("reason", maintain_order=True).head(EXAMPLES)["place"].to_list()
    examples: dict[str, list[records.RemovedExample]] = {}
    for row in frame.filter(pl.col("place").is_in(chosen)).collect().sort("id", "file", "line").iter_rows(named=True):
        prompt, reply = _excerpts(row["messages"])
        about = {key: row[key] for key in ("file", "line", "detail", "id", "twin")}
        examples.setdefault(row["reason"], []).append(records.RemovedExample(**about, prompt=prompt, reply=reply))
    return [records.Removed(label, reason, count, tuple(examples[reason])) for reason, count in counts.iter_rows()]


def _excerpts(turns: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """The beginnings of the first user turn and of the first assistant turn."""
    texts = [next((turn["content"] for turn in turns if turn["role"] == role), None) for role in ("user", "assistant")]
    user, assistant = (
        text if text is None or len(text) <= EXCERPT else f"{text[:EXCERPT].rstrip()} ..." for text in texts
    )
    return user, assistant


def _clusters(folder: Path) -> records.Clusters:
    """How many clusters of near-duplicates there are, how large, and a few with their texts: the largest and the least alike."""
    table = pl.read_parquet(folder / "clusters.parquet", columns=["cluster", "id", "similarity", "kept"])
    clusters = (
        table.group_by("cluster")
        .agg(pl.len().alias("size"), pl.col("similarity").min().alias("least"))
        .filter(pl.col("size") > 1)
    )
    if not len(clusters):
        return records.Clusters(0, 0, 0, (), ())
    sizes = clusters.group_by("size").len().sort("size")
    half = CLUSTER_EXAMPLES // 2
    largest = clusters.sort(["size", "cluster"], descending=[True, False]).head(half)
    least = clusters.join(largest, on="cluster", how="anti").sort("least", "cluster").head(CLUSTER_EXAMPLES - half)
    chosen = pl.concat([largest, least]).select("cluster", "size")
    members = table.filter(pl.col("cluster").is_in(chosen["cluster"].to_list())).sort(
        ["cluster", "kept", "similarity", "id"], descending=[False, True, True, False]
    )
    members = members.group_by("cluster", maintain_order=True).head(CLUSTER_MEMBERS)
    texts = _texts(folder, members["id"].to_list())
    examples = []
    for name, size in chosen.iter_rows():
        alike = members.filter(pl.col("cluster") == name).select("id", "similarity", "kept")
        shown = [
            records.ClusterMember(row_id, similarity, kept, *texts.get(row_id, (None, None)))
            for row_id, similarity, kept in alike.iter_rows()
        ]
        examples.append(records.Cluster(name, size, tuple(shown)))
    return records.Clusters(
        clusters=len(clusters),
        rows=int(clusters["size"].sum()),
        dropped=int((~table["kept"]).sum()),
        sizes=tuple(records.ClusterSize(size, count) for size, count in sizes.iter_rows()),
        examples=tuple(examples),
    )


def _texts(folder: Path, ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """Excerpts of the rows with these ids, kept or dropped by the step."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for path in (folder / "rows.parquet", folder / "rejects.parquet"):
        if path.exists():
            wanted = pl.scan_parquet(path, glob=False).filter(pl.col("id").is_in(ids)).select("id", "messages")
            found |= {row_id: _excerpts(turns) for row_id, turns in wanted.collect().iter_rows()}
    return found
