"""Overlap with reference replies: ROUGE-L and BLEU, for those who ask.

The measures are those of ``posttrain.tasks.ngrams``, on the tokens of ``posttrain.data.text``: not the numbers of sacrebleu's or rouge-score's own
tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from posttrain.data.formats import Format, RowError, detect_format
from posttrain.data.formats.conversations import PROMPTS
from posttrain.data.text import tokens
from posttrain.errors import DataError
from posttrain.generate.engine import Sampling
from posttrain.references import NamesFile
from posttrain.stats.intervals import Interval, IntervalSettings
from posttrain.tasks.base import Answer, Findings, Needs, Point, Score, Task
from posttrain.tasks.ngrams import ORDERS, BleuCounts, added, bleu_counts, bleu_of, rouge_l
from posttrain.tasks.records import Area, Measure, Remark, Result
from posttrain.tasks.rows import file_rows, keep_shares, label_of, row_ids, unbroken
from posttrain.types import Message, Origin, Row, SftRow

_LITTLE = "Says little about open-ended replies: a good one may share few words with the reference."
_MEASURES = (
    Measure(
        "rouge_l",
        "ROUGE-L",
        "number",
        "higher",
        f"F of the longest common subsequence of words with the nearest reference. {_LITTLE}",
        headline=True,
        scale=(0.0, 1.0),
    ),
    Measure(
        "bleu",
        "BLEU (mean of replies)",
        "number",
        "higher",
        f"Share of the runs of one to four words that stand in a reference, less for short replies. {_LITTLE}",
        scale=(0.0, 1.0),
    ),
    Measure(
        "corpus_bleu",
        "BLEU (corpus)",
        "number",
        "higher",
        f"The same with the counts of all replies added up first, as it is usually reported. {_LITTLE}",
        scale=(0.0, 1.0),
    ),
)
_LONGEST_SHOWN = 300
"""Characters of a reference beside a reply."""
_FIX = "give rows with prompt and reference (or references, a list), or of a known format (docs/data-formats.md)"


class _Exchange(NamedTuple):
    """A question and what a good reply says."""

    system: str
    question: str
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OverlapBenchmark:
    """ROUGE-L and BLEU of greedy replies against references.

    A reply cut at ``max_tokens`` is measured as it stands, one without words has no overlap; a prompt without a reply is left out and counted.
    """

    title: ClassVar[str] = "Overlap with references"
    area: ClassVar[Area] = "helpfulness"
    measures: ClassVar[tuple[Measure, ...]] = _MEASURES
    needs: ClassVar[Needs] = Needs()

    name: Literal["overlap"]
    path: Annotated[str, NamesFile()]
    """Rows with ``prompt`` and ``reference`` (or ``references``), or single exchanges in any conversation format (alpaca, question
    and answer, ...); also ``id``, ``category``, ``language``."""
    max_prompts: Annotated[int, Ge(1)] | None = None
    """Ask only so many: the first of every ``category``, which keeps its share; null = all."""
    max_tokens: Annotated[int, Ge(1)] = 512
    """Longest reply in tokens."""

    def tasks(self) -> tuple[Task, ...]:
        """One task a row. Raises DataError where a row is not one question with its answer."""
        rows = list(file_rows(self.path))
        own = any("reference" in row or "references" in row for _, row in rows)
        form = None if own else _conversation_format([row for _, row in rows], self.path)
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        found = []
        for name, (origin, row) in zip(row_ids(rows), rows, strict=True):
            exchange = _exchange(row, origin, form)
            found.append(
                Task(
                    name,
                    (exchange.question,),
                    sampling,
                    category=label_of(row, "category", origin),
                    language=label_of(row, "language", origin),
                    system=exchange.system,
                    expected=exchange.references,
                )
            )
        return tuple(keep_shares(found, [task.category for task in found], self.max_prompts))

    def score(self, task: Task, reply: str) -> Score:
        """Overlap of a reply with its references."""
        references: tuple[str, ...] = task.expected
        rouge = rouge_l(reply, references)
        bleu = bleu_of(_bleu_counts(task, reply), "exponential", effective_order=True)
        first = references[0]
        if len(first) > _LONGEST_SHOWN:
            first = f"{first[:_LONGEST_SHOWN].rstrip()} ..."
        points = (Point("rouge_l", rouge, task.category), Point("bleu", bleu, task.category))
        return Score(points, Remark(f"ROUGE-L {rouge:.1f}", None, f"reference: {first}"))

    def corpus(self, answers: Mapping[str, Sequence[Answer]], settings: IntervalSettings) -> Findings:
        """BLEU of the corpus, with a bootstrap interval over prompts."""
        results = []
        for model, own in answers.items():
            if counts := [_bleu_counts(answer.task, answer.replies[0]) for answer in own]:
                ends = corpus_bleu_interval(counts, settings)[:3]
                results.append(Result(model, "corpus_bleu", None, *ends, values=len(own), prompts=len(own)))
        return Findings(results=results)


def _bleu_counts(task: Task, reply: str) -> BleuCounts:
    return bleu_counts(tokens(reply), [tokens(reference) for reference in task.expected])


def corpus_bleu_interval(counts: Sequence[BleuCounts], settings: IntervalSettings) -> Interval:
    """BLEU of a corpus with the percentile interval of the bootstrap over its texts (Koehn 2004, aclanthology W04-3250)."""
    rows = [(*each.matches_N, *each.ngrams_N, each.length, each.reference_length) for each in counts]
    columns_RC, draw = np.array(rows, dtype=np.int64), np.random.default_rng(settings.seed)
    even_R = np.full(len(counts), 1 / len(counts))
    scores = np.empty(settings.resamples)
    for number in range(settings.resamples):
        *grams, length, reference_length = (draw.multinomial(len(counts), even_R) @ columns_RC).tolist()
        resampled = BleuCounts(tuple(grams[:ORDERS]), tuple(grams[ORDERS:]), length, reference_length)
        scores[number] = bleu_of(resampled, "exponential")
    return Interval(bleu_of(added(counts), "exponential"), *settings.ends(scores), settings.confidence)


# ---- rows ----------------------------------------------------------------------------------------------------------


def _conversation_format(rows: Sequence[Mapping[str, Any]], path: str) -> Format[Any]:
    if not rows:
        raise DataError("there are no rows in this file", where=path, fix=_FIX)
    form = detect_format(rows, path)
    if form.kind != "conversations":
        raise DataError(f"rows of the format {form.name} have no single right reply", where=path, fix=_FIX)
    return form


def _exchange(row: Mapping[str, Any], origin: Origin, form: Format[Any] | None) -> _Exchange:
    """The question of a row with its references; ``form`` None = they are given as such."""
    try:
        if form is None:
            prompt, references = PROMPTS.read(row).row(origin, "").messages, _references(row)
        else:
            parsed: Row = form.read(row).row(origin, "")
            assert isinstance(parsed, SftRow), "the format is one of conversations"
            prompt, references = parsed.messages[:-1], _last_reply(parsed.messages[-1])
    except RowError as error:
        raise DataError(f"{error.reason}: {error.detail}", where=str(origin), fix=_FIX) from None
    roles = [message.role for message in prompt]
    if roles not in (["user"], ["system", "user"]) or not prompt[-1].content.strip():
        turns = ", ".join(roles) or "no prompt"
        raise DataError(f"one question with its answer is needed, not {turns}", where=str(origin), fix=_FIX)
    if not references or not all(tokens(reference) for reference in references):
        raise DataError("a reference has no words in it", where=str(origin), fix="write it, or leave the row away")
    for text in (*(message.content for message in prompt), *references):
        unbroken(text, "the row", origin)
    return _Exchange("" if len(prompt) == 1 else prompt[0].content, prompt[-1].content, references)


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = row.get("references", row.get("reference"))
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError("wrong_shape", "a reference is a text, references are a list of texts")
    return tuple(texts)


def _last_reply(message: Message) -> tuple[str, ...]:
    if message.role != "assistant":
        raise RowError("wrong_shape", f"the last turn is one of the {message.role}, not a reply")
    return (message.content,)
