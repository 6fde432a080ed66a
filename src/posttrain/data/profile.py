"""The data report: what a set of rows consists of, and how the steps before made it what it is.

Read block by block: of every row a few numbers are kept, never its text, so quantiles are exact and a million rows need
little memory. A quantile is the smallest length that at least that share of the rows stays within, so it is a length that occurs,
and P95 of whole conversations is the sequence length that covers 95% of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.artifacts import read_json, write_json
from posttrain.data.engine import map_rows
from posttrain.data.kinds import kind_of_files
from posttrain.data.language import identifier, identifier_words, language_of
from posttrain.data.preference_profile import preference_summary, reply_columns
from posttrain.data.profile_records import (
    Cluster,
    ClusterMember,
    Clusters,
    ClusterSize,
    Column,
    Contamination,
    CounterName,
    Covering,
    FunnelLine,
    Histogram,
    LanguageShare,
    Lengths,
    MetaKey,
    OverLimit,
    Part,
    Profile,
    ProfiledFile,
    Removed,
    RemovedExample,
    TurnCount,
    Turns,
)
from posttrain.data.prose import parts_of
from posttrain.data.rows import LINEAGE, REQUIRED, SCHEMA, conversations
from posttrain.data.steps import Progress, StepRun, count_rows
from posttrain.data.text import tokens
from posttrain.errors import DataError
from posttrain.types import Message

T = TypeVar("T")

PROFILE_SCHEMA = 1
LIMITS = (512, 1024, 2048, 4096)
COVER = 0.95
BINS = 40
EXAMPLES = 3
"""Removed rows shown for each reason of each step."""
CLUSTER_EXAMPLES, CLUSTER_MEMBERS = 6, 4
EXCERPT = 400
"""Characters shown of a turn."""
META_KEYS, META_VALUES, META_CHARACTERS = 1000, 1000, 60
"""So many keys of meta are followed, with so many of their values, and the beginning of each."""
SHOWN_META_KEYS, SHOWN_META_VALUES = 20, 3
LANGUAGE_FLOOR = 0.5
NO_SPLIT = "(none)"


class Counts(NamedTuple):
    """Tokens of one conversation."""

    whole: int
    user: int
    """All user turns together."""
    assistant: int
    """All assistant turns together, reasoning and tool calls included."""


Conversation = tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]
"""Messages and tools."""


@dataclass(frozen=True)
class TokenCounter:
    """What lengths are counted in."""

    name: str
    """As the report calls it."""
    is_model: bool
    """Whether these are tokens of a model, the chat template's own included."""
    count: Callable[[Sequence[Conversation]], Sequence[Counts]]
    """The tokens of a block of conversations."""


def comparison_counts(block: Sequence[Conversation]) -> list[Counts]:
    """Tokens of the comparison tokenizer (``data.text``): words and CJK characters, no punctuation and no template."""
    return [_comparison_counts(messages) for messages, _ in block]


def _comparison_counts(messages: Sequence[Message]) -> Counts:
    by_role: Counter[str] = Counter()
    for message in messages:
        calls = (f"{call.name}\n{call.arguments}" for call in message.tool_calls)
        said = "\n".join(text for text in (message.content, message.reasoning, *calls) if text)
        by_role[message.role] += len(tokens(said))
    return Counts(sum(by_role.values()), by_role["user"], by_role["assistant"])


COMPARISON = TokenCounter("comparison tokenizer (words and CJK characters)", False, comparison_counts)


