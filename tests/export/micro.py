"""Micro models with real tokenizers, made in code: byte-level BPE with every way of cutting, and SentencePiece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from families import micro_model
from posttrain.model.gguf.vocabulary import PRE_TOKENIZERS

TEXTS = (
    "What is the capital of France? It is Paris, of course; don't you know? We've all been there.",
    "\u8bf7\u7528\u4e00\u53e5\u8bdd\u4ecb\u7ecd\u5317\u4eac\u3002\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd\u3002",
    "Add 1234 and 5678:\n\n  1234 + 5678 = 6912.\tThat's it!\n\n\n   Done",
    "def f(x):\n    return x ** 2  # the square, e.g. f(12) == 144",
)
"""What tokenizers are trained on, and what they are compared on."""
CHAT = (
    "{% for m in messages %}{{ '<|turn|>' + m.role + '\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|pad|>", "<|turn|>", "<|end|>")
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 96}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama-llama3": {},
    "llama-linear": {},
    "llama-yarn": {},
    "mistral": {"head_dim": 32, "sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"head_dim": 32},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 2048},
    "phi3-longrope": {"hidden_size": 32},
    "gemma3": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "num_hidden_layers": 7,
        "sliding_window": 16,
        "layer_types": None,
    },
}
"""Name -> changes to the family of that name (what stands before a last dash is the family where there is none)."""


def gpt2_tokenizer(pre: str = "gpt-2") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that cuts text as llama.cpp's pre-tokenizer of this name."""
    *cuts, _ = next(rules for rules, name in PRE_TOKENIZERS.items() if name == pre)
    core = Tokenizer(models.BPE(ignore_merges=next(r[-1] for r, n in PRE_TOKENIZERS.items() if n == pre)))
    steps = []
    for kind, rule in cuts:
        match kind:
            case "Split":
                steps.append(pre_tokenizers.Split(Regex(rule), "isolated"))
            case "Digits":
                steps.append(pre_tokenizers.Digits(rule))
            case "ByteLevel":
                steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule))
    core.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    return _wrapped(core)


def spm_tokenizer(prefix: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them: characters, merges, bytes for what it has not seen."""
    seen = sorted({c for text in TEXTS[:1] + TEXTS[2:] for c in text.replace(" ", "\u2581")})
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=seen, show_progress=False)
    trained.train_from_iterator([text.replace(" ", "\u2581") for text in TEXTS[:1] + TEXTS[2:]] * 3, trainer)
    learned = json.loads(trained.to_str())["model"]
    vocabulary = {token: n for n, token in enumerate(["<unk>", *SPECIAL])}
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    for token in sorted(learned["vocab"], key=learned["vocab"].get):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in learned["merges"]]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "\u2581")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix else replace
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    return _wrapped(core, unk_token="<unk>")


def _wrapped(core: Tokenizer, **more: Any) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|turn|>", eos_token="<|end|>", pad_token="<|pad|>", **more
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def micro_chat_model(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, **more: Any) -> Path:
    """A folder with a micro model of an architecture and a tokenizer whose chat template it speaks."""
    tokenizer = tokenizer or gpt2_tokenizer()
    ids = {
        f"{kind}_token_id": tokenizer.convert_tokens_to_ids(SPECIAL[n]) for n, kind in enumerate(("pad", "bos", "eos"))
    }
    family = "llama" if name == "llama-tied" else name
    changes = {**HEADS, "vocab_size": len(tokenizer), **ids, **ARCHITECTURES.get(name, {}), **more}
    if family == "gemma3":
        changes["layer_types"] = [("full" if n == 5 else "sliding") + "_attention" for n in range(7)]
    model = micro_model(family, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
