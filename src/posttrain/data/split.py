"""Train and held-out rows: decided by content and seed alone, never by the order of the rows.

Rows that belong together stay together: equal prompts (:func:`prompt_key`), equal compared texts after normalising, and one cluster of
near-duplicates where the rows carry clusters. Whole groups are taken in the order of a seeded hash, stratum by stratum.
Then the held-out rows are treated like a benchmark: a training row that holds more than ``max_overlap`` of the n-grams of
one of them is dropped (or the split fails), and what is left is checked again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from annotated_types import Ge, Gt, Le

from posttrain.data.held_out_overlap import OVERLAPS, overlaps
from posttrain.data.rows import conversations
from posttrain.data.steps import Decisions, StepRun, blocks, rejects_of, verdicts_of
from posttrain.data.text import Fields, compared_text, tokens
from posttrain.errors import DataError
from posttrain.types import Message, content_id

SPLITS = ("train", "validation", "test")
SHOWN_STRATA = 200
NO_TOPIC = "(none)"
ROOM = {"group": pl.String, "left": pl.Int64, "fits": pl.Boolean}
"""A group, the rows still wanted at its turn, whether all its rows fit into them."""


@dataclass(frozen=True, kw_only=True)
class SplitStep:
    """Split into train, validation and test, whole groups at a time, and prove that nothing stands on both sides."""

    kind: Literal["split"]
    validation: Annotated[float, Ge(0)] = 0.05
    """Validation rows: a share of all rows below 1, otherwise a number."""
    test: Annotated[float, Ge(0)] = 0.0
    """Test rows: a share of all rows below 1, otherwise a number. They are taken first."""
    train: Annotated[float, Gt(0)] | None = None
    """Training rows, where not all that is left should be used: a share of all rows below 1, otherwise a number."""
    stratify: Literal["none", "source", "topic"] = "none"
    """Take the same share of every source, or of every topic, instead of a share of all rows."""
    topic: str = "cluster"
    """Where a row's topic stands: ``cluster`` (then clusters are topics, and no longer kept whole), or a key of ``meta``."""
    compare: Fields = "user"
    """The turns that must not match across splits."""
    ngram: Annotated[int, Ge(1)] = 8
    """Length in tokens of the n-grams that are compared; shorter texts match where they are equal."""
    max_overlap: Annotated[float, Ge(0), Le(1)] = 0.5
    """A row matches a held-out row when it holds more than this share of that row's n-grams."""
    on_match: Literal["drop", "error"] = "drop"
    """What happens to a training row that matches a held-out one (or a validation row that matches a test row)."""

    def decide(self, rows_file: Path, seed: int, run: StepRun) -> Decisions:
        """The split of every row. Raises DataError where the rows can't be split as asked."""
        table = _grouped(rows_file, self, run)
        assigned, room = _assigned(table, self, seed)
        split = pl.Series("split", [assigned[group] for group in table["group"]], dtype=pl.String)
        table = table.with_columns(split)
        unused = table.filter(pl.col("split").is_null())
        kept, matched, found = _cleared(rows_file, table.filter(pl.col("split").is_not_null()), self, run)
        if len(matched) and self.on_match == "error":
            raise _crossing(matched, table, self)
        left = found.filter(pl.col("overlap") > self.max_overlap)
        check = {"matches_left": len(left), **_straddling(kept, self)}
        if any(check.values()):
            raise AssertionError(f"the split leaks: {check}")
        if len(table) and not (kept["split"] == "train").any():
            raise DataError(
                "every training row matches a held-out row", where="split", fix="raise max_overlap, or hold out less"
            )
        return Decisions(
            rejects=pl.concat([_match_rejects(matched, table, self), _unused_rejects(unused, room)]),
            verdicts=pl.concat([_match_verdicts(pl.concat([found, matched]), self), _room_verdicts(table, room)]),
            columns=table.select("split"),
            facts=_facts(table, kept, self) | {"check": {"matches_dropped": len(matched), **check}},
            notes={f"split {name}": int((kept["split"] == name).sum()) for name in SPLITS},
        )


