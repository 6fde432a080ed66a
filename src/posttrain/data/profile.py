"""The data report: what a set of rows consists of, and how the steps before made it what it is.

Read block by block: of every row a few numbers are kept, never its text, so quantiles are exact and a million rows need
little memory. A quantile is the smallest length that at least that share of the rows stays within, so it is a length that occurs,
and P95 of whole conversations is the sequence length that covers 95% of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.artifacts import write_json
from posttrain.data import profile_records as records
from posttrain.data.chain_profile import chain_facts
from posttrain.data.engine import map_rows
from posttrain.data.language import identifier, identifier_words, language_of
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
        texts = "\n".join(text for text in (message.content, message.reasoning, *calls) if text)
        by_role[message.role] += len(tokens(texts))
    return Counts(by_role.total(), by_role["user"], by_role["assistant"])


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
) -> records.Profile:
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
    tables, nulls, meta = list[pl.DataFrame](), Counter[str](), dict[str, Counter[str]]()
    run = StepRun(lambda name: None, workers, progress=progress)
    for path in sizes:
        look = partial(_look, counter=counter)
        for _, block in map_rows(look, path, (*SCHEMA, *LINEAGE), run, f"profile {path.name}"):
            tables.append(block.table)
            nulls.update(block.nulls)
            _add_meta(meta, block.meta)
    table = pl.concat(tables)
    columns = pl.scan_parquet(files[0], glob=False).collect_schema()
    found = records.Profile(
        schema=PROFILE_SCHEMA,
        rows=len(table),
        files=tuple(records.ProfiledFile(path.name, size) for path, size in sizes.items()),
        tokenizer=records.CounterName(counter.name, counter.is_model),
        columns=tuple(records.Column(name, _kind(kind), nulls[name]) for name, kind in columns.items()),
        distinct_ids=table["id"].n_unique(),
        rows_counted=float(table["weight"].sum()),
        features={name: int(table[name].sum()) for name in records.FEATURES},
        meta_keys=_meta_keys(meta),
        turns=_turns(table["turns"].to_numpy()),
        lengths={name: length_summary(table[name].to_numpy(), limits) for name in Counts._fields},
        covering=covering(table["whole"].to_numpy()),
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


class _Seen(NamedTuple):
    """What is kept of a block."""

    table: pl.DataFrame
    """A line a row: id, source, split, weight, language, features, turns and lengths."""
    nulls: Counter[str]
    meta: dict[str, Counter[str]]
    """Key of meta -> type and beginning of its values."""


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
    meta: dict[str, Counter[str]] = {}
    for text in block["meta"].filter(block["meta"] != "{}"):
        for key, value in json.loads(text).items():
            meta.setdefault(key, Counter())[f"{type(value).__name__} {value}"[:META_CHARACTERS]] += 1
    table = block.select(
        "id",
        "source",
        "split",
        pl.col("weight").fill_null(1.0),
        pl.Series("language", [main_language(messages) for messages, _ in talks], dtype=pl.String),
        pl.Series("turns", [sum(m.role != "system" for m in messages) for messages, _ in talks], dtype=pl.UInt32),
        *(
            pl.Series(name, [has(*talk) for talk in talks], dtype=pl.Boolean)
            for name, (_, has) in records.FEATURES.items()
        ),
        *_columns(Counts._fields, counter.count(talks)),
        "desirable",
        *_reply_columns(block, counter),
    )
    return _Seen(table, Counter({name: block[name].null_count() for name in block.columns}), meta)


def _columns(names: Sequence[str], rows: Sequence[Sequence[int | None]]) -> list[pl.Series]:
    return [pl.Series(name, [row[n] for row in rows], dtype=pl.UInt32) for n, name in enumerate(names)]


def main_language(messages: Sequence[Message]) -> str:
    """The language of a conversation's prose."""
    parts = parts_of("\n".join(m.content for m in messages if m.role in ("user", "assistant")))
    return language_of(parts.prose, parts.code_characters, identifier("auto"), LANGUAGE_FLOOR).name


def _add_meta(meta: dict[str, Counter[str]], other: Mapping[str, Counter[str]]) -> None:
    """Count in the values of other rows; of a key with many the frequent ones only, and the rest as one number."""
    for key, counts in other.items():
        if key not in meta and len(meta) == META_KEYS:
            continue
        values = meta.setdefault(key, Counter())
        values.update(counts)
        if len(values) > META_VALUES:
            rest = values.pop("", 0)
            for value, count in _frequent(values)[META_VALUES:]:
                rest += count
                del values[value]
            values[""] = rest


def _frequent(values: Counter[str]) -> list[tuple[str, int]]:
    return sorted(values.items(), key=lambda item: (-item[1], item[0]))


def _kind(kind: pl.DataType) -> str:
    """A type in words: ``list of {role, content, ...}``."""
    if isinstance(kind, pl.List):
        return f"list of {_kind(kind.inner)}"  # type: ignore[arg-type]
    if isinstance(kind, pl.Struct):
        return f"{{{', '.join(one.name for one in kind.fields)}}}"
    return {"String": "text", "Int64": "whole number", "Float64": "number"}.get(str(kind), str(kind))


def _meta_keys(meta: Mapping[str, Counter[str]]) -> tuple[records.MetaKey, ...]:
    """The keys of most rows, with types and a few frequent values."""
    found = []
    for key in sorted(meta, key=lambda key: (-meta[key].total(), key))[:SHOWN_META_KEYS]:
        named = [value.partition(" ") for value, _ in _frequent(meta[key]) if value]
        values = tuple(text for _, _, text in named[:SHOWN_META_VALUES])
        found.append(records.MetaKey(key, meta[key].total(), tuple(sorted({kind for kind, _, _ in named})), values))
    return tuple(found)


