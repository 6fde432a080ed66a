"""An answer without its prompt: what stands before it, and that it is the same tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from encoding import encode_row
from posttrain.encode.alone import answer_opening, answers_alone
from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import Encoded
from posttrain.errors import TemplateError
from posttrain.types import Message, Origin, SftRow, Tokens


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("chatml", "<|im_start|>assistant\n"),
        ("llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("gemma", "<s><start_of_turn>model\n"),  # the template writes the beginning token
        ("zephyr", "<|assistant|>\n"),
        ("mistral", "<s>"),  # no header: the end of the user turn is all there is
        ("white_space", "\n\n### Assistant:"),
    ],
)
def test_the_opening_is_the_beginning_token_and_the_header(
    golden: Callable[..., ChatTemplate], name: str, opening: str
) -> None:
    template = golden(name)
    assert template.tokenizer.decode(answer_opening(template).tolist()) == opening


def test_a_template_that_refuses_a_user_turn_is_an_error(golden: Callable[..., ChatTemplate]) -> None:
    tokenizer = golden("chatml").tokenizer
    with pytest.raises(TemplateError, match="refuses a single user turn: no!"):
        answer_opening(ChatTemplate(tokenizer, "{{ raise_exception('no!') }}"))


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral", "zephyr"])
def test_answers_alone_are_the_supervised_tokens_behind_the_opening(
    golden: Callable[..., ChatTemplate], name: str
) -> None:
    template = golden(name)
    turns = ("user", "How are you today?"), ("assistant", "Hello!"), ("user", "你好"), ("assistant", "今天天气很好。")
    row = SftRow(tuple(Message(role, text) for role, text in turns), Origin("f", 1), "s")  # type: ignore[arg-type]
    encoded = encode_row(row, template, 1000)
    assert isinstance(encoded, Encoded)
    opening = answer_opening(template)
    alone = [one for example in encoded.examples for one in answers_alone(example, opening)]
    assert len(alone) == 2
    assert [one.ids_T[: len(opening)].tolist() for one in alone] == [opening.tolist()] * 2
    answers = [one.ids_T[len(opening) :] for one in alone]
    together = np.concatenate([example.ids_T[example.weights_T != 0] for example in encoded.examples])
    assert np.concatenate(answers).tolist() == together.tolist()
    assert [one.supervised for one in alone] == [len(answer) for answer in answers]
    assert "天气" in template.tokenizer.decode(answers[1].tolist())


def test_runs_are_cut_at_the_edges() -> None:
    weights = np.array([0, 1, 0.5, 0, 0, 2], np.float32)
    alone = answers_alone(Tokens(np.arange(10, 16, dtype=np.int32), weights, "r"), np.array([1, 2], np.int32))
    assert [one.ids_T.tolist() for one in alone] == [[1, 2, 11, 12], [1, 2, 15]]
    assert [one.weights_T.tolist() for one in alone] == [[0, 0, 1, 0.5], [0, 0, 2]]
    assert [(one.row_id, one.part) for one in alone] == [("r", 0), ("r", 1)]
