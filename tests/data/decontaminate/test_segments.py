"""What a prompt asks, without options, answer and passage."""

from __future__ import annotations

import pytest

from posttrain.data.decontaminate.proposals import segments

PASSAGE = "The town lies on a river. " * 15


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("What is the name of the capital of France?", ()),
        ("Which of these cities lies in France?\nA. Rome\nB. Paris", ("Which of these cities lies in France?",)),
        ("Which of these cities lies in France? (A) Rome (B) Paris", ("Which of these cities lies in France?",)),
        ("下列哪一个城市位于法国？\nA. 罗马\nB. 巴黎\n答案：B", ("下列哪一个城市位于法国？",)),
        ("下列哪一个城市位于法国？A. 罗马 B. 巴黎", ("下列哪一个城市位于法国？",)),
        ("Name the capital of France now.\nAnswer: Paris", ("Name the capital of France now.",)),
        ("I live in Rome now. Which city is the capital of France?", ("Which city is the capital of France?",)),
        (f"{PASSAGE}The passage says of the town that:", ("The passage says of the town that:",)),
        ("Write three things:\n1. a poem of four lines", ()),  # one line is no choice
        ("Do it so: write this down. Then read it to me.", ()),
        ("Why so?\nA. Rome\nB. Paris", ()),  # too short to name a prompt
        ("", ()),
    ],
)
def test_segments(text: str, others: tuple[str, ...]) -> None:
    assert segments(text) == (text, *others)
