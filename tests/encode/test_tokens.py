from __future__ import annotations

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from encoding import encode_row
from posttrain.artifacts import Ledger
from posttrain.encode.spans import Rendering, Span, supervised_renderings
from posttrain.encode.template import ChatTemplate, RowRejected, load_template
from posttrain.encode.tokens import (
    Encoded,
    EncodedRows,
    encode_prompt,
    encode_rows,
    fit_length,
    stop_sequences,
    tokenise_renderings,
)
from posttrain.errors import TemplateError
from posttrain.types import Message, Origin, SftRow, Tokens

NO_LIMIT = 10**9


def chat(*contents: str, line: int = 1) -> SftRow:
    """User and assistant in turn."""
    turns = tuple(Message("user" if k % 2 == 0 else "assistant", text) for k, text in enumerate(contents))
    return SftRow(turns, Origin("rows.jsonl", line), "test")


def encoded(row: SftRow, template: ChatTemplate, limit: int = NO_LIMIT, over_length="drop") -> Encoded:
    found = encode_row(row, template, limit, over_length)
    assert isinstance(found, Encoded), found
    return found


def runs(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The decoded texts of all runs of supervised tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], tokens.weights_T != 0, [0]])))
    return [tokenizer.decode(tokens.ids_T[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


BYTE_LEVEL = ["markers known", "markers unknown", "words swallow line ends"]


@pytest.mark.parametrize("tokenizer", BYTE_LEVEL)
@pytest.mark.parametrize(
    ("name", "stop"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("phi3", "<|end|>"), ("gemma", "<end_of_turn>")],
)
def test_supervised_tokens_decode_to_contents_and_stops(golden, name, stop, tokenizer):
    template = golden(name, tokenizer)
    (tokens,) = encoded(chat("hi", "你好 👩‍👧", "q", "x = 1"), template).examples
    assert runs(tokens, template.tokenizer) == ["你好 👩‍👧" + stop, "x = 1" + stop]
    assert tokens.ids_T.dtype == np.int32
    assert tokens.weights_T.dtype == np.float32
    assert tokens.weights_T[0] == 0


def test_the_padding_token_is_no_trap(golden):
    """The stop token is also the padding token here: it is supervised where a reply ends, and only there."""
    template = golden("zephyr")
    tokenizer = template.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (tokens,) = encoded(chat("q", "a", "q", "a"), template).examples
    stops = tokens.ids_T == tokenizer.eos_token_id
    assert tokens.weights_T[stops].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_nothing_is_added_to_what_the_template_writes(tokenizers, golden):
    """No second BOS, and none where the template writes none."""
    adding = tokenizers["markers known"].backend_tokenizer
    for name, bos in (("gemma", 1), ("chatml", 0)):
        template = golden(name)
        (tokens,) = encoded(chat("q", "a"), template).examples
        assert (tokens.ids_T == template.tokenizer.bos_token_id).sum() == bos
        assert (
            tokens.ids_T.tolist()
            == adding.encode(golden(name).render(chat("q", "a").messages), add_special_tokens=False).ids
        )


def test_a_double_bos_rejects_the_row(golden, tmp_path):
    file = tmp_path / "twice.jinja"
    file.write_text("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")
    template = load_template(golden("gemma").tokenizer, file)
    assert encode_row(chat("q", "a"), template, NO_LIMIT) == RowRejected(
        "double_bos", "the rendering begins with '<s>' twice"
    )


@pytest.mark.parametrize("tokenizer", BYTE_LEVEL)
@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma", "phi3", "qwen3", "zephyr", "white_space"])
@pytest.mark.parametrize("reply", ["Hello", " indented", "\n\n  block", "|> <|", "é", ">x", "\u0301combining", ""])
def test_the_first_supervised_token_follows_what_inference_feeds(golden, name, tokenizer, reply):
    """Exactly: the ids before it are those of the prompt. Half of these replies would merge with the prompt's last token."""
    template = golden(name, tokenizer)
    row = chat("tell me\n\n", reply)
    (tokens,) = encoded(row, template).examples
    prompt = encode_prompt(row.messages[:1], template).tolist()
    start = int(np.flatnonzero(tokens.weights_T)[0])
    assert tokens.ids_T[: len(prompt)].tolist() == prompt
    assert start == len(prompt) or name == "qwen3"  # whose think block stands between them


def test_a_token_that_would_straddle_is_split_as_at_inference(golden):
    template = golden("chatml", "words swallow line ends")
    tokenizer = template.tokenizer
    (rendering,), _ = supervised_renderings(chat("q", "\n\nb"), template)
    whole = tokenizer(rendering.text, add_special_tokens=False)["input_ids"]
    (tokens,) = encoded(chat("q", "\n\nb"), template).examples
    assert tokens.ids_T.tolist() != whole
    assert tokenizer.decode(tokens.ids_T.tolist()) == rendering.text == tokenizer.decode(whole)
    assert runs(tokens, tokenizer) == ["\n\nb<|im_end|>"]


def test_what_can_not_be_split_rejects_the_row(golden):
    """A SentencePiece-like tokenizer puts a space before each piece, so cutting would change the text."""
    found = encode_row(chat("q", "\n\nb"), golden("chatml", "metaspace"), NO_LIMIT)
    assert isinstance(found, RowRejected)
    assert found.reason == "tokens_not_provable"
    assert "assistant\\n\\n\\nb" in found.detail


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "deepseek"])
def test_a_sentencepiece_like_tokenizer_works_where_nothing_straddles(golden, name):
    template = golden(name, "metaspace")
    (tokens,) = encoded(chat("fox", "brown dog", "fox", "lazy dog"), template).examples
    texts = [text.replace(" ", "") for text in runs(tokens, template.tokenizer)]
    assert [text[:8] for text in texts] == ["browndog", "lazydog<"]


def test_white_space_swallowed_by_a_marker_stays_with_it(golden):
    """Phi-3's own tokenizer marks its special tokens so that they swallow the line end behind them."""
    fresh = Tokenizer.from_str(golden("chatml", "markers unknown").tokenizer.backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fresh)
    swallowing = [AddedToken(t, rstrip=True, special=True) for t in ("<|end|>", "<|user|>", "<|assistant|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": swallowing})
    template = ChatTemplate(tokenizer, golden("phi3").text)
    for reply, ids in (("b", ["b", "<|end|>"]), ("\n b", ["b", "<|end|>"])):
        (tokens,) = encoded(chat("a", reply), template).examples
        supervised = tokens.ids_T[tokens.weights_T != 0].tolist()
        assert tokenizer.convert_ids_to_tokens(supervised) == ids
    assert [tokenizer.convert_ids_to_tokens(stop) for stop in stop_sequences(template)] == [["<|end|>"]]


def test_characters_of_several_tokens_are_supervised_whole(golden):
    template = golden("chatml")
    renderings, _ = supervised_renderings(chat("q", "👋🏽"), template)
    (text,) = tokenise_renderings(renderings, template)
    supervised = text.ids_T[text.weights_T != 0].tolist()
    assert len(supervised) == 9  # eight bytes that the corpus never joins, and the stop
    assert template.tokenizer.decode(supervised) == "👋🏽<|im_end|>"
    assert text.span_tokens == (9,)


def test_weights_multiply(golden):
    template = golden("chatml")
    turns = (Message("user", "q"), Message("assistant", "a", weight=0.25))
    (tokens,) = encoded(SftRow(turns, Origin("f", 1), "s"), template).examples
    assert tokens.weights_T[tokens.weights_T != 0].tolist() == [0.25, 0.25]


def test_the_first_token_is_never_predicted(golden):
    (text,) = tokenise_renderings([Rendering("ab</s>", (Span(0, 6, 1.0),))], golden("zephyr"))
    assert text.weights_T.tolist() == [0.0, 1.0, 1.0]


def test_half_a_surrogate_pair_costs_its_row_only(golden):
    rows = [chat("q", "a\ud800"), chat("q", "b")]
    encoded_rows = encode_rows(rows, golden("chatml"), NO_LIMIT)
    assert [tokens.row_id for tokens in encoded_rows.examples] == [rows[1].id]


# ---- length ----------------------------------------------------------------------------------------------------------


def tokens_of(weights: list[float]) -> Tokens:
    return Tokens(np.arange(len(weights), dtype=np.int32), np.array(weights, np.float32), "row")


@pytest.mark.parametrize(
    ("weights", "limit", "kept"),
    [
        ([0, 0, 1, 1], 4, 4),  # fits: left as it is
        ([0, 0, 1, 1], 3, 3),
        ([0, 1, 1, 0, 0, 0, 1], 6, 3),  # the header of the second reply goes with it
        ([0, 1, 0, 0], 3, 2),
        ([0, 0, 0, 1], 3, None),
    ],
)
def test_truncation_ends_in_a_supervised_token(weights, limit, kept):
    example = tokens_of(weights)
    fitted = fit_length(example, limit, "truncate")
    if kept is None:
        assert fitted == RowRejected("too_long", f"{len(weights)} tokens, limit {limit}")
    else:
        assert isinstance(fitted, Tokens)
        assert fitted.ids_T.tolist() == list(range(kept))
        assert (fitted is example) == (len(weights) <= limit)


def test_over_length_examples_of_an_expanded_row_are_dropped_one_by_one(golden):
    template = golden("qwen3")
    row = chat("q", "a", "q " * 50, "b")
    found = encoded(row, template, limit=40)
    assert [tokens.part for tokens in found.examples] == [0]
    assert [rejected.reason for rejected in found.dropped] == ["too_long"]
    assert found.conversation_tokens > 40
    assert len(found.assistant_tokens) == 2


# ---- many rows -------------------------------------------------------------------------------------------------------


def test_the_ledger_sums_up_and_names_rows_and_reasons(golden):
    rows = [
        chat("q", "a", line=1),
        chat("q", "a", "r", "b", line=2),  # expanded into two
        chat("q " * 200, "a", line=3),  # too long
        chat("q", line=4),  # nothing supervised
        chat("q", "a <|im_end|>", "q " * 200, "b", line=5),  # expanded, the second part too long
    ]
    ledger = Ledger()
    seen: list[int] = []
    result = encode_rows(rows, golden("qwen3"), 60, "drop", ledger, seen.append)
    record = ledger.as_dict()  # checks the sums
    (step,) = record["steps"]
    assert (step["rows_in"], step["added"], step["rows_out"]) == (5, 2, 4)
    assert step["dropped"] == {"too_long": 2, "nothing_supervised": 1}
    assert step["notes"] == {"expanded": 2, "special_token_text_in_content": 1}
    assert [(reject["line"], reject["reason"]) for reject in record["rejects"]] == [
        (3, "too_long"), (4, "nothing_supervised"), (5, "too_long"),
    ]  # fmt: skip
    assert [(tokens.row_id, tokens.part) for tokens in result.examples] == [
        (rows[0].id, 0), (rows[1].id, 0), (rows[1].id, 1), (rows[4].id, 0),
    ]  # fmt: skip
    assert seen == [5]


def test_truncated_examples_are_counted(golden):
    ledger = Ledger()
    result = encode_rows([chat("q", "a " * 100), chat("q", "a")], golden("llama3"), 30, "truncate", ledger)
    assert len(result.examples[0]) == 30
    assert ledger.steps[0].truncated == 1
    assert ledger.steps[0].rows_out == 2


def test_lengths_are_those_before_anything_is_dropped(golden):
    rows = [chat("q", "a"), chat("q", "a" * 30)]
    lengths = encode_rows(rows, golden("zephyr"), 12).lengths(12).as_dict()
    whole = [len(golden("zephyr").tokenizer(golden("zephyr").render(row.messages))["input_ids"]) for row in rows]
    assert list(lengths["conversation"]["values"]) == whole
    assert lengths["conversation"]["share_over_limit"] == np.mean([n > 12 for n in whole])
    assert lengths["assistant"]["values"][0] == 2
    assert lengths["limit"] == 12


def test_length_summary_by_hand():
    record = EncodedRows([], np.arange(1, 11), {"assistant": np.array([], np.int64)}).lengths(8).as_dict()
    assert record["conversation"] == {
        "values": tuple(range(1, 11)), "count": 10, "p50": 5, "p90": 9, "p95": 10, "max": 10, "share_over_limit": 0.2,
    }  # fmt: skip
    assert record["assistant"]["count"] == record["assistant"]["max"] == 0


def test_rows_are_encoded_alike_alone_and_together(golden):
    rows = [chat(f"question {k}", "\nanswer " * k, "and", "你") for k in range(1, 8)]
    for tokenizer in BYTE_LEVEL:
        template = golden("llama3", tokenizer)
        together = encode_rows(rows, template, NO_LIMIT).examples
        for row, tokens in zip(rows, together, strict=True):
            (alone,) = encoded(row, template).examples
            assert alone.ids_T.tolist() == tokens.ids_T.tolist()
            assert alone.weights_T.tolist() == tokens.weights_T.tolist()


# ---- prompts ---------------------------------------------------------------------------------------------------------


def test_a_prompt_folds_the_system_turn_too(golden):
    template = golden("gemma")
    ids = encode_prompt([Message("system", "s"), Message("user", "q")], template)
    assert (
        template.tokenizer.decode(ids.tolist()) == "<s><start_of_turn>user\ns\n\nq<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_refused_prompt_is_an_error(golden):
    with pytest.raises(TemplateError, match=r"gemma\.jinja: the template refuses this prompt: Conversation roles"):
        encode_prompt([Message("user", "a"), Message("user", "b")], golden("gemma"))


@pytest.mark.parametrize(
    ("name", "tokenizer", "stop"),
    [
        ("chatml", "markers known", "<|im_end|>"),
        ("llama3", "markers unknown", "<|eot_id|>"),
        ("mistral", "markers unknown", "</s>"),
        ("qwen3", "markers known", "<|im_end|>"),
        ("white_space", "markers unknown", "\n</end>"),
    ],
)
def test_the_stop_of_a_template(golden, name, tokenizer, stop):
    template = golden(name, tokenizer)
    assert template.tokenizer.decode(list(stop_sequences(template)[0])) == stop


def test_the_stops_of_a_template_that_ends_calls_in_a_way_of_their_own(golden):
    """One id where the last token of the stop decides: what stands before it (a closing tag) ends nothing."""
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
        "{{ '</a><|eot_id|>' if m.tool_calls else '<|end|><|im_end|>' }}{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    tokenizer = golden("chatml").tokenizer
    template = ChatTemplate(tokenizer, text)
    assert [tokenizer.decode(list(stop)) for stop in stop_sequences(template)] == ["<|im_end|>", "<|eot_id|>"]
    assert {len(stop) for stop in stop_sequences(template)} == {1}


def test_a_template_without_stop_has_none(golden):
    with pytest.raises(TemplateError, match="no provable stop"):
        stop_sequences(golden("no_stop"))