def prompt_key(messages: Sequence[Message]) -> str:
    """16 hex digits that are equal for equal prompts: role and content of all turns before the first assistant turn."""
    prompt = takewhile(lambda message: message.role != "assistant", messages)
    return content_id(tuple(Message(message.role, message.content) for message in prompt))


def held_out_prompts(prompts: Sequence[str], held_out: float, seed: int) -> Set[str]:
    """Which prompts to hold out; ``prompts`` has the :func:`prompt_key` of every row.

    ``held_out`` below 1 is a share of the rows (rounded, at least one row), otherwise a number of rows. Prompts are
    taken in the order of a seeded hash as long as all their rows fit into the number; where not even one fits, the
    smallest alone is taken. Raises DataError where the rows can't be split so.
    """
    wanted = wanted_rows(len(prompts), held_out, "held_out")
    if wanted == 0:
        return frozenset()
    sizes = Counter(prompts)
    if len(sizes) == 1:
        raise DataError(
            f"all {len(prompts)} rows have the same prompt, and rows with the same prompt stay together",
            where="held_out",
            fix="set held_out: 0 and hold out rows of another source",
        )
    return {group for group, fits in room_of(sizes, wanted, seed).items() if fits[1]} or {smallest(sizes, seed)}


def room_of(sizes: Mapping[str, int], wanted: int, seed: int) -> dict[str, tuple[int, bool]]:
    """Group -> (rows still wanted at its turn, whether all its rows fit into them), in the order of a seeded hash."""
    found, left = {}, wanted
    for group in hash_order(sizes, seed):
        fits = sizes[group] <= left
        found[group] = (left, fits)
        left -= sizes[group] if fits else 0
    return found


