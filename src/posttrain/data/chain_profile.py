"""How the steps before made rows what they are: what each dropped, the clusters of duplicates, the table of benchmarks.

Read from the folders of a data stage or of one step; of the rows only excerpts of a few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from posttrain.artifacts import read_json

EXAMPLES = 3
"""Removed rows shown for each reason of each step."""
CLUSTER_EXAMPLES, CLUSTER_MEMBERS = 6, 4
EXCERPT = 400
"""Characters shown of a turn."""


def chain_facts(chain: Path | None) -> dict[str, Any]:
    """Funnel, removed rows, clusters and contamination of the folder of a data stage or step; of None that there are none."""
    if chain is None:
        return {"funnel": [], "removed": [], "clusters": None, "contamination": None}
    steps = chain_steps(chain)
    removed = [entry for label, folder in (*steps, ("mix", chain / "mix")) for entry in _removed(label, folder)]
    return {
        "funnel": funnel(chain, steps),
        "removed": [*_unread(chain), *removed],
        "clusters": _last(_clusters(folder) for _, folder in steps),
        "contamination": _last(_contamination(folder) for _, folder in steps),
    }


def chain_steps(chain: Path) -> list[tuple[str, Path]]:
    """(name, folder) of the finished steps of a data stage (``steps/01-filter``), or of the one step whose folder it is."""
    folders = sorted(path.parent for path in (chain / "steps").glob("*/ledger.json"))
    if folders:
        return [(folder.name, folder) for folder in folders]
    return [(read_json(chain / "ledger.json")["steps"][-1]["name"], chain)] if (chain / "ledger.json").exists() else []


def funnel(chain: Path, steps: Sequence[tuple[str, Path]]) -> list[dict[str, Any]]:
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
    return [
        {
            "step": line["name"],
            "folder": line["folder"],
            "rows_in": line["rows_in"],
            "added": line["added"],
            "rows_out": line["rows_out"],
            "dropped": line["dropped"],
            "notes": line["notes"],
            "kept_share": line["rows_out"] / (line["rows_in"] + line["added"]) if line["rows_in"] else None,
            "share_of_start": line["rows_out"] / start if start else None,
        }
        for line in lines
    ]


def _unread(chain: Path) -> list[dict[str, Any]]:
    """What the stage itself dropped (unreadable, of no format, exact duplicates): its ledger keeps place and detail, no text."""
    path = chain / "ledger.json"
    if not path.exists():
        return []
    ledger = read_json(path)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for reject in ledger["rejects"]:
        found.setdefault((reject["step"], reject["reason"]), []).append(reject)
    without_text = dict.fromkeys(("id", "twin", "prompt", "reply"))
    return [
        {
            "step": step,
            "reason": reason,
            "rows": len(rejects),
            "examples": [
                {**without_text, **{key: reject[key] for key in ("file", "line", "detail")}}
                for reject in rejects[:EXAMPLES]
            ],
        }
        for (step, reason), rejects in found.items()
    ]


def _removed(label: str, folder: Path) -> list[dict[str, Any]]:
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
        {
            "step": label,
            "reason": reason,
            "rows": count,
            "examples": [_example(record) for record in taken if record["reason"] == reason],
        }
        for reason, count in counts.iter_rows()
    ]


def _example(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: record[key] for key in ("id", "file", "line", "detail", "twin")},
        "prompt": _turn_excerpt(record["messages"], "user"),
        "reply": _turn_excerpt(record["messages"], "assistant"),
    }


def _turn_excerpt(turns: Sequence[Mapping[str, Any]], role: str) -> str | None:
    """The beginning of the first turn of a role."""
    text = next((turn["content"] for turn in turns if turn["role"] == role), None)
    return None if text is None else text if len(text) <= EXCERPT else f"{text[:EXCERPT].rstrip()} ..."


def _clusters(folder: Path) -> dict[str, Any] | None:
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
        return {"clusters": 0, "rows": 0, "dropped": 0, "sizes": [], "examples": []}
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
    return {
        "clusters": len(clusters),
        "rows": int(clusters["size"].sum()),
        "dropped": int((~table["kept"]).sum()),
        "sizes": [{"size": size, "clusters": count} for size, count in sizes.iter_rows()],
        "examples": [
            {
                "cluster": cluster,
                "size": size,
                "members": [
                    {**member, **texts.get(member["id"], {"prompt": None, "reply": None})}
                    for member in members.filter(pl.col("cluster") == cluster)
                    .select("id", "similarity", "kept")
                    .to_dicts()
                ],
            }
            for cluster, size in chosen.select("cluster", "size").iter_rows()
        ],
    }


def _texts(folder: Path, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Excerpts of the rows with these ids, kept or dropped by the step."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("rows.parquet", "rejects.parquet"):
        if (folder / name).exists():
            wanted = pl.scan_parquet(folder / name, glob=False).filter(pl.col("id").is_in(list(ids)))
            for row_id, turns in wanted.select("id", "messages").collect().iter_rows():
                found[row_id] = {"prompt": _turn_excerpt(turns, "user"), "reply": _turn_excerpt(turns, "assistant")}
    return found


def _contamination(folder: Path) -> dict[str, Any] | None:
    """The table of benchmarks of a decontamination, as it was written."""
    path = folder / "benchmarks.parquet"
    if not path.exists():
        return None
    table = pl.read_parquet(path)
    return {"columns": table.columns, "rows": table.to_dicts()}


def _last(found: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The last of the tables: of two steps of a kind, what the later one says is about what is left."""
    there = [one for one in found if one is not None]
    return there[-1] if there else None
