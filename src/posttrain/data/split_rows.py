"""The rows of a split: groups, strata, and the check that nothing stands on both sides. Told in ``posttrain.data.split``."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup.texts import compared_texts
from posttrain.data.rows import conversations
from posttrain.data.shingles import hash_shingles, hash_tokens
from posttrain.data.split import SPLITS, SplitStep, prompt_key, room_of, smallest, wanted_rows
from posttrain.data.steps import REJECTS, VERDICTS, Decisions, StepRun, blocks, count_rows
from posttrain.data.text import Fields, compared_text, tokens
from posttrain.errors import DataError
from posttrain.types import Message

TEMPLATE_LEAST, TEMPLATE_SHARE = 20, 0.001
"""An n-gram in more held-out groups than both of these allow is a template that prompts share, not a match."""
SHOWN_STRATA = 200
NO_TOPIC = "(none)"


def decide(step: SplitStep, rows: Path, seed: int, run: StepRun) -> Decisions:
    """What :meth:`SplitStep.decide` returns."""
    table = _grouped(rows, step, run)
    assigned, room = _assigned(table, step, seed)
    split = pl.Series("split", [assigned[group] for group in table["group"]], dtype=pl.String)
    table = table.with_columns(split)
    unused = table.filter(pl.col("split").is_null())
    kept, matched, found = _cleared(rows, table.filter(pl.col("split").is_not_null()), step, run)
    if len(matched) and step.on_match == "error":
        raise _crossing(matched, table, step)
    left = found.filter(pl.col("overlap") > step.max_overlap)
    check = {"matches_left": len(left), **_straddling(kept, step)}
    if any(check.values()):
        raise AssertionError(f"the split leaks: {check}")
    if len(table) and not (kept["split"] == "train").any():
        raise DataError(
            "every training row matches a held-out row", where="split", fix="raise max_overlap, or hold out less"
        )
    return Decisions(
        rejects=pl.concat([_match_rejects(matched, table, step), _unused_rejects(unused, room)]),
        verdicts=pl.concat([_match_verdicts(pl.concat([found, matched]), step), _room_verdicts(table, room)]),
        columns=table.select("split"),
        facts=_facts(table, kept, step) | {"check": {"matches_dropped": len(matched), **check}},
        notes={f"split {name}": int((kept["split"] == name).sum()) for name in SPLITS},
    )


# ---- groups --------------------------------------------------------------------------------------------------------


def _grouped(rows: Path, step: SplitStep, run: StepRun) -> pl.DataFrame:
    """One line a row: place, id, prompt, hash of the compared text, cluster, group and stratum."""
    columns = ["id", "source", "cluster", "messages", *(["meta"] if _in_meta(step) else [])]
    total = count_rows(rows)
    parts = []
    for begin, block in blocks(rows, columns) if total else [(0, pl.read_parquet(rows, columns=columns))]:
        run.progress("split: groups", begin, total)
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
    run.progress("split: groups", total, total)
    table = pl.concat(parts)
    if step.stratify == "topic" and total and table["stratum"].null_count() == total:
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


def _assigned(
    table: pl.DataFrame, step: SplitStep, seed: int
) -> tuple[dict[str, str | None], dict[str, tuple[int, bool]]]:
    """Group -> its split (None: not used), and group -> room for it in train where the size of train is given."""
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
    for name, rows in wanted.items():
        if rows:
            left = {group: size for group, size in sizes.items() if group not in assigned}
            chosen = _taken(left, sizes, strata, rows, seed) or {smallest(left, seed)}
            assigned |= dict.fromkeys(chosen, name)
    rest = {group: size for group, size in sizes.items() if group not in assigned}
    room: dict[str, tuple[int, bool]] = {}
    if step.train is not None:
        room = _train_room(rest, sizes, strata, step.train, total, seed)
    return assigned | {group: "train" if room.get(group, (0, True))[1] else None for group in rest}, room


def _group_strata(table: pl.DataFrame) -> dict[str, str]:
    """Group -> the stratum most of its rows are in, the first by name where two are equal."""
    counts = table.group_by("group", "stratum").len().sort(["group", "len", "stratum"], descending=[False, True, False])
    return dict(counts.group_by("group", maintain_order=True).first().select("group", "stratum").iter_rows())


def _taken(
    left: Mapping[str, int], sizes: Mapping[str, int], strata: Mapping[str, str], wanted: int, seed: int
) -> set[str]:
    """Groups of ``left`` for ``wanted`` rows, from every stratum in proportion to all its rows."""
    quotas = _quotas(sizes, strata, wanted)
    return {
        group
        for stratum, members in _by_stratum(left, strata).items()
        for group, (_, fits) in room_of(members, quotas[stratum], seed).items()
        if fits
    }


def _by_stratum(sizes: Mapping[str, int], strata: Mapping[str, str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for group, size in sizes.items():
        found.setdefault(strata[group], {})[group] = size
    return found


def _train_room(
    rest: Mapping[str, int],
    sizes: Mapping[str, int],
    strata: Mapping[str, str],
    train: float,
    total: int,
    seed: int,
) -> dict[str, tuple[int, bool]]:
    wanted = int(train) if train >= 1 else max(1, round(total * train))
    if wanted != train and train >= 1:
        raise DataError(
            f"{train} is neither a share below 1 nor a number of rows", where="split.train", fix="give 0.8 or 5000"
        )
    there = sum(rest.values())
    if wanted > there:
        raise DataError(
            f"{wanted:,} training rows are asked for, and {there:,} are left", where="split.train", fix="ask for less"
        )
    quotas = _quotas(rest, strata, wanted)
    room: dict[str, tuple[int, bool]] = {}
    for stratum, members in _by_stratum(rest, strata).items():
        room |= room_of(members, quotas[stratum], seed)
    return room


def _quotas(sizes: Mapping[str, int], strata: Mapping[str, str], wanted: int) -> dict[str, int]:
    """Stratum -> rows of it: in proportion, summing to ``wanted``; the largest remainders are rounded up, ties by name."""
    rows: Counter[str] = Counter()
    for group, size in sizes.items():
        rows[strata[group]] += size
    total = sum(rows.values())
    quotas = {stratum: wanted * count // total for stratum, count in rows.items()}
    order = sorted(rows, key=lambda stratum: (-(wanted * rows[stratum] % total), stratum))
    for stratum in order[: wanted - sum(quotas.values())]:
        quotas[stratum] += 1
    return quotas


# ---- what stands on both sides -------------------------------------------------------------------------------------


def _cleared(
    rows: Path, kept: pl.DataFrame, step: SplitStep, run: StepRun
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The rows without those that match a held-out row, the matches that were dropped, and what the last look found.

    Looked at again until nothing is found: a template may become rare enough to count when held-out rows go.
    """
    matched = []
    while True:
        found = _matches(rows, kept, step, run)
        fresh = found.filter(pl.col("overlap") > step.max_overlap)
        matched.append(fresh)
        if not len(fresh) or step.on_match == "error":
            return kept, pl.concat(matched), found
        kept = kept.join(fresh, on="row", how="anti", maintain_order="left")