def hash_order(groups: Iterable[str], seed: int) -> list[str]:
    """The groups in an order that the seed and their names alone decide."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())


def smallest(sizes: Mapping[str, int], seed: int) -> str:
    """The smallest group, the first of equal ones."""
    return min(hash_order(sizes, seed), key=lambda group: sizes[group])


def wanted_rows(num_rows: int, amount: float, where: str) -> int:
    """The number of rows of a share (below 1) or number; DataError where it is neither, or leaves nothing."""
    wanted = _rows_of(amount, num_rows, where, "0.05 or 200") if amount else 0
    if wanted and wanted >= num_rows:
        raise DataError(
            f"can't hold out {wanted} of {num_rows} row{'s' if num_rows != 1 else ''}: nothing is left to train on",
            where=where,
            fix=f"hold out less, or set {where}: 0",
        )
    return wanted


def _rows_of(amount: float, total: int, where: str, example: str) -> int:
    if amount >= 1 and amount != int(amount):
        raise DataError(f"{amount} is neither a share below 1 nor a number of rows", where=where, fix=f"give {example}")
    return int(amount) if amount >= 1 else max(1, round(total * amount))


# ---- groups --------------------------------------------------------------------------------------------------------


def _grouped(rows_file: Path, step: SplitStep, run: StepRun) -> pl.DataFrame:
    """One line a row: place, id, prompt, hash of the compared text, cluster, group and stratum."""
    columns = ["id", "source", "cluster", "messages", *(["meta"] if _in_meta(step) else [])]
    parts = []
    for begin, block in blocks(rows_file, columns, partial(run.progress, "split: groups")):
        turns = list(conversations(block))
        parts.append(
            block.select(
                pl.Series("row", range(begin, begin + len(block)), dtype=pl.UInt32),
                "id",
                "cluster",
                pl.Series("prompt", [prompt_key(messages) for messages in turns], dtype=pl.String),
                pl.Series("text", [_text_key(messages, step.compare) for messages in turns], dtype=pl.String),
                pl.Series("stratum", _strata(block, step), dtype=pl.String),
            )
        )
    table = pl.concat(parts)
    if step.stratify == "topic" and len(table) and table["stratum"].null_count() == len(table):
        where = f"the key {step.topic!r} in its meta" if _in_meta(step) else "a cluster"
        raise DataError(f"no row has {where}", where="split.topic", fix="name a key of meta, or stratify: none")
    together = ["prompt", "text", *(["cluster"] if _clusters_together(step) else [])]
    table = table.with_columns(pl.col("stratum").fill_null(NO_TOPIC), number=_components(table, together))
    return table.with_columns(group=pl.col("prompt").min().over("number"))


def _in_meta(step: SplitStep) -> bool:
    return step.stratify == "topic" and step.topic != "cluster"


def _clusters_together(step: SplitStep) -> bool:
    return step.stratify != "topic" or step.topic != "cluster"


def _strata(block: pl.DataFrame, step: SplitStep) -> list[str | None]:
    if step.stratify == "none":
        return [""] * len(block)
    if step.stratify == "source":
        return block["source"].to_list()
    if step.topic == "cluster":
        return block["cluster"].to_list()
    found = (json.loads(meta).get(step.topic) for meta in block["meta"])
    return [None if value is None else str(value) for value in found]


def _text_key(messages: Sequence[Message], fields: Fields) -> str | None:
    """Equal for texts of equal tokens; None where there is no token to compare."""
    words = tokens(compared_text(messages, fields))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16] if words else None


def _components(table: pl.DataFrame, labels: Sequence[str]) -> pl.Series:
    """The number of each row's group: rows that share a label, directly or through other rows, have one number."""
    from scipy.sparse import coo_array  # here: reading a recipe needs no scipy
    from scipy.sparse.csgraph import connected_components

    rows, nodes, first = [], [], len(table)
    for label in labels:
        known = table.filter(pl.col(label).is_not_null())
        codes = known[label].rank("dense").cast(pl.Int64).to_numpy() - 1
        rows.append(known["row"].to_numpy().astype(np.int64))
        nodes.append(codes + first)
        first += int(codes.max(initial=-1)) + 1
    ends = (np.concatenate(rows), np.concatenate(nodes))
    graph = coo_array((np.ones(len(ends[0]), np.bool_), ends), shape=(first, first))
    _, numbers = connected_components(graph, directed=False)
    return pl.Series("number", numbers[: len(table)], dtype=pl.Int64)


# ---- which group goes where ----------------------------------------------------------------------------------------


def _assigned(table: pl.DataFrame, step: SplitStep, seed: int) -> tuple[dict[str, str | None], pl.DataFrame]:
    """Group -> its split (None: not used), and the room for each group in train where its size is given [:data:`ROOM`]."""
    total = len(table)
    sizes: dict[str, int] = dict(table.group_by("group").len().iter_rows())
    wanted = {name: wanted_rows(total, getattr(step, name), f"split.{name}") for name in ("test", "validation")}
    if sum(wanted.values()) and len(sizes) <= sum(1 for rows in wanted.values() if rows):
        raise DataError(
            f"the {total} rows are {len(sizes)} group{'s' if len(sizes) != 1 else ''} of equal prompts or near-duplicates, "
            "too few to split",
            where="split",
            fix="set validation: 0 and test: 0, and hold out rows of another source",
        )
    if sum(wanted.values()) >= total > 0:
        raise DataError(
            f"validation and test take all {total} rows: nothing is left to train on",
            where="split",
            fix="hold out less",
        )
    strata = _group_strata(table)
    assigned: dict[str, str | None] = {}
    rest = sizes
    for name, rows in wanted.items():
        if rows:
            quotas = _quotas(sizes, strata, rows)
            chosen = {group for group, (_, fits) in _rooms(rest, strata, quotas, seed).items() if fits}
            assigned |= dict.fromkeys(chosen or {smallest(rest, seed)}, name)
            rest = {group: size for group, size in sizes.items() if group not in assigned}
    room: dict[str, tuple[int, bool]] = {}
    if step.train is not None:
        quotas = _quotas(rest, strata, _train_rows(step.train, total, sum(rest.values())))
        room = _rooms(rest, strata, quotas, seed)
    assigned |= {group: "train" if room.get(group, (0, True))[1] else None for group in rest}
    return assigned, pl.DataFrame([(group, *found) for group, found in room.items()], schema=ROOM, orient="row")