def profile(
    files: Sequence[Path],
    out: Path,
    *,
    counter: TokenCounter = COMPARISON,
    limits: Sequence[int] = LIMITS,
    chain: Path | None = None,
    workers: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> Profile:
    """Look at rows files and write ``profile.json`` into ``out``; the keys are described in docs/data-profile.md.

    ``chain``: the folder of a data stage (with ``steps/01-filter`` and so on) or of one step, for the funnel, the removed
    rows, the clusters and the contamination table. Raises DataError where a file holds no rows of this form.
    """
    for path in files:
        _check_columns(path)
    kind = kind_of_files(files)
    sizes = {path: count_rows(path) for path in files}
    if not any(sizes.values()):
        raise DataError("no rows to profile", where=", ".join(map(str, files)), fix="give a file with rows")
    seen = _Seen()
    run = StepRun(lambda name: None, workers, progress=progress)
    for path in sizes:
        look = partial(_look, counter=counter)
        for _, block in map_rows(look, path, (*SCHEMA, *LINEAGE), run, f"profile {path.name}"):
            seen.add(block)
    table = pl.concat(seen.tables)
    steps = chain_steps(chain) if chain is not None else []
    found = Profile(
        schema=PROFILE_SCHEMA,
        rows=len(table),
        files=tuple(ProfiledFile(path.name, size) for path, size in sizes.items()),
        tokenizer=CounterName(counter.name, counter.is_model),
        columns=_columns(files[0], seen),
        distinct_ids=table["id"].n_unique(),
        rows_counted=float(table["weight"].sum()),
        features={name: seen.features[name] for name in FEATURES},
        meta_keys=_meta_keys(seen),
        turns=_turns(table["turns"].to_numpy()),
        lengths={name: length_summary(table[name].to_numpy(), limits) for name in ("whole", "user", "assistant")},
        covering=_covering(table["whole"].to_numpy()),
        preferences=preference_summary(table, kind),
        languages=_languages(table),
        language_rule=identifier_words("auto"),
        sources=_parts(table, "source"),
        splits=_parts(table, "split") if table["split"].null_count() < len(table) else (),
        funnel=funnel(chain, steps) if chain is not None else (),
        removed=(
            *(_unread(chain) if chain is not None else ()),
            *(entry for step in steps for entry in _removed(*step)),
            *(_removed("mix", chain / "mix") if chain is not None else ()),
        ),
        clusters=_last(_clusters(folder) for _, folder in steps),
        contamination=_last(_contamination(folder) for _, folder in steps),
    )
    write_json(out / "profile.json", asdict(found))
    return found


# ---- the rows ------------------------------------------------------------------------------------------------------

FEATURES = (
    "system",
    "several_exchanges",
    "tools",
    "tool_calls",
    "reasoning",
    "last_turn_not_assistant",
    "weighted_turns",
)
"""Counted properties of conversations."""


@dataclass
class _Seen:
    """What is gathered while blocks go by."""

    tables: list[pl.DataFrame] = field(default_factory=list)
    """A line a row: id, source, split, weight, language, turns and lengths."""
    features: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)
    meta: dict[str, Counter[str]] = field(default_factory=dict)
    """Key of meta -> type and beginning of its values."""

    def add(self, other: _Seen) -> None:
        """Take in what was seen in another block."""
        self.tables += other.tables
        self.features.update(other.features)
        self.nulls.update(other.nulls)
        for key, values in other.meta.items():
            if key in self.meta or len(self.meta) < META_KEYS:
                known = self.meta.setdefault(key, Counter())
                known.update(values)
                _forget(known)


def _check_columns(path: Path) -> None:
    try:
        found = pl.scan_parquet(path, glob=False).collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"can't read these rows: {error}", where=str(path), fix="give rows.parquet of a step or a data stage"
        ) from error
    missing = [name for name in (*SCHEMA, *LINEAGE) if name in REQUIRED and name not in found]
    if missing:
        raise DataError(
            f"the columns {', '.join(missing)} are missing",
            where=str(path),
            fix="give rows.parquet of a step or a data stage; other formats are read by the command line first",
        )


