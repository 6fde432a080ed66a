"""Tiny real tokenizers, built in code, and the golden templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from posttrain.encode.template import ChatTemplate, load_template

TEMPLATES = Path(__file__).parent / "templates"
MARKERS = (
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
    "<|endoftext|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello! How are you today?",
    "system\nuser\nassistant\nmodel\n\nYou are a helpful assistant.\n\n\n",
    "def main():\n    for k in range(10):\n        print(k)\n\n\n",
    "你好，世界。今天天气很好，我们去公园吧。",
    "|><|<|>|</>><<|| ||  <| |> [/ ] user|> end|>",
] * 4


def byte_level(markers: tuple[str, ...] = (), **options: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE like GPT-2's; ``markers`` become special tokens; the padding token is the stop token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in markers])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def metaspace(markers: tuple[str, ...] = (), scheme: str = "first") -> PreTrainedTokenizerFast:
    """Like SentencePiece's: words carry the space before them, and a text begins as if there were one."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()]
    )
    alphabet = sorted({c for text in CORPUS for c in text})
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def lookahead() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose words swallow line ends behind punctuation (as in Llama 3), with an NFC normaliser."""
    tokenizer = byte_level().backend_tokenizer
    pattern = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+| ?\p{L}+| ?\p{N}{1,3}"
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "markers known": byte_level(MARKERS),
        "markers unknown": byte_level(),
        "words swallow line ends": lookahead(),
        "metaspace": metaspace(MARKERS),
    }


@pytest.fixture(scope="session")
def golden(tokenizers: dict[str, PreTrainedTokenizerFast]) -> Callable[..., ChatTemplate]:
    """The golden template of a name with one of the tokenizers."""
    made: dict[tuple[str, str], ChatTemplate] = {}

    def make(name: str, tokenizer: str = "markers known", **variables: bool) -> ChatTemplate:
        if variables:
            given = "".join(f"{{% set {key} = {str(value).lower()} %}}" for key, value in variables.items())
            source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
            return ChatTemplate(tokenizers[tokenizer], given + source, name)
        if (name, tokenizer) not in made:
            made[name, tokenizer] = load_template(tokenizers[tokenizer], TEMPLATES / f"{name}.jinja")
        return made[name, tokenizer]

    return make