def _matches(rows: Path, table: pl.DataFrame, step: SplitStep, run: StepRun) -> pl.DataFrame:
    """Row of train (or validation), its highest overlap with a held-out row (a test row), and that row's place."""
    found = [
        _overlaps(rows, table, compared, judged, step, run)
        for compared, judged in (("train", ("validation", "test")), ("validation", ("test",)))
        if (table["split"] == compared).any() and table["split"].is_in(judged).any()
    ]
    empty = pl.DataFrame(schema={"row": pl.UInt32, "overlap": pl.Float64, "held_out": pl.UInt32})
    return pl.concat([empty, *found])


def _overlaps(
    rows: Path, table: pl.DataFrame, compared: str, judged: Sequence[str], step: SplitStep, run: StepRun
) -> pl.DataFrame:
    index = _Index.of(rows, table.filter(pl.col("split").is_in(judged)).select("row", "id", "group"), step)
    places = table.filter(pl.col("split") == compared)["row"].to_numpy().astype(np.int64)
    parts, total = [], count_rows(rows)
    for begin, grams, owners in _row_grams(rows, places, step):
        run.progress(f"split: {compared} against held-out rows", begin, total)
        parts.append(index.highest(grams, owners))
    run.progress(f"split: {compared} against held-out rows", total, total)
    found = pl.concat(parts)
    return (
        pl.DataFrame({"row": places}, schema={"row": pl.UInt32})
        .join(found, on="row", how="left", maintain_order="left")
        .with_columns(pl.col("overlap").fill_null(0.0))
    )