# ---- numbers -------------------------------------------------------------------------------------------------------


def length_summary(values: NDArray[Any], limits: Sequence[int]) -> records.Lengths:
    """Exact statistics of lengths: quantiles, a histogram, and what lies over each limit."""
    percents = _quantiles(values, *(np.arange(101) / 100))
    p50, p90, p95 = percents[50], percents[90], percents[95]
    # beyond four times P95 a few very long rows would squeeze all others into one bar
    end = min(percents[100], 4 * p95) or percents[100]
    width = max(1, -(-(end + 1) // BINS))
    edges = [width * index for index in range(-(-(end + 1) // width) + 1)]
    counts, _ = np.histogram(values, bins=np.array(edges) - 0.5)
    over = [(limit, values > limit) for limit in limits]
    return records.Lengths(
        count=len(values),
        total=int(values.sum(dtype=np.int64)),
        mean=float(values.mean()),
        min=percents[0],
        p50=p50,
        p90=p90,
        p95=p95,
        max=percents[100],
        percentiles=tuple(percents),
        histogram=records.Histogram(tuple(edges), tuple(counts.tolist()), beyond=int((values >= edges[-1]).sum())),
        over=tuple(records.OverLimit(limit, int(longer.sum()), float(longer.mean())) for limit, longer in over),
    )


def _quantiles(values: NDArray[Any], *shares: float) -> list[int]:
    """The smallest values that so many of all stay within."""
    found: list[int] = np.quantile(values, shares, method="inverted_cdf").astype(int).tolist()
    return found


def covering(values: NDArray[Any]) -> records.Covering:
    """The sequence length that covers 95% of the conversations, and the same rounded up to a multiple of 64."""
    (length,) = _quantiles(values, COVER)
    rounded = max(64, -(-length // 64) * 64)
    return records.Covering(COVER, length, rounded, float((values <= rounded).mean()))


def _turns(values: NDArray[Any]) -> records.Turns:
    kinds, rows = np.unique(values, return_counts=True)
    counts = zip(kinds.tolist(), rows.tolist(), strict=True)
    return records.Turns(float(values.mean()), int(values.max()), tuple(records.TurnCount(*count) for count in counts))


def _languages(table: pl.DataFrame) -> tuple[records.LanguageShare, ...]:
    counts = table.group_by("language").len().sort(["len", "language"], descending=[True, False])
    return tuple(records.LanguageShare(name, rows, rows / len(table)) for name, rows in counts.iter_rows())


def _parts(table: pl.DataFrame, column: str) -> tuple[records.Part, ...]:
    """One line a source or split: rows, what they count, tokens, typical lengths, main languages."""
    total = int(table["whole"].sum())
    order = {"train": 0, "validation": 1, "test": 2}
    found = []
    for part in table.with_columns(pl.col(column).fill_null(NO_SPLIT)).partition_by(column):
        whole = part["whole"].to_numpy()
        amount = int(whole.sum(dtype=np.int64))
        found.append(
            records.Part(
                name=part[column][0],
                rows=len(part),
                share=len(part) / len(table),
                rows_counted=float(part["weight"].sum()),
                tokens=amount,
                token_share=amount / total if total else None,
                turns=float(part["turns"].cast(pl.Float64).mean()),  # type: ignore[arg-type]
                user_p50=_quantiles(part["user"].to_numpy(), 0.5)[0],
                assistant_p50=_quantiles(part["assistant"].to_numpy(), 0.5)[0],
                p95=_quantiles(whole, 0.95)[0],
                languages=_languages(part)[:3],
            )
        )
    return tuple(sorted(found, key=lambda one: (order.get(one.name, 3), -one.rows, one.name)))


# ---- preferences ---------------------------------------------------------------------------------------------------


def _reply_columns(block: pl.DataFrame, counter: TokenCounter) -> list[pl.Series]:
    """Of every row of a block the tokens of its reply (the chosen one, the judged one) and of the rejected one; null elsewhere.

    Only the assistant's turns count.
    """
    prompts, none = block["prompt_turns"].to_list(), [None] * len(block)
    replies: list[int] | list[None] = none
    rejected: list[int] | list[None] = none
    if None not in prompts:
        turns = [messages[begin:] for messages, begin in zip(conversations(block), prompts, strict=True)]
        replies = _reply_lengths(turns, counter)
        if not block["rejected"].null_count():
            rejected = _reply_lengths(rejected_sides(block), counter)
    return _columns(("reply", "rejected_reply"), list(zip(replies, rejected, strict=True)))


def _reply_lengths(replies: Iterable[tuple[Message, ...]], counter: TokenCounter) -> list[int]:
    return [count.assistant for count in counter.count([(turns, ()) for turns in replies])]


def _preferences(table: pl.DataFrame, row_kind: RowKind | None) -> records.RepliesCompared | None:
    """The numbers of a table with the columns of :func:`_reply_columns` and ``desirable``; None for conversations."""
    if row_kind not in ("pairs", "feedback"):
        return None
    judged = table["desirable"]
    if row_kind == "pairs":
        replies = {"chosen": table["reply"], "rejected": table["rejected_reply"]}
    else:
        replies = {"desirable": table["reply"].filter(judged), "undesirable": table["reply"].filter(~judged)}
    longer = table["reply"] > table["rejected_reply"]
    return records.RepliesCompared(
        kind=row_kind,
        rows=len(table),
        replies={
            name: records.ReplyLengths(len(lengths), *_quantiles(lengths.to_numpy(), 0.5, 0.9, 0.95, 1.0))
            for name, lengths in replies.items()
            if len(lengths)
        },
        chosen_longer=int(longer.sum()) / len(table) if row_kind == "pairs" else None,
        desirable=int(judged.sum()) / len(table) if row_kind == "feedback" else None,
    )
