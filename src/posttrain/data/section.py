"""What a profile of rows says: one page with a section a question, the same in a browser and in a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.artifacts import read_json, write_text
from posttrain.data import profile_records as records
from posttrain.report import html, numbers
from posttrain.report.charts import Bars, Chart, Histogram, Level, Lines, Piece, Series
from posttrain.report.figure import file_name
from posttrain.report.ledger import funnel
from posttrain.report.reading import Gap, Stage, optional, parse
from posttrain.report.values import (
    Answer,
    Beside,
    Block,
    Card,
    Cell,
    Facts,
    Headline,
    Number,
    Page,
    Records,
    Replies,
    Section,
    Table,
    Text,
    table_of,
)
from posttrain.report.words import LANGUAGES, join, plural

PARTS = {"whole": "Whole conversations", "user": "User turns", "assistant": "Assistant turns"}
QUANTILES = {"p50": "P50", "p90": "P90", "p95": "P95", "max": "Longest"}
MOST_COLUMNS = 20
"""Bars of a chart of counts; the last one takes all beyond."""
MOST_SOURCES = 16
CONTAMINATION = {
    "contaminated_prompts": "Prompts found",
    "matching_rows": "Rows that match",
    "removed_rows": "Rows removed",
}
"""Headings of the table of benchmarks where the name of a column would not do."""
SHARES = ("share", "limit")
"""Its columns that are shares."""
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA = re.compile("[\u3041-\u30ff]")


def read_profile(folder: Path) -> records.Profile:
    """The content of ``profile.json``. Raises RunError where it is missing, damaged or of another shape."""
    path = folder / "profile.json"
    return parse(records.Profile, read_json(path), path)


def write_profile_page(folder: Path, title: str) -> Path:
    """Write ``profile.html`` beside ``profile.json``; equal profiles give equal bytes."""
    path = folder / "profile.html"
    write_text(path, html.page(profile_page(read_profile(folder), title)))
    return path


def profile_page(profile: records.Profile, title: str) -> Page:
    """Return the page of a profile."""
    files: list[tuple[str, Cell]] = [(one.file, plural(one.rows, "row")) for one in profile.files[:6]]
    if len(profile.files) > 6:
        files.append(("", f"and {len(profile.files) - 6} more files"))
    return Page(
        kind="posttrain data profile",
        title=title,
        facts=tuple(files),
        headlines=_headlines(profile),
        opening=(Text(paragraph(profile), "lead"), Text(counted(profile), "aside")),
        sections=sections(profile),
        footer="All numbers stand in profile.json beside this page.",
    )


def counted(profile: records.Profile) -> str:
    """What lengths are counted in."""
    if profile.tokenizer.is_model:
        return f"Lengths are in tokens of the model {profile.tokenizer.name}."
    return (
        f"Lengths are in tokens of the {profile.tokenizer.name}; a model's tokenizer usually counts more, so profile with the model"
        " before choosing a sequence length."
    )


def data_sections(stages: Sequence[Stage], gaps: list[Gap]) -> tuple[Section, ...]:
    """Return a section for each data stage: its rows by source, and its profile where one was made."""
    return tuple(_data_section(stage, gaps, several=len(stages) > 1) for stage in stages)


def _data_section(stage: Stage, gaps: list[Gap], *, several: bool) -> Section:
    result = stage.result(records.DataResult, gaps)
    counts = (("To train on", result.train_rows), ("Held out", result.held_out_rows), ("To test", result.test_rows))
    blocks: list[Block] = [
        Facts(tuple((name, Number(number, "count")) for name, number in counts)),
        Table("Rows by source", ("Source", "Rows"), tuple((n, Number(k, "count")) for n, k in result.sources.items())),
    ]
    path = stage.folder.file("profile.json")
    if path.exists():
        profile = optional(gaps, stage, path, "its profile is not shown", lambda path: read_profile(path.parent))
        if profile is not None:
            blocks += [Text(paragraph(profile)), *sections(profile, f"{file_name(stage.name)}-")]
    blocks.append(Records("data", {"stage": stage.name, "result": result}))
    train = plural(result.train_rows, "row") if result.train_rows is not None else "nothing"
    return Section(
        f"Data: {stage.name}" if several else "Data",
        file_name("data", stage.name),
        tuple(blocks),
        folded=True,
        gist=f"{train} to train on, {numbers.count(result.held_out_rows)} held out",
        summary=_sentence(stage, result),
    )


def _sentence(stage: Stage, result: records.DataResult) -> str:
    ledger = stage.ledger
    if ledger is None or result.train_rows is None:
        return ""
    names = sorted(result.sources)
    read_from = join(names) if 0 < len(names) <= 4 else f"{len(names)} sources" if names else "the sources"
    dropped = sum(ledger.dropped.values())
    return (
        f"{plural(ledger.rows_in, 'row')} {'was' if ledger.rows_in == 1 else 'were'} read from {read_from}; "
        f"{numbers.count(dropped) if dropped else 'none'} {'was' if dropped < 2 else 'were'} dropped, "
        f"{numbers.count(result.train_rows)} kept for training and {numbers.count(result.held_out_rows)} held out."
    )


def sections(profile: records.Profile, prefix: str = "") -> tuple[Section, ...]:
    """Return the parts of a profile. ``prefix``: of anchors and of the names of charts, where several profiles share a page."""
    builders = (_funnel, _lengths, _conversations, _sources, _preferences, _contamination, _clusters, _removed, _schema)
    found = (build(profile, prefix) for build in builders)
    return tuple(section for section in found if section is not None)


def paragraph(profile: records.Profile) -> str:
    """Return the set of rows in a few sentences."""
    whole, covering = profile.lengths["whole"], profile.covering
    known = [one for one in profile.languages if one.language not in ("undetermined", "code")][:2]
    languages = " and ".join(f"{numbers.percent(one.share, 0)} {_language(one.language)}" for one in known)
    noun = "conversation" if profile.lengths["assistant"].total else "prompt"
    text = (
        f"{plural(profile.rows, noun)} from {plural(len(profile.sources), 'source')}"
        f"{f', {languages}' if languages else ''}; {numbers.compact(whole.total)} tokens. "
        f"Half of them have at most {whole.p50:,} tokens, the longest {whole.max:,}; a sequence length of "
        f"{covering.rounded:,} covers {numbers.percent(covering.rounded_share)}."
    )
    if profile.funnel:
        first, kept = profile.funnel[0].rows_in, profile.funnel[-1].rows_out
        text += (
            f" {numbers.count(first)} rows came in, {numbers.count(profile.removed_rows)} were dropped on the way"
            f" and {numbers.count(kept)} were kept ({numbers.percent(kept / first if first else None)})."
        )
    if profile.rows != profile.distinct_ids:
        text += f" {numbers.count(profile.rows - profile.distinct_ids)} rows are exact copies of others."
    return text


def _headlines(profile: records.Profile) -> tuple[Headline, ...]:
    whole, covering = profile.lengths["whole"], profile.covering
    row = [
        Headline("Rows", Number(profile.rows, "count"), plural(len(profile.sources), "source")),
        Headline("Tokens", Number(whole.total, "compact"), f"{numbers.fixed(whole.mean, 0)} a conversation"),
        Headline("P50 / P95", f"{whole.p50:,} / {whole.p95:,}", f"tokens, longest {whole.max:,}"),
        Headline(
            "Covers 95%",
            Number(covering.length, "count"),
            f"tokens; {covering.rounded:,} covers {numbers.percent(covering.rounded_share)}",
        ),
        Headline("Turns", Number(profile.turns.mean, digits=1), f"on average, at most {profile.turns.max:,}"),
    ]
    if profile.funnel and (first := profile.funnel[0].rows_in):
        note = f"{profile.removed_rows:,} of {first:,} rows"
        row.append(Headline("Dropped", Number(profile.removed_rows / first, "share"), note))
    return tuple(row)


# ---- the sections --------------------------------------------------------------------------------------------------


def _funnel(profile: records.Profile, prefix: str) -> Section | None:
    if not profile.funnel:
        return None
    lines = table_of(
        "Rows before and after every step",
        profile.funnel,
        ("Step", lambda line: line.step),
        ("Before", lambda line: Number(line.rows_in + line.added, "count")),
        ("After", lambda line: Number(line.rows_out, "count")),
        ("Kept", lambda line: Number(line.kept_share, "share")),
        ("Of all", lambda line: Number(line.share_of_start, "share")),
    )
    why = tuple(
        (reason, line.step, Number(number, "count"), Number(number / (line.rows_in + line.added), "share"))
        for line in profile.funnel
        for reason, number in line.dropped.items()
    )
    chart = funnel(f"{prefix}rows", [(line.step, line.as_step()) for line in profile.funnel], shares=True)
    blocks: list[Block] = [
        Text("Every row that came in is accounted for: kept, or dropped by a step for a reason."),
        Beside((chart, lines)),
    ]
    if why:
        blocks.append(Table("Why rows were dropped", ("Reason", "Step", "Rows", "Share"), why))
    return Section("Funnel", f"{prefix}funnel", tuple(blocks))


def _lengths(profile: records.Profile, prefix: str) -> Section:
    over = (f"Over {one.limit:,}" for one in profile.lengths["whole"].over)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            words,
            *_quantiles(profile.lengths[name]),
            Number(profile.lengths[name].mean, "tokens"),
            Number(profile.lengths[name].total, "count"),
            *(Number(one.share, "share") for one in profile.lengths[name].over),
        )
        for name, words in PARTS.items()
    )
    table = Table("Token lengths", ("Part", *QUANTILES.values(), "Mean", "Sum", *over), rows)
    return Section(
        "Lengths in tokens",
        f"{prefix}lengths",
        (
            _coverage(profile, prefix),
            *(length_histogram(f"{prefix}lengths-{name}", PARTS[name], profile.lengths[name]) for name in PARTS),
            table,
            Text(
                "User and assistant lengths are those of all such turns of a conversation together. A percentile is a length that "
                "occurs: so many percent of the conversations are no longer.",
                "aside",
            ),
        ),
    )


def _quantiles(lengths: records.Lengths | records.ReplyLengths) -> tuple[Cell, ...]:
    return tuple(Number(getattr(lengths, field), "count") for field in QUANTILES)


def length_histogram(name: str, title: str, lengths: records.Lengths, unit: str = "tokens") -> Chart:
    """Return the distribution of lengths, with its quantiles."""
    histogram, tail = lengths.histogram, lengths.histogram.beyond
    beyond = f" The last bar holds all {tail:,} beyond {histogram.edges[-2]:,} {unit}." if tail else ""
    marks = (("P50", lengths.p50), ("P90", lengths.p90), ("P95", lengths.p95))
    return Histogram(
        name=name,
        title=title,
        edges=histogram.edges,
        heights=(*histogram.counts[:-1], histogram.counts[-1] + tail),
        x_label=unit,
        tail=tail,
        marks=tuple(Level(value, f"{text} {value:,}") for text, value in marks),
        caption=f"Mean {numbers.fixed(lengths.mean, 1)} {unit}, longest {lengths.max:,}.{beyond}",
        said=f"Median {lengths.p50:,}, P90 {lengths.p90:,}, P95 {lengths.p95:,}, longest {lengths.max:,}.",
    )


def _coverage(profile: records.Profile, prefix: str) -> Chart:
    """Return which share of the conversations a sequence length covers."""
    whole, covering = profile.lengths["whole"], profile.covering
    end = max(whole.percentiles[99], covering.rounded, 1)
    points = tuple((float(length), float(p)) for p, length in enumerate(whole.percentiles) if length <= end)
    longest = " The longest hundredth is not drawn." if end < whole.max else ""
    covers = f"{covering.length:,} tokens cover {numbers.percent(covering.share, 0)}"
    return Lines(
        name=f"{prefix}coverage",
        title="What a sequence length covers",
        series=(Series("covered", points, "s1", "outline"),),
        y_label="% of conversations no longer",
        x_label="tokens",
        verticals=(Level(covering.length, covers, limit=True),),
        from_zero=True,
        caption=f"{covering.rounded:,}, the next multiple of 64, covers {numbers.percent(covering.rounded_share)}.{longest}",
    )


def _conversations(profile: records.Profile, prefix: str) -> Section:
    turns = profile.turns
    caption = f"User, assistant and tool turns; {numbers.fixed(turns.mean, 1)} on average, at most {turns.max:,}."
    counts = {count.turns: count.rows for count in turns.counts}
    charts: list[Chart] = [
        _columns(f"{prefix}turns", "Turns of a conversation", counts, "turns", "conversations", caption)
    ]
    shown = profile.languages[:MOST_SOURCES]
    if len(shown) > 1:
        shares = [
            (
                _language(one.language),
                f"{one.rows:,} ({numbers.percent(one.share)})",
                ((Piece(one.share, "s1", f"{one.rows:,} rows"),),),
            )
            for one in shown
        ]
        caption = _first(len(shown), len(profile.languages), "languages")
        charts.append(Bars(name=f"{prefix}languages", title="Languages", lanes=tuple(shares), caption=caption))
    alike = f"All rows: {_language(shown[0].language)}. " if len(shown) == 1 else ""
    features = tuple(
        (
            records.FEATURES[name][0] if name in records.FEATURES else name,
            Number(number, "count", note=numbers.percent(number / profile.rows)) if number else "none",
        )
        for name, number in profile.features.items()
    )
    rule = f"{alike}Languages by {profile.language_rule}; code is left out of the text that is looked at."
    return Section("Conversations", f"{prefix}conversations", (*charts, Facts(features), Text(rule, "aside")))


def _sources(profile: records.Profile, prefix: str) -> Section:
    weighted = profile.rows_counted != profile.rows
    shown = profile.sources[:MOST_SOURCES]
    blocks: list[Block] = []
    if len(shown) > 1:
        blocks.append(
            Bars(
                name=f"{prefix}sources",
                title="Shares of rows and of tokens",
                lanes=tuple((part.name, *_share_bars(part)) for part in shown),
                legend=(("rows", "s1"), ("tokens", "s3")),
                caption=_first(len(shown), len(profile.sources), "sources"),
            )
        )
    blocks.append(_parts("Rows and tokens by source", "Source", profile.sources, weighted=weighted))
    if weighted:
        blocks.append(
            Text(
                f"With the rows that a mix repeats an epoch has {numbers.count(profile.rows_counted)} conversations; shares are those of "
                "the rows as they stand.",
                "aside",
            )
        )
    if profile.splits:
        blocks.append(_parts("Rows and tokens by split", "Split", profile.splits, weighted=weighted))
    return Section("Sources and splits" if profile.splits else "Sources", f"{prefix}sources", tuple(blocks))


def _share_bars(part: records.Part) -> tuple[str, tuple[tuple[Piece, ...], ...]]:
    rows, amount = numbers.percent(part.share), numbers.percent(part.token_share or 0.0)
    bars = (
        (Piece(part.share, "s1", f"{rows} of rows"),),
        (Piece(part.token_share or 0.0, "s3", f"{amount} of tokens"),),
    )
    return f"{rows} of rows, {amount} of tokens", bars


def _parts(title: str, first: str, parts: tuple[records.Part, ...], *, weighted: bool) -> Table:
    return table_of(
        title,
        parts,
        (first, lambda part: part.name),
        ("Rows", lambda part: Number(part.rows, "count")),
        ("Share", lambda part: Number(part.share, "share")),
        ("Counted", lambda part: Number(part.rows_counted, "count") if weighted else None),
        ("Tokens", lambda part: Number(part.tokens, "count")),
        ("Share", lambda part: Number(part.token_share, "share")),
        ("Turns", lambda part: Number(part.turns, digits=1)),
        ("User P50", lambda part: Number(part.user_p50, "count")),
        ("Assistant P50", lambda part: Number(part.assistant_p50, "count")),
        ("P95", lambda part: Number(part.p95, "count")),
        (
            "Languages",
            lambda part: ", ".join(f"{_language(n.language)} {numbers.percent(n.share)}" for n in part.languages),
        ),
    ).known()


def _preferences(profile: records.Profile, prefix: str) -> Section | None:
    """What the pairs or judged replies have in common, and what an objective could learn from it by mistake."""
    compared = profile.preferences
    if compared is None:
        return None
    if compared.kind == "feedback":
        text = (
            f"{numbers.count(compared.rows)} judged replies, {numbers.percent(compared.desirable)} of them desirable. "
            "KTO wants both kinds, or weights that make up for it."
        )
    else:
        text = (
            f"{numbers.count(compared.rows)} pairs; the chosen reply is the longer one in {numbers.percent(compared.chosen_longer)} of "
            "them. Far from half, length alone tells the sides apart, and a model can learn just that."
        )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (name.capitalize(), Number(one.rows, "count"), *_quantiles(one)) for name, one in compared.replies.items()
    )
    table = Table("Lengths of replies in tokens", ("Reply", "Rows", *QUANTILES.values()), rows)
    return Section("Preferences", f"{prefix}preferences", (Text(text), table))


def _contamination(profile: records.Profile, prefix: str) -> Section | None:
    found = profile.contamination
    if found is None:
        return None
    headings = tuple(CONTAMINATION.get(name, name.capitalize()) for name in found.columns)
    rows = tuple(tuple(_contaminated(name, row.get(name)) for name in found.columns) for row in found.rows)
    text = "Evaluation prompts that were looked for among the rows, and what was found."
    table = Table("Contamination by benchmark", headings, rows)
    return Section("Contamination", f"{prefix}contamination", (Text(text), table))


def _contaminated(column: str, value: Any) -> Cell:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return Number(value, "share" if column in SHARES else "count")
    return None if value is None else str(value)


def _clusters(profile: records.Profile, prefix: str) -> Section | None:
    clusters = profile.clusters
    if clusters is None:
        return None
    text = (
        f"{plural(clusters.clusters, 'cluster')} hold {plural(clusters.rows, 'row')}; {numbers.count(clusters.dropped)} of them were "
        "dropped in favour of the one that stands for them."
    )
    blocks: list[Block] = [Text(text)]
    if clusters.sizes:
        sizes = {size.size: size.clusters for size in clusters.sizes}
        caption = f"{clusters.clusters:,} clusters of {clusters.rows:,} rows in all."
        blocks.append(
            _columns(f"{prefix}clusters", "Sizes of the clusters", sizes, "rows of a cluster", "clusters", caption)
        )
    if clusters.examples:
        title = "The largest clusters, and those whose rows are least alike"
        replies = Replies(title, tuple(map(_cluster, clusters.examples)))
        blocks.append(Section(title, f"{prefix}cluster-examples", (replies,), folded=True))
    return Section("Near-duplicates", f"{prefix}clusters", tuple(blocks))


def _cluster(cluster: records.Cluster) -> Card:
    answers = tuple(
        Answer(
            member.id,
            tuple(text for text in (member.prompt, member.reply) if text is not None),
            "kept" if member.kept else "dropped",
            member.kept,
            () if member.similarity is None else (f"similarity {numbers.fixed(member.similarity)}",),
        )
        for member in cluster.members
    )
    more = cluster.size - len(cluster.members)
    language = _tag(" ".join(text for answer in answers for text in answer.texts))
    name = f"cluster {cluster.cluster}: {cluster.size:,} rows"
    return Card(name, (), answers, language=language, note=f"and {more:,} more" if more else "")


def _removed(profile: records.Profile, prefix: str) -> Section | None:
    if not profile.removed:
        return None
    inner = [
        Section(
            entry.reason,
            f"{prefix}removed-{place}",
            (Replies(entry.reason, tuple(map(_example, entry.examples))),),
            folded=True,
            gist=f"{plural(entry.rows, 'row')}, {entry.step}",
        )
        for place, entry in enumerate(profile.removed)
    ]
    text = "For every reason a few examples, chosen by content id, so the same rows give the same examples."
    rows = sum(entry.rows for entry in profile.removed)
    return Section("Removed rows", f"{prefix}removed", (Text(text), *inner), folded=True, gist=plural(rows, "row"))


def _example(one: records.RemovedExample) -> Card:
    place = f"{one.file}:{one.line}"
    note = " \N{MIDDLE DOT} ".join(text for text in (one.detail, f"twin {one.twin}" if one.twin else "") if text)
    answers = () if one.reply is None else (Answer("reply", (one.reply,)),)
    turns = () if one.prompt is None else (one.prompt,)
    return Card(place, turns, answers, language=_tag(f"{one.prompt} {one.reply}"), note=note)


def _schema(profile: records.Profile, prefix: str) -> Section:
    columns = tuple((one.name, one.type, Number(one.nulls, "count")) for one in profile.columns)
    keys = tuple(
        (key.key, Number(key.rows, "count"), ", ".join(key.types), ", ".join(key.values)) for key in profile.meta_keys
    )
    meta: Block = Text("No row carries meta.", "aside")
    if keys:
        meta = Table("Keys of meta", ("Key of meta", "Rows", "Types", "Frequent values"), keys)
    text = Text(f"{plural(profile.rows, 'row')}, {plural(profile.distinct_ids, 'different conversation')}.")
    blocks = (text, Table("Columns", ("Column", "Type", "Empty"), columns), meta)
    return Section("Schema", f"{prefix}schema", blocks, folded=True, gist=plural(len(columns), "column"))


# ---- pieces --------------------------------------------------------------------------------------------------------


def _columns(name: str, title: str, counts: Mapping[int, int], x_label: str, y_label: str, caption: str) -> Histogram:
    """Return one bar for each whole number; numbers from the last bar on share it."""
    first, most = min(counts), max(counts)
    last = min(most, first + MOST_COLUMNS - 1)
    heights = dict.fromkeys(range(first, last + 1), 0)
    for number, count in counts.items():
        heights[min(number, last)] += count
    beyond = most > last
    return Histogram(
        name=name,
        title=title,
        edges=tuple(number - 0.5 for number in range(first, last + 2)),
        heights=tuple(heights.values()),
        x_label=x_label,
        y_label=y_label,
        tail=int(beyond),
        whole=True,
        caption=caption + (f" The last bar holds all of {last:,} and more." if beyond else ""),
        said=", ".join(f"{number:,}: {count:,}" for number, count in heights.items() if count) + ".",
    )


def _first(shown: int, of: int, what: str) -> str:
    return f"The first {shown} of {of} {what}." if shown < of else ""


def _language(code: str) -> str:
    return LANGUAGES.get(code, code)


def _tag(text: str) -> str:
    """Return the language tag that chooses the right Han glyphs; nothing for text without them."""
    return "ja" if _KANA.search(text) else "zh" if _HAN.search(text) else ""