def _look(block: pl.DataFrame, counter: TokenCounter) -> _Seen:
    talks: list[Conversation] = [
        (messages, tuple(json.loads(tools)) if tools != "[]" else ())
        for messages, tools in zip(conversations(block), block["tools"], strict=True)
    ]
    counts = counter.count(talks)
    seen = _Seen(nulls=Counter({name: block[name].null_count() for name in block.columns}))
    for messages, tools in talks:
        seen.features.update(_features(messages, tools))
    for text in block["meta"]:
        if text != "{}":
            for key, value in json.loads(text).items():
                seen.meta.setdefault(key, Counter())[f"{type(value).__name__} {value}"[:META_CHARACTERS]] += 1
    seen.tables.append(
        block.select(
            "id",
            "source",
            "split",
            pl.col("weight").fill_null(1.0),
            pl.Series("language", [_language(messages) for messages, _ in talks], dtype=pl.String),
            pl.Series("turns", [sum(m.role != "system" for m in messages) for messages, _ in talks], dtype=pl.UInt32),
            *(
                pl.Series(name, [getattr(count, name) for count in counts], dtype=pl.UInt32)
                for name in ("whole", "user", "assistant")
            ),
            "desirable",
            *reply_columns(block, counter),
        )
    )
    return seen


def _language(messages: Sequence[Message]) -> str:
    parts = parts_of("\n".join(m.content for m in messages if m.role in ("user", "assistant")))
    return language_of(parts.prose, parts.code_characters, identifier("auto"), LANGUAGE_FLOOR).name


def _features(messages: Sequence[Message], tools: Sequence[Any]) -> Iterator[str]:
    """The properties of :data:`FEATURES` that a conversation has."""
    roles = [message.role for message in messages]
    has = {
        "system": "system" in roles,
        "several_exchanges": roles.count("user") > 1,
        "tools": bool(tools),
        "tool_calls": any(message.tool_calls for message in messages),
        "reasoning": any(message.reasoning for message in messages),
        "last_turn_not_assistant": roles[-1:] != ["assistant"],
        "weighted_turns": any(message.weight is not None for message in messages),
    }
    return (name for name, true in has.items() if true)


def _forget(values: Counter[str]) -> None:
    """Keep the frequent values only, and the rest as one number."""
    if len(values) > META_VALUES:
        rest = values.pop("", 0)
        for value, count in sorted(values.items(), key=lambda item: (-item[1], item[0]))[META_VALUES:]:
            rest += count
            del values[value]
        values[""] = rest


def _columns(path: Path, seen: _Seen) -> tuple[Column, ...]:
    kinds = pl.scan_parquet(path, glob=False).collect_schema()
    return tuple(Column(name, _kind(kind), seen.nulls[name]) for name, kind in kinds.items())


def _kind(kind: pl.DataType) -> str:
    """A type in words: ``list of {role, content, ...}``."""
    if isinstance(kind, pl.List):
        return f"list of {_kind(kind.inner)}"  # type: ignore[arg-type]
    if isinstance(kind, pl.Struct):
        return f"{{{', '.join(one.name for one in kind.fields)}}}"
    return {"String": "text", "Int64": "whole number", "Float64": "number"}.get(str(kind), str(kind))


def _meta_keys(seen: _Seen) -> tuple[MetaKey, ...]:
    """The keys of most rows, with types and a few frequent values."""
    by_rows = sorted(seen.meta, key=lambda key: (-seen.meta[key].total(), key))[:SHOWN_META_KEYS]
    found = []
    for key in by_rows:
        values = seen.meta[key]
        named = sorted(((v, n) for v, n in values.items() if v), key=lambda item: (-item[1], item[0]))
        types = tuple(sorted({value.partition(" ")[0] for value, _ in named}))
        found.append(
            MetaKey(key, values.total(), types, tuple(v.partition(" ")[2] for v, _ in named[:SHOWN_META_VALUES]))
        )
    return tuple(found)


# ---- numbers -------------------------------------------------------------------------------------------------------


