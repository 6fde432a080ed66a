"""Real rows and the real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.encode.tokens import encode_prompt, encode_rows, stop_sequences
from posttrain.types import Message, Origin, SftRow, Tokens

TEMPLATES = Path(__file__).parent / "templates"


def alpaca(shared_data: Path, name: str) -> list[SftRow]:
    file = shared_data / "llama-factory-demo" / f"data__{name}.json"
    return [
        SftRow(
            (
                Message("user", "\n".join(filter(None, [r["instruction"], r["input"]]))),
                Message("assistant", r["output"]),
            ),
            Origin(file.name, line),
            name,
        )
        for line, r in enumerate(json.loads(file.read_text(encoding="utf-8")), 1)
    ]


def supervised(tokens: Tokens, template: ChatTemplate) -> str:
    return template.tokenizer.decode(tokens.ids_T[tokens.weights_T != 0].tolist())


@pytest.fixture(scope="session")
def smollm(demo_model: Path) -> ChatTemplate:
    return load_template(load_tokenizer(demo_model))


@pytest.mark.shared
@pytest.mark.parametrize("tokenizer", ["markers known", "words swallow line ends"])
@pytest.mark.parametrize(("name", "before", "stop"), [("llama3", "", "<|eot_id|>"), ("mistral", " ", "</s>")])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_real_row_is_encoded(shared_data, golden, language, name, before, stop, tokenizer):
    rows = alpaca(shared_data, f"alpaca_{language}_demo")[::5]
    template = golden(name, tokenizer)
    examples = encode_rows(rows, template, 10**9).examples
    assert len(examples) == len(rows)
    for row, tokens in zip(rows, examples, strict=True):
        reply = row.messages[-1].content
        assert supervised(tokens, template) == before + (reply.strip() if name == "llama3" else reply) + stop


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.demo_model
def test_smollm_on_all_english_rows(shared_data, smollm):
    rows = alpaca(shared_data, "alpaca_en_demo")
    result = encode_rows(rows, smollm, 10**9)
    tokenizer = smollm.tokenizer
    whole = tokenizer([smollm.render(row.messages) for row in rows], add_special_tokens=False)["input_ids"]
    # No reply begins with white space here, so the ids are those of the text tokenised in one piece.
    assert [tokens.ids_T.tolist() for tokens in result.examples] == whole
    for row, tokens in zip(rows, result.examples, strict=True):
        assert supervised(tokens, smollm) == row.messages[-1].content + "<|im_end|>"
        prompt = encode_prompt(row.messages[:-1], smollm)
        assert np.flatnonzero(tokens.weights_T)[0] == len(prompt)
        assert tokens.ids_T[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.demo_model
@pytest.mark.parametrize(
    ("name", "header", "stop"),
    [
        ("llama3", "", "<|eot_id|>"),
        ("qwen3", "<think>\n\n</think>\n\n", "<|im_end|>"),
        ("gemma", "", "<end_of_turn>"),
    ],
)
def test_foreign_templates_with_the_tokenizer_of_smollm(smollm, name, header, stop):
    """Markers the tokenizer does not know become several ordinary tokens; the spans stay exact."""
    template = load_template(smollm.tokenizer, TEMPLATES / f"{name}.jinja")
    turns = (
        Message("user", "你好"),
        Message("assistant", "Hello!"),
        Message("user", "?"),
        Message("assistant", "再见 👋"),
    )
    examples = encode_rows([SftRow(turns, Origin("f", 1), "s")], template, 10**9).examples
    assert "".join(supervised(tokens, template) for tokens in examples) == f"{header}Hello!{stop}{header}再见 👋{stop}"
    assert template.tokenizer.decode(list(stop_sequences(template)[0])) == stop


@pytest.mark.demo_model
def test_smollm_has_one_bos_and_a_supervised_pad_token(smollm):
    (tokens,) = encode_rows(
        [SftRow((Message("user", "a"), Message("assistant", "b")), Origin("f", 1), "s")], smollm, 99
    ).examples
    tokenizer = smollm.tokenizer
    assert tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokens.ids_T[0] == tokenizer.bos_token_id
    assert tokens.ids_T[1] != tokenizer.bos_token_id
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokens.ids_T[np.flatnonzero(tokens.weights_T)[-1]]
