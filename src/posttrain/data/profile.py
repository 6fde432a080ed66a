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
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.artifacts import write_json
from posttrain.data.chain_profile import chain_facts
from posttrain.data.engine import map_rows
from posttrain.data.language import identifier, identifier_words, language_of
from posttrain.data.profile_records import (
    Column,
    CounterName,
    Covering,
    Histogram,
    LanguageShare,
    Lengths,
    MetaKey,
    OverLimit,
    Part,
    Profile,
    ProfiledFile,
    RepliesCompared,
    ReplyLengths,
    TurnCount,
    Turns,
)
from posttrain.data.prose import parts_of
from posttrain.data.rows import LINEAGE, REQUIRED, SCHEMA, conversations, rejected_sides, shared_row_kind
from posttrain.data.steps import Progress, StepRun, count_rows
from posttrain.data.text import tokens
from posttrain.errors import DataError
from posttrain.types import Message, RowKind

PROFILE_SCHEMA = 1
LIMITS = (512, 1024, 2048, 4096)
COVER = 0.95
BINS = 40
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
    row_kind = shared_row_kind(files)
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
        preferences=_preferences(table, row_kind),
        languages=_languages(table),
        language_rule=identifier_words("auto"),
        sources=_parts(table, "source"),
        splits=_parts(table, "split") if table["split"].null_count() < len(table) else (),
        **chain_facts(chain)._asdict(),
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
            *_reply_columns(block, counter),
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


# ---- preferences ---------------------------------------------------------------------------------------------------

_REPLY_COLUMNS: dict[str, Any] = {"reply": pl.UInt32, "rejected_reply": pl.UInt32}
_REPLY_QUANTILES = [0.5, 0.9, 0.95, 1.0]


def _reply_columns(block: pl.DataFrame, counter: TokenCounter) -> list[pl.Series]:
    """Of every row of a block the tokens of its reply (the chosen one, the judged one) and of the rejected one; null elsewhere.

    Only the assistant's turns count.
    """
    prompts = block["prompt_turns"].to_list()
    if None in prompts:
        return [
            pl.Series(name, [None], dtype=kind).new_from_index(0, len(block)) for name, kind in _REPLY_COLUMNS.items()
        ]
    replies = [turns[begin:] for turns, begin in zip(conversations(block), prompts, strict=True)]
    rejected = [] if block["rejected"].null_count() else list(rejected_sides(block))
    lengths: tuple[list[int], list[int] | list[None]]
    lengths = _reply_lengths(replies, counter), _reply_lengths(rejected, counter) if rejected else [None] * len(block)
    return [
        pl.Series(name, values, dtype=_REPLY_COLUMNS[name])
        for name, values in zip(_REPLY_COLUMNS, lengths, strict=True)
    ]


def _preferences(table: pl.DataFrame, row_kind: RowKind | None) -> RepliesCompared | None:
    """The numbers of a table with the columns of :func:`_reply_columns` and ``desirable``; None for conversations."""
    if row_kind not in ("pairs", "feedback"):
        return None
    judged = table["desirable"]
    if row_kind == "pairs":
        replies = {"chosen": table["reply"], "rejected": table["rejected_reply"]}
    else:
        replies = {"desirable": table["reply"].filter(judged), "undesirable": table["reply"].filter(~judged)}
    return RepliesCompared(
        kind=row_kind,
        rows=len(table),
        replies={name: _quantiles(lengths) for name, lengths in replies.items() if len(lengths)},
        chosen_longer=_true_share(table["reply"] > table["rejected_reply"]) if row_kind == "pairs" else None,
        desirable=_true_share(judged) if row_kind == "feedback" else None,
    )


def _reply_lengths(replies: Iterable[Sequence[Message]], counter: TokenCounter) -> list[int]:
    return [count.assistant for count in counter.count([(tuple(turns), ()) for turns in replies])]


def _quantiles(lengths: pl.Series) -> ReplyLengths:
    """The smallest lengths that so many of the replies stay within."""
    found = np.quantile(lengths.to_numpy(), _REPLY_QUANTILES, method="inverted_cdf")
    return ReplyLengths(len(lengths), *(int(length) for length in found))


def _true_share(true: pl.Series) -> float:
    return int(true.sum()) / len(true)