@dataclass(frozen=True)
class _Index:
    """The n-grams of the held-out rows, sorted, each with the number of its row; templates are left out."""

    grams: NDArray[np.uint64]
    owners: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """N-grams of each held-out row."""
    places: NDArray[np.int64]
    """Where each held-out row stands in the file; ordered by id, so that the first of equal ones is the same in any order."""

    @staticmethod
    def of(rows: Path, held_out: pl.DataFrame, step: SplitStep) -> _Index:
        ordered = held_out.sort("id", "row")
        places = ordered["row"].to_numpy().astype(np.int64)
        groups = ordered["group"].rank("dense").to_numpy().astype(np.int64)
        by_place = np.argsort(places)
        found = [
            (grams, by_place[np.searchsorted(places[by_place], owners)])
            for _, grams, owners in _row_grams(rows, places[by_place], step)
        ]
        grams = np.concatenate([g for g, _ in found]) if found else np.empty(0, np.uint64)
        owners = np.concatenate([o for _, o in found]) if found else np.empty(0, np.int64)
        most = max(TEMPLATE_LEAST, TEMPLATE_SHARE * len(np.unique(groups)))
        spread = pl.DataFrame({"gram": grams, "group": groups[owners]}).unique().group_by("gram").len()
        templates = spread.filter(pl.col("len") > most)["gram"].to_numpy()
        own = ~np.isin(grams, templates)
        grams, owners = grams[own], owners[own]
        order = np.argsort(grams, kind="stable")
        return _Index(grams[order], owners[order], np.bincount(owners, minlength=len(places)), places)

    def highest(self, grams: NDArray[np.uint64], owners: NDArray[np.int64]) -> pl.DataFrame:
        """For each owner of n-grams that stand here: the highest share of a held-out row's n-grams, and that row."""
        low = np.searchsorted(self.grams, grams, "left")
        hits = np.searchsorted(self.grams, grams, "right") - low
        asked = np.repeat(owners, hits)
        within = np.arange(len(asked)) - np.repeat(np.cumsum(hits) - hits, hits)
        held = self.owners[np.repeat(low, hits) + within]
        pairs, counts = np.unique(asked * len(self.places) + held, return_counts=True)
        asked, held = np.divmod(pairs, max(len(self.places), 1))
        overlap = counts / self.sizes[held]
        # Within a row the pairs stand in the order of ``held``: of equal overlaps the first one counts.
        starts = np.flatnonzero(np.diff(asked, prepend=-1))
        highest = np.maximum.reduceat(overlap, starts) if len(starts) else overlap
        best = np.flatnonzero(overlap == np.repeat(highest, np.diff(starts, append=len(asked))))
        _, first = np.unique(asked[best], return_index=True)
        chosen = best[first]
        return pl.DataFrame(
            {"row": asked[chosen], "overlap": overlap[chosen], "held_out": self.places[held[chosen]]},
            schema={"row": pl.UInt32, "overlap": pl.Float64, "held_out": pl.UInt32},
        )


