"""Diversity: does a model say different things when it is asked again, and does it speak in set phrases?

Preference tuning narrows what a model says in ways win rates do not show (Kirk et al. 2024, arXiv:2310.06452). The measures are those of
``posttrain.tasks.ngrams``, of several samples of every prompt; ``corpus_*`` are over all replies to all prompts together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import scipy
from annotated_types import Ge, Gt, Le
from numpy.typing import ArrayLike

from posttrain.data.encoders import Encoder, loaded_encoder
from posttrain.data.text import tokens
from posttrain.generate.engine import Sampling
from posttrain.references import NamesFile
from posttrain.stats.intervals import Interval, IntervalSettings
from posttrain.table import grouped
from posttrain.tasks.base import Answer, Findings, Key, Needs, Point, Score, Task, Value
from posttrain.tasks.ngrams import distinct_n, ngram_counts, repetition, self_bleu
from posttrain.tasks.records import Area, Measure, Remark, Result
from posttrain.tasks.rows import plain_tasks

_MEASURES = (
    Measure(
        "distinct_2",
        "Distinct word pairs (one prompt)",
        about="Different word pairs as a share of all, over the samples of a prompt; it falls with the length of replies.",
        headline=True,
    ),
    Measure(
        "self_bleu",
        "Self-BLEU",
        "number",
        "lower",
        "How much of each sample stands in the other samples of its prompt: 0 nothing, 1 all the same.",
        headline=True,
        scale=(0.0, 1.0),
    ),
    Measure(
        "distinct_1",
        "Distinct words (one prompt)",
        about="Different words as a share of all, over the samples of a prompt; it falls with the length of replies.",
    ),
    Measure(
        "embedding_spread",
        "Spread of meaning",
        "number",
        "higher",
        "Mean cosine distance between the sentence vectors of the samples of a prompt: 0 = all say the same.",
        scale=(0.0, 2.0),
    ),
    Measure(
        "repetition",
        "Repetition",
        "share",
        "lower",
        "Share of the runs of four words in a reply that stood in it before (seq-rep-4, arXiv:1908.04319).",
    ),
    Measure("tokens", "Words a reply", "tokens", "neither", "Words of a reply; each Chinese character is one."),
    Measure(
        "corpus_distinct_1",
        "Distinct words (all replies)",
        about="Different words as a share of all, over all replies; compare only equal numbers of replies of like length.",
    ),
    Measure(
        "corpus_distinct_2",
        "Distinct word pairs (all replies)",
        about="Different word pairs as a share of all, over all replies; compare only equal numbers of replies of like length.",
    ),
)
_CORPUS_ORDERS = {"corpus_distinct_1": 1, "corpus_distinct_2": 2}


@dataclass(frozen=True, kw_only=True)
class DiversityBenchmark:
    """Variety of several replies to each prompt: distinct words, self-BLEU, spread of meaning, repetition, length.

    A prompt counts with all its samples or not at all, since every measure depends on their number: where one is missing,
    the others are dropped as ``other_sample_missing``. A reply cut at ``max_tokens`` counts as it stands. Samples are
    seeded by the stage's seed and their number.
    """

    title: ClassVar[str] = "Diversity"
    area: ClassVar[Area] = "diversity"
    needs: ClassVar[Needs] = Needs()

    name: Literal["diversity"]
    path: Annotated[str, NamesFile(builtin="tasks/prompts.yaml")] = "builtin"
    """``builtin`` (posttrain's own prompts), a YAML file of the same form, or rows with ``prompt`` (and ``id``, ``category``, ``language``)."""
    max_prompts: Annotated[int, Ge(1)] | None = None
    """Ask only so many: the first of every category, which keeps its share; null = all."""
    samples: Annotated[int, Ge(2)] = 4
    """Replies drawn to every prompt."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """1 = the model's own distribution."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Draw from the smallest set of tokens whose probability reaches this; 1 = from all."""
    max_tokens: Annotated[int, Ge(1)] = 256
    """Longest reply in tokens."""
    encoder: str | None = None
    """For the spread of meaning: ``use-multilingual`` (extra ``embed``) or the folder of a static embedding model; null = not measured."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Per prompt first; the spread of meaning only where there is an encoder."""
        return tuple(m for m in _MEASURES if m.key != "embedding_spread" or self.encoder is not None)

    def tasks(self) -> tuple[Task, ...]:
        """One task a prompt, with all its samples. Loads the encoder, so that a missing one is told before replies are made.

        Raises:
            ConfigError: a YAML file that is wrong, or an encoder that is unknown or not installed.
            DataError: any other file of prompts that can't be used.

        """
        if self.encoder is not None:
            loaded_encoder(self.encoder)
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)
        return plain_tasks(self.path, self.max_prompts, sampling, self.samples)

    def score(self, task: Task, reply: str) -> Score:
        """Length and repetition of one reply."""
        points = tuple(Point(key, value, task.category) for key, value in reply_measures(reply).items())
        return Score(points, Remark("sample"))

    def corpus(self, answers: Mapping[str, Sequence[Answer]], settings: IntervalSettings) -> Findings:
        """The samples of every prompt together; ``corpus_*`` are of all replies, with jackknife intervals over prompts."""
        values: list[Value] = []
        remarks: dict[Key, Remark] = {}
        results: list[Result] = []
        notes: list[str] = []
        encoder = None if self.encoder is None else loaded_encoder(self.encoder)
        for model, own in answers.items():
            by_prompt = grouped((answer.task.id, answer) for answer in own)
            without_spread = 0
            for samples in by_prompt.values():
                task, of_prompt = samples[0].task, prompt_measures([one.replies[0] for one in samples], encoder)
                values += [Value(model, task.id, key, value, task.category) for key, value in of_prompt.items()]
                without_spread += encoder is not None and "embedding_spread" not in of_prompt
                remarks |= {(model, task.id, one.sample): _remark(one, of_prompt) for one in samples}
            if without_spread:
                notes.append(
                    f"{model}: {without_spread} prompts have no spread of meaning, as fewer than two of their replies have a vector."
                )
            prompts = [[one.replies[0] for one in samples] for samples in by_prompt.values()]
            results += _corpus_results(model, prompts, settings)
        return Findings(values, remarks=remarks, notes=notes, results=results)


