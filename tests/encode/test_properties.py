"""Random conversations through every golden template: what must hold whatever people write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from encoding import encode_row
from posttrain.encode.collate import collate
from posttrain.encode.show import as_json, show_row
from posttrain.encode.spans import supervised_renderings
from posttrain.encode.tokens import Encoded, encode_prompt
from posttrain.types import Message, Origin, SftRow

MARKS = [
    "<|im_start|>assistant\n", "<|im_end|>", "<|im_end|>\n<|im_start|>user\n", "[INST]", " [/INST] ", "</s>", "<s>",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<end_of_turn>\n", "<start_of_turn>model\n",
    "<|end|>\n<|endoftext|>", "<|assistant|>\n", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "{{ messages }}", "{% if x %}",
]  # fmt: skip
PIECES = [
    "", " ", "\n", "\n\n", "\t", " \n ", "\u3000", "\u00a0", "Hello", "world.", "你好", "，世界", "👋🏽", "👩‍👩‍👧", "e\u0301", "\u200b",
    "def f(x):\n    return x\n", "```py\n", "```", "<|", "|>", "><", "<", ">", "user", "assistant\n", "\U000f0000", "\r\n", "0", "a" * 400,
]  # fmt: skip
texts = st.lists(st.sampled_from(MARKS + PIECES) | st.text(max_size=8), max_size=6).map("".join)


@dataclass(frozen=True)
class Layout:
    """What a golden template does, in the words of this test."""

    stop: str
    space: str = ""
    trims: bool = False
    expands: bool = False

    def supervised(self, content: str) -> str:
        return self.space + (content.strip() if self.trims else content) + self.stop


LAYOUTS = {
    "chatml": Layout("<|im_end|>"),
    "llama3": Layout("<|eot_id|>", trims=True),
    "mistral": Layout("</s>", space=" "),
    "gemma": Layout("<end_of_turn>", trims=True),
    "phi3": Layout("<|end|>"),
    "qwen3": Layout("<|im_end|>", space="<think>\n\n</think>\n\n", expands=True),
    "deepseek": Layout("<｜end▁of▁sentence｜>"),
    "zephyr": Layout("</s>"),
}

conversations = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)
relaxed = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def row_of(turns: list[tuple[str, str]]) -> SftRow:
    messages = [message for ask, reply in turns for message in (Message("user", ask), Message("assistant", reply))]
    return SftRow(tuple(messages), Origin("rows.jsonl", 1), "test")


def supervised_text(tokens, tokenizer) -> str:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], tokens.weights_T != 0, [0]]))).reshape(-1, 2)
    return "".join(tokenizer.decode(tokens.ids_T[a:b].tolist()) for a, b in edges)


@pytest.mark.parametrize("tokenizer", ["markers known", "markers unknown"])
@pytest.mark.parametrize("name", LAYOUTS)
@given(turns=conversations)
@example(turns=[("", "\U000ffffd"), ("", "")])  # a sign that renderings are marked with
@relaxed
def test_any_conversation(golden, name, tokenizer, turns):
    layout, template, row = LAYOUTS[name], golden(name, tokenizer), row_of(turns)
    # These two read think blocks out of a content; that has a test of its own.
    assume(name not in ("qwen3", "deepseek") or not any("</think>" in reply for _, reply in turns))
    encoded = encode_row(row, template, 10**9)
    assert isinstance(encoded, Encoded), encoded
    assert not encoded.dropped
    examples = encoded.examples
    expected = [layout.supervised(reply) for _, reply in turns]
    expands = layout.expands and len(turns) > 1
    assert len(examples) == (len(turns) if expands else 1)
    supervised = [supervised_text(tokens, template.tokenizer) for tokens in examples]
    assert supervised == (expected if expands else ["".join(expected)])

    renderings, _ = supervised_renderings(row, template)
    for tokens, rendering in zip(examples, renderings, strict=True):
        assert template.tokenizer.decode(tokens.ids_T.tolist()) == rendering.text
        assert tokens.weights_T[0] == 0
    if not expands:
        assert renderings[0].text == template.render(row.messages)

    # The first supervised token follows exactly what inference feeds.
    prompt = encode_prompt(row.messages[:1], template).tolist()
    if name != "deepseek":  # whose prompt opens a think block that the rendering lacks
        assert examples[0].ids_T[: len(prompt)].tolist() == prompt

    value = as_json(show_row(row, template))
    assert "".join(token["text"] for token in value["tokens"]) == "".join(r.text for r in renderings)
    assert "".join(token["text"] for token in value["tokens"] if token["weight"]) == "".join(expected)

    batch = collate(examples)
    assert len(batch.ids_T) == sum(map(len, examples))
    assert len(batch.predict_S) == sum(tokens.supervised for tokens in examples)


@given(turns=conversations, limit=st.integers(2, 150), name=st.sampled_from(sorted(LAYOUTS)))
@relaxed
def test_truncation_leaves_a_prefix_that_ends_in_a_reply(golden, turns, limit, name):
    template, row = golden(name, "markers unknown"), row_of(turns)
    assume(not any("</think>" in reply for _, reply in turns))
    whole = encode_row(row, template, 10**9)
    cut = encode_row(row, template, limit, "truncate")
    dropped = encode_row(row, template, limit)
    assert isinstance(whole, Encoded)
    assert isinstance(cut, Encoded)
    assert isinstance(dropped, Encoded)
    by_part = {tokens.part: tokens for tokens in whole.examples}
    for tokens in cut.examples:
        full = by_part[tokens.part]
        assert len(tokens) <= limit
        assert tokens.ids_T.tolist() == full.ids_T[: len(tokens)].tolist()
        assert tokens.weights_T.tolist() == full.weights_T[: len(tokens)].tolist()
        assert tokens.weights_T[-1] != 0 or len(tokens) == len(full)
        assert tokens.supervised == np.count_nonzero(full.weights_T[:limit])
    assert len(cut.examples) + len(cut.dropped) == len(whole.examples)
    assert [tokens.part for tokens in dropped.examples] == [p for p, tokens in by_part.items() if len(tokens) <= limit]
    assert cut.assistant_tokens == dropped.assistant_tokens == whole.assistant_tokens


thoughts = st.lists(st.sampled_from(["hm", "你", "\n", "so.", " ", "<|im_end|>", "[INST]"]), max_size=4).map("".join)


@given(turns=st.lists(st.tuples(thoughts, thoughts), min_size=1, max_size=3))
@relaxed
def test_thinking_is_supervised_in_its_own_turn_only(golden, turns):
    """Qwen3's layout: the reasoning in its own field and in a block of the content give the same examples."""
    template = golden("qwen3")
    inside = [Message("assistant", f"<think>\n{thought}\n</think>\n\n{reply}") for thought, reply in turns]
    apart = [Message("assistant", reply, reasoning=thought) for thought, reply in turns]
    for turns_given, kind in ((inside, "inside"), (apart, "apart")):
        messages = [m for message in turns_given for m in (Message("user", "q"), message)]
        encoded = encode_row(SftRow(tuple(messages), Origin("f", 1), "s"), template, 10**9)
        assert isinstance(encoded, Encoded), encoded
        assert len(encoded.examples) == len(turns)
        for tokens, (thought, reply) in zip(encoded.examples, turns, strict=True):
            text = supervised_text(tokens, template.tokenizer)
            answer = reply.lstrip("\n") if kind == "inside" else reply
            if kind == "inside" or thought.strip():
                assert text == "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + answer + "<|im_end|>"
            else:
                assert text.endswith(answer + "<|im_end|>")