def _row_grams(
    rows: Path, places: NDArray[np.int64], step: SplitStep
) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.int64]]]:
    """Block by block: place of its first row, hashes of the distinct n-grams of the rows at ``places``, and their places."""
    for begin, block in blocks(rows, ["messages"]):
        wanted = places[(places >= begin) & (places < begin + len(block))] - begin
        if len(wanted):
            grams, owners = distinct_ngrams(compared_texts(block[wanted.tolist()], step.compare), step.ngram)
            yield begin, grams, wanted[owners] + begin


def distinct_ngrams(texts: Sequence[str], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the distinct n-grams of each text, and the number of the text each belongs to.

    The sets of ``text.ngrams``: a text of fewer than n tokens is one n-gram, one without tokens has none.
    """
    words = hash_tokens(texts)
    shingles = hash_shingles(words, texts, n)
    owners = np.repeat(np.arange(len(texts)), np.diff(shingles.offsets_N))
    spoken = (np.diff(words.offsets_N) > 0)[owners]
    pairs = pl.DataFrame({"gram": shingles.hashes_S[spoken], "owner": owners[spoken]}).unique(maintain_order=True)
    return pairs["gram"].to_numpy(), pairs["owner"].to_numpy()


def _straddling(kept: pl.DataFrame, step: SplitStep) -> dict[str, int]:
    """How many prompts, compared texts and clusters stand in more than one split (all must be 0)."""
    labels = {"equal_prompts": "prompt", "equal_texts": "text"}
    if _clusters_together(step):
        labels["divided_clusters"] = "cluster"
    return {
        name: kept.filter(pl.col(label).is_not_null())
        .group_by(label)
        .agg(pl.col("split").n_unique().alias("splits"))
        .filter(pl.col("splits") > 1)
        .height
        for name, label in labels.items()
    }


def _crossing(matched: pl.DataFrame, table: pl.DataFrame, step: SplitStep) -> DataError:
    shown = _named(matched.sort("overlap", descending=True).head(3), table)
    examples = "".join(
        f"\n  row {row_id} holds {overlap:.0%} of the {step.ngram}-grams of held-out row {twin}"
        for row_id, twin, overlap in shown.select("id", "twin", "overlap").iter_rows()
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
    found = _named(matched, table).with_columns(reason=pl.lit("matches_held_out"), detail=detail)
    return found.select([pl.col(name).cast(kind) for name, kind in REJECTS.items()])


def _unused_rejects(unused: pl.DataFrame, room: Mapping[str, tuple[int, bool]]) -> pl.DataFrame:
    details = [f"room for {room[group][0]} more rows when its group came" for group in unused["group"]]
    found = unused.select("row", reason=pl.lit("split_quota"), twin=pl.lit(None, dtype=pl.String)).with_columns(
        pl.Series("detail", details, dtype=pl.String)
    )
    return found.select([pl.col(name).cast(kind) for name, kind in REJECTS.items()])


def _match_verdicts(found: pl.DataFrame, step: SplitStep) -> pl.DataFrame:
    verdicts = found.select(
        "row",
        check=pl.lit("held_out_overlap"),
        value=pl.col("overlap"),
        limit=pl.lit(f"<= {step.max_overlap:g}"),
        passed=pl.col("overlap") <= step.max_overlap,
    )
    return verdicts.select([pl.col(name).cast(kind) for name, kind in VERDICTS.items()])


def _room_verdicts(table: pl.DataFrame, room: Mapping[str, tuple[int, bool]]) -> pl.DataFrame:
    """Rows of each group against the training rows still wanted at its turn, where the size of train is given."""
    judged = table.filter(pl.col("group").is_in(list(room))).with_columns(value=pl.len().over("group"))
    return pl.DataFrame(
        {
            "row": judged["row"],
            "check": ["train_room"] * len(judged),
            "value": judged["value"].cast(pl.Float64),
            "limit": [f"<= {room[group][0]}" for group in judged["group"]],
            "passed": [room[group][1] for group in judged["group"]],
        },
        schema=VERDICTS,
    )


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