def length_summary(values: NDArray[Any], limits: Sequence[int]) -> Lengths:
    """Exact statistics of lengths: quantiles, a histogram, and what lies over each limit."""
    percents = np.quantile(values, np.arange(101) / 100, method="inverted_cdf").astype(int).tolist()
    p50, p90, p95 = percents[50], percents[90], percents[95]
    # beyond four times P95 a few very long rows would squeeze all others into one bar
    end = min(percents[100], 4 * p95) or percents[100]
    width = max(1, -(-(end + 1) // BINS))
    edges = [width * index for index in range(-(-(end + 1) // width) + 1)]
    counts, _ = np.histogram(values, bins=np.array(edges) - 0.5)
    return Lengths(
        count=len(values),
        total=int(values.sum(dtype=np.int64)),
        mean=float(values.mean()),
        min=percents[0],
        p50=p50,
        p90=p90,
        p95=p95,
        max=percents[100],
        percentiles=tuple(percents),
        histogram=Histogram(tuple(edges), tuple(counts.tolist()), beyond=int((values >= edges[-1]).sum())),
        over=tuple(OverLimit(limit, int((values > limit).sum()), float((values > limit).mean())) for limit in limits),
    )


def _covering(values: NDArray[Any]) -> Covering:
    """The sequence length that covers 95% of the conversations, and the same rounded up to a multiple of 64."""
    length = int(np.quantile(values, COVER, method="inverted_cdf"))
    rounded = max(64, -(-length // 64) * 64)
    return Covering(COVER, length, rounded, float((values <= rounded).mean()))


def _turns(values: NDArray[Any]) -> Turns:
    kinds, rows = np.unique(values, return_counts=True)
    counts = tuple(TurnCount(int(kind), int(count)) for kind, count in zip(kinds, rows, strict=True))
    return Turns(float(values.mean()), int(values.max()), counts)


def _languages(table: pl.DataFrame) -> tuple[LanguageShare, ...]:
    counts = table.group_by("language").len().sort(["len", "language"], descending=[True, False])
    return tuple(LanguageShare(name, rows, rows / len(table)) for name, rows in counts.iter_rows())


def _parts(table: pl.DataFrame, column: str) -> tuple[Part, ...]:
    """One line a source or split: rows, what they count, tokens, typical lengths, main languages."""
    found = []
    total = int(table["whole"].sum())
    names = table.select(pl.col(column).cast(pl.String).fill_null(NO_SPLIT)).to_series()
    order = {"train": 0, "validation": 1, "test": 2}
    frame = table.with_columns(names.alias(column))
    for part in frame.partition_by(column):
        whole = part["whole"].to_numpy()
        amount = int(whole.sum(dtype=np.int64))
        found.append(
            Part(
                name=part[column][0],
                rows=len(part),
                share=len(part) / len(table),
                rows_counted=float(part["weight"].sum()),
                tokens=amount,
                token_share=amount / total if total else None,
                turns=float(part["turns"].cast(pl.Float64).mean()),  # type: ignore[arg-type]
                user_p50=_p50(part["user"].to_numpy()),
                assistant_p50=_p50(part["assistant"].to_numpy()),
                p95=int(np.quantile(whole, 0.95, method="inverted_cdf")),
                languages=_languages(part)[:3],
            )
        )
    return tuple(sorted(found, key=lambda one: (order.get(one.name, 3), -one.rows, one.name)))


def _p50(values: NDArray[Any]) -> int:
    return int(np.quantile(values, 0.5, method="inverted_cdf"))


# ---- the chain before ----------------------------------------------------------------------------------------------


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
    shown = members.group_by("cluster", maintain_order=True).head(CLUSTER_MEMBERS)
    texts = _texts(folder, set(shown["id"].to_list()))
    by_cluster: dict[Any, list[ClusterMember]] = {}
    for cluster, row_id, similarity, kept in shown.select("cluster", "id", "similarity", "kept").iter_rows():
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