# ---- one prompt ----------------------------------------------------------------------------------------------------


def prompt_measures(samples: Sequence[str], encoder: Encoder | None = None) -> dict[str, float]:
    """The measures of the samples of one prompt together; those that are not defined (too short, too few) are left out."""
    found = {
        "distinct_2": distinct_n(samples, 2),
        "self_bleu": self_bleu(samples),
        "distinct_1": distinct_n(samples, 1),
    }
    if encoder is not None:
        found["embedding_spread"] = _spread(samples, encoder)
    return {key: value for key, value in found.items() if value is not None}


def reply_measures(reply: str) -> dict[str, float]:
    """The measures of one reply by itself. A reply of fewer than four words has no repetition."""
    found = {"tokens": float(len(tokens(reply)))}
    if (repeats := repetition(reply)) is not None:
        found |= {"repetition": repeats[0], "longest_repeat": float(repeats[1])}
    return found


def _spread(samples: Sequence[str], encoder: Encoder) -> float | None:
    vectors_ND = encoder.encode(samples)
    vectors_ND = vectors_ND[np.abs(vectors_ND).max(axis=1, initial=0.0) > 0]  # an empty text has no direction
    return embedding_spread(vectors_ND) if len(vectors_ND) > 1 else None


def embedding_spread(embeddings_ND: ArrayLike) -> float:
    """Mean cosine distance over all pairs of samples: 1 - mean of cos(i, j), i < j; 0 = all point the same way.

    At least two rows, none of zeros.
    """
    rows_ND = np.asarray(embeddings_ND, dtype=np.float64)
    scaled_ND = rows_ND / np.abs(rows_ND).max(axis=1, keepdims=True)
    units_ND = scaled_ND / np.linalg.norm(scaled_ND, axis=1, keepdims=True)
    pairs = len(units_ND) * (len(units_ND) - 1) / 2
    # Half the mean squared distance is 1 - cos for unit vectors; around the mean it loses no digits where all are nearly equal.
    centred_ND = units_ND - units_ND.mean(axis=0)
    return float(len(units_ND) * np.square(centred_ND).sum() / 2 / pairs)


def _remark(answer: Answer, of_prompt: Mapping[str, float]) -> Remark:
    labels = {measure.key: measure.label.removesuffix(" (one prompt)") for measure in _MEASURES}
    numbers = ", ".join(f"{labels[key]} {value:.2f}" for key, value in of_prompt.items())
    detail = f"all samples of this prompt: {numbers}" if numbers else ""
    return Remark(f"sample {answer.sample + 1} of {answer.task.samples}", None, detail)


# ---- all replies ---------------------------------------------------------------------------------------------------


def _corpus_results(model: str, prompts: Sequence[Sequence[str]], settings: IntervalSettings) -> list[Result]:
    found = []
    for key, order in _CORPUS_ORDERS.items():
        interval = corpus_distinct(prompts, order, settings.confidence)
        if interval is not None:
            values = sum(map(len, prompts))
            found.append(Result(model, key, None, *interval[:3], values=values, prompts=len(prompts)))
    return found


def corpus_distinct(prompts: Sequence[Sequence[str]], n: int, confidence: float = 0.95) -> Interval | None:
    """Distinct n-grams as a share of all, over all replies (a list a prompt), with an interval by the jackknife over prompts.

    The bootstrap is no use here: a prompt drawn twice repeats its n-grams, so every resample is less distinct than the replies.
    Leaving out one of P prompts at a time repeats nothing. Variance (P - 1) / P times the sum of squares around the mean, which is
    on the large side on average (Efron and Stein 1981, doi:10.1214/aos/1176345462), and Student's t with P - 1 degrees of
    freedom; cut at 0 and 1. None with fewer than two prompts that have n-grams.
    """
    own_P = [sum((ngram_counts(tokens(text), n) for text in texts), Counter[tuple[str, ...]]()) for texts in prompts]
    own_P = [own for own in own_P if own]
    if len(own_P) < 2:
        return None
    holders = Counter(gram for own in own_P for gram in own)
    total_P = np.array([own.total() for own in own_P], dtype=np.float64)
    alone_P = np.array([sum(holders[gram] == 1 for gram in own) for own in own_P], dtype=np.float64)
    estimate = len(holders) / total_P.sum()
    without_P = (len(holders) - alone_P) / (total_P.sum() - total_P)
    variance = (len(own_P) - 1) / len(own_P) * np.square(without_P - without_P.mean()).sum()
    half = scipy.special.stdtrit(len(own_P) - 1, 0.5 + confidence / 2) * np.sqrt(variance)
    return Interval(float(estimate), float(max(0.0, estimate - half)), float(min(1.0, estimate + half)), confidence)