def _group_strata(table: pl.DataFrame) -> dict[str, str]:
    """Group -> the stratum most of its rows are in, the first by name where two are equal."""
    counts = table.group_by("group", "stratum").len().sort(["group", "len", "stratum"], descending=[False, True, False])
    return dict(counts.group_by("group", maintain_order=True).first().select("group", "stratum").iter_rows())


def _rooms(
    sizes: Mapping[str, int], strata: Mapping[str, str], quotas: Mapping[str, int], seed: int
) -> dict[str, tuple[int, bool]]:
    """:func:`room_of` of the groups of each stratum, given how many of its rows are wanted."""
    members: dict[str, dict[str, int]] = {}
    for group, size in sizes.items():
        members.setdefault(strata[group], {})[group] = size
    return {
        group: room
        for stratum, groups in members.items()
        for group, room in room_of(groups, quotas[stratum], seed).items()
    }


def _train_rows(train: float, total: int, left: int) -> int:
    """The number of training rows of a share of all rows, or a number."""
    wanted = _rows_of(train, total, "split.train", "0.8 or 5000")
    if wanted > left:
        raise DataError(
            f"{wanted:,} training rows are wanted, but only {left:,} are left", where="split.train", fix="ask for less"
        )
    return wanted


def _quotas(sizes: Mapping[str, int], strata: Mapping[str, str], wanted: int) -> dict[str, int]:
    """Stratum -> rows of it: in proportion, summing to ``wanted``; the largest remainders are rounded up, ties by name."""
    rows: Counter[str] = Counter()
    for group, size in sizes.items():
        rows[strata[group]] += size
    total = rows.total()
    quotas = {stratum: wanted * count // total for stratum, count in rows.items()}
    order = sorted(rows, key=lambda stratum: (-(wanted * rows[stratum] % total), stratum))
    for stratum in order[: wanted - sum(quotas.values())]:
        quotas[stratum] += 1
    return quotas


# ---- what stands on both sides -------------------------------------------------------------------------------------


def _cleared(
    rows_file: Path, kept: pl.DataFrame, step: SplitStep, run: StepRun
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The rows without those that match a held-out row, the matches that were dropped, and what the last look found.

    Looked at again until nothing is found: a template may become rare enough to count when held-out rows go.
    """
    matched = []
    while True:
        found = _matches(rows_file, kept, step, run)
        fresh = found.filter(pl.col("overlap") > step.max_overlap)
        matched.append(fresh)
        if not len(fresh) or step.on_match == "error":
            return kept, pl.concat(matched), found
        kept = kept.join(fresh, on="row", how="anti", maintain_order="left")


def _matches(rows_file: Path, table: pl.DataFrame, step: SplitStep, run: StepRun) -> pl.DataFrame:
    """[OVERLAPS] of the training rows with held-out rows, and of the validation rows with test rows."""
    found = [pl.DataFrame(schema=OVERLAPS)]
    for compared, judged in (("train", ("validation", "test")), ("validation", ("test",))):
        places = table.filter(pl.col("split") == compared)["row"]
        held_out = table.filter(pl.col("split").is_in(judged)).select("row", "id", "group")
        if len(places) and len(held_out):
            what = f"split: {compared} against held-out rows"
            found.append(overlaps(rows_file, places, held_out, step.compare, step.ngram, run, what))
    return pl.concat(found)


def _straddling(kept: pl.DataFrame, step: SplitStep) -> dict[str, int]:
    """How many prompts, compared texts and clusters stand in more than one split (all must be 0)."""
    labels = {"equal_prompts": "prompt", "equal_texts": "text"}
    if _clusters_together(step):
        labels["divided_clusters"] = "cluster"
    pairs = {name: kept.select(label, "split").drop_nulls().unique()[label] for name, label in labels.items()}
    return {name: int((found.value_counts()["count"] > 1).sum()) for name, found in pairs.items()}


def _crossing(matched: pl.DataFrame, table: pl.DataFrame, step: SplitStep) -> DataError:
    first = _named(matched.sort("overlap", descending=True).head(3), table)
    examples = "".join(
        f"\n  row {row_id} holds {overlap:.0%} of the {step.ngram}-grams of held-out row {twin}"
        for row_id, twin, overlap in first.select("id", "twin", "overlap").iter_rows()
    )
    return DataError(
        f"{len(matched)} rows match a held-out row{examples}",
        where="split.on_match",
        fix="run a dedup step before the split (its clusters stay together), or on_match: drop",
    )


# ---- what is written -----------------------------------------------------------------------------------------------


def _named(matched: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """Matches with the ids of both rows and the split of the held-out one."""
    twins = table.select(held_out="row", twin="id", twin_split="split")
    return matched.join(table.select("row", "id"), on="row").join(twins, on="held_out").sort("row")


def _match_rejects(matched: pl.DataFrame, table: pl.DataFrame, step: SplitStep) -> pl.DataFrame:
    share = (pl.col("overlap") * 100).round(0).cast(pl.Int64)
    detail = pl.format("{}% of the {}-grams of {} row {}", share, pl.lit(step.ngram), "twin_split", "twin")
    return rejects_of(_named(matched, table), pl.lit("matches_held_out"), detail, pl.col("twin"))


def _unused_rejects(unused: pl.DataFrame, room: pl.DataFrame) -> pl.DataFrame:
    detail = pl.format("room for {} more rows when its group came", "left")
    return rejects_of(unused.join(room, on="group", maintain_order="left"), pl.lit("split_quota"), detail)


def _match_verdicts(found: pl.DataFrame, step: SplitStep) -> pl.DataFrame:
    limit, overlap = pl.lit(f"<= {step.max_overlap:g}"), pl.col("overlap")
    return verdicts_of(found, "held_out_overlap", overlap, limit, overlap <= step.max_overlap)


def _room_verdicts(table: pl.DataFrame, room: pl.DataFrame) -> pl.DataFrame:
    """Rows of each group against the training rows still wanted at its turn, where the size of train is given."""
    judged = table.join(room, on="group", maintain_order="left")
    return verdicts_of(judged, "train_room", pl.len().over("group"), pl.format("<= {}", "left"), pl.col("fits"))


def _facts(table: pl.DataFrame, kept: pl.DataFrame, step: SplitStep) -> dict[str, Any]:
    groups = table.group_by("group").len()["len"]
    strata = (
        kept.group_by("stratum")
        .agg(pl.len().alias("rows"), *((pl.col("split") == name).sum().alias(name) for name in SPLITS))
        .sort(["rows", "stratum"], descending=[True, False])
    )
    return {
        "splits": {name: int((kept["split"] == name).sum()) for name in SPLITS},
        "groups": len(groups),
        "largest_group": int(groups.max() or 0),  # type: ignore[arg-type]
        "clusters_together": _clusters_together(step) and bool(table["cluster"].is_not_null().any()),
        "stratify": step.topic if step.stratify == "topic" else step.stratify,
        "strata": strata.head(SHOWN_STRATA).to_dicts() if step.stratify != "none" else [],
        "compare": step.compare,
        "ngram": step.ngram,
        "max_overlap": step.max_overlap,
    }
