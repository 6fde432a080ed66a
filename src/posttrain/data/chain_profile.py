"""How the steps before made rows what they are: what each dropped, the clusters of duplicates, the table of benchmarks.

Read from the folders of a data stage or of one step; of the rows only excerpts of a few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

from posttrain.artifacts import read_json
from posttrain.data.profile_records import (
    Cluster,
    ClusterMember,
    Clusters,
    ClusterSize,
    Contamination,
    FunnelLine,
    Removed,
    RemovedExample,
)

T = TypeVar("T")

EXAMPLES = 3
"""Removed rows shown for each reason of each step."""
CLUSTER_EXAMPLES, CLUSTER_MEMBERS = 6, 4
EXCERPT = 400
"""Characters shown of a turn."""


class ChainFacts(NamedTuple):
    """What a profile says of the steps before."""

    funnel: tuple[FunnelLine, ...] = ()
    removed: tuple[Removed, ...] = ()
    clusters: Clusters | None = None
    contamination: Contamination | None = None


def chain_facts(chain: Path | None) -> ChainFacts:
    """The facts of the folder of a data stage or of one step; of None nothing."""
    if chain is None:
        return ChainFacts()
    steps = chain_steps(chain)
    removed = [entry for label, folder in (*steps, ("mix", chain / "mix")) for entry in _removed(label, folder)]
    return ChainFacts(
        funnel(chain, steps),
        (*_unread(chain), *removed),
        _last(_clusters(folder) for _, folder in steps),
        _last(_contamination(folder) for _, folder in steps),
    )


def chain_steps(chain: Path) -> list[tuple[str, Path]]:
    """(name, folder) of the finished steps of a data stage (``steps/01-filter``), or of the one step whose folder it is."""
    folders = sorted(path.parent for path in (chain / "steps").glob("*/ledger.json"))
    if folders:
        return [(folder.name, folder) for folder in folders]
    return [(read_json(chain / "ledger.json")["steps"][-1]["name"], chain)] if (chain / "ledger.json").exists() else []


def funnel(chain: Path, steps: Sequence[tuple[str, Path]]) -> tuple[FunnelLine, ...]:
    """One line a step, in order: rows in and out, and what was dropped.

    The stage's own ledger comes first (reading, formats, exact duplicates) and last (held-out rows, the mix of the others);
    the lines of its chain of steps stand between, once each.
    """
    inner = [
        {**line, "folder": label}
        for label, folder in steps
        if folder != chain
        for line in read_json(folder / "ledger.json")["steps"]
    ]
    own = read_json(chain / "ledger.json")["steps"] if (chain / "ledger.json").exists() else []
    names = {line["name"] for line in inner}
    outer = [{**line, "folder": None} for line in own if line["name"] not in names]
    last = [line for line in outer if line["name"] in ("split", "mix")]
    lines = [line for line in outer if line not in last] + inner + last
    start = lines[0]["rows_in"] if lines else 0
    return tuple(
        FunnelLine(
            step=line["name"],
            rows_in=line["rows_in"],
            added=line["added"],
            rows_out=line["rows_out"],
            dropped=line["dropped"],
            notes=line["notes"],
            kept_share=line["rows_out"] / (line["rows_in"] + line["added"]) if line["rows_in"] else None,
            share_of_start=line["rows_out"] / start if start else None,
            folder=line["folder"],
        )
        for line in lines
    )


def _unread(chain: Path) -> list[Removed]:
    """What the stage itself dropped (unreadable, of no format, exact duplicates): its ledger keeps place and detail, no text."""
    path = chain / "ledger.json"
    if not path.exists():
        return []
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for reject in read_json(path)["rejects"]:
        found.setdefault((reject["step"], reject["reason"]), []).append(reject)
    return [
        Removed(
            step,
            reason,
            len(rejects),
            tuple(RemovedExample(one["file"], one["line"], one["detail"]) for one in rejects[:EXAMPLES]),
        )
        for (step, reason), rejects in found.items()
    ]


def _removed(label: str, folder: Path) -> list[Removed]:
    """Every reason of a step with its count and a few rows: those with the smallest content ids, whatever the order."""
    path = folder / "rejects.parquet"
    if not path.exists():
        return []
    frame = pl.scan_parquet(path, glob=False, row_index_name="place")
    places = frame.select("place", "id", "reason", "file", "line").collect().sort("id", "file", "line")
    counts = places.group_by("reason").len().sort(["len", "reason"], descending=[True, False])
    chosen = places.group_by("reason", maintain_order=True).head(EXAMPLES)["place"].to_list()
    taken = frame.filter(pl.col("place").is_in(chosen)).collect().sort("id", "file", "line").to_dicts()
    return [
        Removed(label, reason, count, tuple(_example(record) for record in taken if record["reason"] == reason))
        for reason, count in counts.iter_rows()
    ]


def _example(record: Mapping[str, Any]) -> RemovedExample:
    turns = record["messages"]
    texts = _turn_excerpt(turns, "user"), _turn_excerpt(turns, "assistant")
    return RemovedExample(record["file"], record["line"], record["detail"], record["id"], record["twin"], *texts)


def _turn_excerpt(turns: Sequence[Mapping[str, Any]], role: str) -> str | None:
    """The beginning of the first turn of a role."""
    text = next((turn["content"] for turn in turns if turn["role"] == role), None)
    return None if text is None else text if len(text) <= EXCERPT else f"{text[:EXCERPT].rstrip()} ..."


def _clusters(folder: Path) -> Clusters | None:
    """How many clusters of near-duplicates there are, how large, and a few with their texts: the largest and the least alike."""
    path = folder / "clusters.parquet"
    if not path.exists():
        return None
    table = pl.read_parquet(path, columns=["cluster", "id", "representative", "similarity", "kept"])
    clusters = (
        table.group_by("cluster")
        .agg(pl.len().alias("size"), pl.col("similarity").min().alias("least"))
        .filter(pl.col("size") > 1)
    )
    if not len(clusters):
        return Clusters(0, 0, 0, (), ())
    sizes = clusters.group_by("size").len().sort("size")
    half = CLUSTER_EXAMPLES // 2
    largest = clusters.sort(["size", "cluster"], descending=[True, False]).head(half)
    least = clusters.join(largest, on="cluster", how="anti").sort("least", "cluster").head(CLUSTER_EXAMPLES - half)
    chosen = pl.concat([largest, least])
    members = table.filter(pl.col("cluster").is_in(chosen["cluster"].to_list())).sort(
        ["cluster", "kept", "similarity", "id"], descending=[False, True, True, False]
    )
    members = members.group_by("cluster", maintain_order=True).head(CLUSTER_MEMBERS)
    texts = _texts(folder, set(members["id"].to_list()))
    by_cluster: dict[Any, list[ClusterMember]] = {}
    for cluster, row_id, similarity, kept in members.select("cluster", "id", "similarity", "kept").iter_rows():
        member = ClusterMember(row_id, similarity, kept, *texts.get(row_id, (None, None)))
        by_cluster.setdefault(cluster, []).append(member)
    return Clusters(
        clusters=len(clusters),
        rows=int(clusters["size"].sum()),
        dropped=int((~table["kept"]).sum()),
        sizes=tuple(ClusterSize(size, count) for size, count in sizes.iter_rows()),
        examples=tuple(
            Cluster(cluster, size, tuple(by_cluster[cluster]))
            for cluster, size in chosen.select("cluster", "size").iter_rows()
        ),
    )


def _texts(folder: Path, ids: set[str]) -> dict[str, tuple[str | None, str | None]]:
    """Excerpts of the prompts and replies of the rows with these ids, kept or dropped by the step."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for name in ("rows.parquet", "rejects.parquet"):
        if (folder / name).exists():
            wanted = pl.scan_parquet(folder / name, glob=False).filter(pl.col("id").is_in(list(ids)))
            for row_id, turns in wanted.select("id", "messages").collect().iter_rows():
                found[row_id] = _turn_excerpt(turns, "user"), _turn_excerpt(turns, "assistant")
    return found


def _contamination(folder: Path) -> Contamination | None:
    """The table of benchmarks of a decontamination, as it was written."""
    path = folder / "benchmarks.parquet"
    if not path.exists():
        return None
    table = pl.read_parquet(path)
    return Contamination(tuple(table.columns), tuple(table.to_dicts()))


def _last(found: Iterable[T | None]) -> T | None:
    """The last of the tables: of two steps of a kind, what the later one says is about what is left."""
    there = [one for one in found if one is not None]
    return there[-1] if there else None
