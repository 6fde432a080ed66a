"""Passages that many rows share make no duplicates, and clusters of a large part of a set are told."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.data.dedup.passages import Common
from posttrain.data.shingles import hash_shingles, hash_tokens
from posttrain.data.steps import Decisions

from .test_step import JACCARD, LONG, decide, write

TOOL = (
    "You can look up words in the archive. Call the tool whenever a question asks for something that you do not know, wait for "
    "what comes back, and answer in whole sentences that name the place where you found it. "
    "Do not guess, do not call it twice for the same thing, and say so where the archive has no answer for you at all. "
    "Keep the order in which things were asked, and write the call on a line of its own. Here is the question: "
)
WORDS = [
    "river",
    "stone",
    "paper",
    "winter",
    "garden",
    "engine",
    "window",
    "letter",
    "market",
    "island",
    "copper",
    "bridge",
    "candle",
    "forest",
    "silver",
]


def tasks(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.sample(WORDS, 12)) for _ in range(count)]


def kept_tasks(texts: list[str], decisions: Decisions) -> set[str]:
    return {text for row, text in enumerate(texts) if row not in set(decisions.rejects["row"])}


@pytest.mark.parametrize("method", JACCARD)
def test_tasks_under_one_description_all_stay(tmp_path: Path, method: str) -> None:
    own = tasks(40)
    texts = [TOOL + task for task in own] + [f"{TOOL}{own[3]} please", "Something else entirely, in a row of its own"]
    options: dict[str, Any] = {"distance": 12} if method == "simhash" else {}
    found = decide(write(tmp_path, texts), method=method, **options)
    assert len(found.rejects) == 1
    assert set(found.rejects["row"]) < {3, 40}
    [passage] = found.facts["shared_passages"]
    assert passage["text"].startswith("You can look up words in the archive.")
    assert passage["share"] == pytest.approx(41 / 42, abs=1e-4)
    [warning] = found.facts["warnings"]
    assert "98% of the rows" in warning
    shuffled = random.Random(1).sample(texts, len(texts))
    again = decide(write(tmp_path, shuffled), method=method, **options)
    assert len(kept_tasks(shuffled, again)) == len(texts) - 1

    everything = decide(write(tmp_path, texts), method=method, common_share=1, **options)
    assert len(everything.rejects) > 20
    assert any("one cluster holds" in warning for warning in everything.facts["warnings"])
    assert everything.notes["rows_in_large_clusters"] > 20


def test_few_rows_and_short_phrases_are_no_passage(tmp_path: Path) -> None:
    few = [f"{LONG} {word}" for word in WORDS[:9]]
    assert len(decide(write(tmp_path, few)).rejects) == 8
    phrase = [f"Tell me in a few words all about the {task}" for task in tasks(30)]
    found = decide(write(tmp_path, phrase))
    assert (len(found.rejects), found.facts["common_ngrams"], found.facts["warnings"]) == (0, 0, [])


def test_rows_of_a_passage_alone_are_compared_whole(tmp_path: Path) -> None:
    texts = [TOOL + task for task in tasks(12)] + [TOOL, f"{TOOL} ."]
    found = decide(write(tmp_path, texts))
    assert len(found.rejects) == 1
    assert set(found.rejects["row"]) < {12, 13}


def test_a_large_cluster_is_told_by_every_method(tmp_path: Path) -> None:
    texts = [*(task for task in tasks(60)), *[LONG] * 8]
    found = decide(write(tmp_path, texts), method="exact")
    [warning] = found.facts["warnings"]
    assert "one cluster holds 8 of 68 rows (11.8%), like rows.jsonl:" in warning
    assert found.notes["rows_in_large_clusters"] == 8


def test_what_is_cut_from_a_text_that_is_encoded() -> None:
    """One n-gram of three tokens is common: "the old tool"."""
    common = Common(np.sort(hash_shingles(hash_tokens(["the old tool"]), ["the old tool"], 3).hashes_S), 3)
    texts = ["Take THE old, tool: and dig! Now.", "the old tool", "the old", "Straße: the old tool hier", ""]
    assert common.cut(texts) == ["Take and dig! Now.", "the old tool", "the old", "strasse: hier", ""]
    assert Common().cut(texts) == texts
