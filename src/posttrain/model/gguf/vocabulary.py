"""The tokenizer of a GGUF file: tokens, how text is cut before they are looked up, special ones, chat template.

llama.cpp has the ways of cutting text built in, by name. A name is written only where the tokenizer's own rules (the JSON of its
``pre_tokenizer``) are the very rules that stand behind it; anything else is refused, never guessed: a near miss loads, and splits
numbers otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from posttrain.encode.template import load_tokenizer
from posttrain.errors import ModelError
from posttrain.model.lineage import Lineage, template_text
from posttrain.types import Message

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = ("ByteLevel", False)
PRE_TOKENIZERS: Mapping[tuple[Any, ...], str] = {
    (("ByteLevel", True), False): "gpt-2",
    (("Digits", True), ("ByteLevel", True), False): "smollm",
    (("Split", _WORDS + r"\p{N}" + _REST), _BYTES, False): "qwen2",
    (("Split", _WORDS + r"\p{N}{1,3}" + _REST), _BYTES, True): "llama-bpe",
    (("Split", _WORDS + r"\p{N}{1,3}" + _REST), _BYTES, False): "dbrx",
    (("Split", _TEKKEN), _BYTES, True): "tekken",
    (("Split", _TEKKEN), _BYTES, False): "tekken",
}
"""Rules of a tokenizer, and whether a word that is a token is taken whole -> llama.cpp's name for them."""
SPACE = "\u2581"
"""How SentencePiece writes a space."""
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")
UNREACHED = -1e9
"""Score of a token that nothing is merged into."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    model: str
    """``gpt2`` (bytes, merges) or ``llama`` (SentencePiece)."""
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_prefix: bool = False
    as_phi3: bool = False
    """Whether special tokens take the white space behind them, as those of Phi-3: llama.cpp lets them where the model's name says so."""


def read_vocabulary(lineage: Lineage, rows: int) -> Vocabulary:
    """The vocabulary of a model with ``rows`` embeddings. Raises ModelError where there is no tokenizer, or llama.cpp would cut text otherwise."""
    tokenizer, where = load_tokenizer(lineage.home), str(lineage.home)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    core = rules["model"]
    if core["type"] != "BPE":
        raise _unknown(f"a tokenizer of the type {core['type']}", where)
    greedy = _takes_space_as_phi3(rules)
    tokens, types = _tokens(rules, rows, greedy, where)
    if core.get("byte_fallback"):
        prefix = _space_prefix(rules, lineage, where)
        scores = _scores(core, tokens)
        return Vocabulary("llama", "default", tokens, types, scores=scores, space_prefix=prefix, as_phi3=greedy)
    if (rules["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise _unknown(f"a tokenizer whose normalizer is {json.dumps(rules['normalizer'])}", where)
    pre = PRE_TOKENIZERS.get((*_cuts(rules["pre_tokenizer"]), bool(core.get("ignore_merges"))))
    if pre is None:
        raise _unknown(f"a tokenizer whose pre_tokenizer is {json.dumps(rules['pre_tokenizer'])}", where)
    merges = tuple(one if isinstance(one, str) else " ".join(one) for one in core["merges"])
    return Vocabulary("gpt2", pre, tokens, types, merges=merges, as_phi3=greedy)


def _unknown(what: str, where: str) -> ModelError:
    return ModelError(f"llama.cpp has no name for {what}", where=where, fix="export with --to hf")


def _cuts(rule: Any) -> tuple[Any, ...]:
    """A pre_tokenizer as a tuple of what decides its cuts."""
    if rule is None:
        return ()
    match rule["type"]:
        case "Sequence":
            return tuple(cut for one in rule["pretokenizers"] for cut in _cuts(one))
        case "Split" if rule["behavior"] == "Isolated" and not rule["invert"] and "Regex" in rule["pattern"]:
            return (("Split", rule["pattern"]["Regex"]),)
        case "Digits":
            return (("Digits", rule["individual_digits"]),)
        case "ByteLevel" if not rule["add_prefix_space"]:
            return (("ByteLevel", rule.get("use_regex", True)),)
    return (("unknown", rule["type"]),)


def _takes_space_as_phi3(rules: Mapping[str, Any]) -> bool:
    """Whether exactly those special tokens take the white space behind them that llama.cpp knows of Phi-3: all but three."""
    takes = {added["content"]: added["rstrip"] for added in rules["added_tokens"] if added["special"]}
    known = {"</s>", *_PHI3_PLAIN} <= takes.keys()
    return known and takes == {token: token not in _PHI3_PLAIN for token in takes}


def _tokens(rules: Mapping[str, Any], rows: int, as_phi3: bool, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and type of every token; rows that no token has are unused ones, added tokens without a row are left out."""
    core, kind = rules["model"], gguf.TokenType
    sentence = bool(core.get("byte_fallback"))
    texts, types = [f"[PAD{i}]" for i in range(rows)], [int(kind.UNUSED)] * rows
    beyond = [token for token, number in core["vocab"].items() if number >= rows]
    if beyond:
        raise ModelError(
            f"the tokenizer has {len(core['vocab']):,} tokens, but the model only {rows:,} embeddings",
            where=where,
            fix="put the tokenizer there that belongs to the weights",
        )
    for token, number in core["vocab"].items():
        byte = sentence and len(token) == 6 and token.startswith("<0x")
        unknown = token == core.get("unk_token")
        texts[number], types[number] = token, int(kind.BYTE if byte else kind.UNKNOWN if unknown else kind.NORMAL)
    for added in rules["added_tokens"]:
        number = added["id"]
        if number >= rows:
            continue
        if added["single_word"] or added["lstrip"] or (added["rstrip"] and not as_phi3):
            raise _unknown(f"{added['content']!r}, a token that takes the white space beside it", where)
        special = added["special"]
        texts[number] = added["content"] if special else added["content"].replace(SPACE, " ")
        if types[number] != kind.UNKNOWN:
            types[number] = int(kind.CONTROL if special else kind.USER_DEFINED)
    return tuple(texts), tuple(types)


def _scores(core: Mapping[str, Any], tokens: tuple[str, ...]) -> tuple[float, ...]:
    """Scores by which SentencePiece merges as the merges of the tokenizer say: the earlier a merge, the higher its result."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(core["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        first.setdefault(left + right, rank)
    return tuple(float(-first[token]) if token in first else UNREACHED for token in tokens)


def _space_prefix(rules: Mapping[str, Any], lineage: Lineage, where: str) -> bool:
    """Whether a space is put before text, behind special tokens as well. Raises ModelError for other rules of white space."""
    normalizers = rules["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizers["normalizers"] if normalizers["type"] == "Sequence" else [normalizers]
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = {"type": "Prepend", "prepend": SPACE}
    cut = rules["pre_tokenizer"]
    if steps in ([replaces], [prepends, replaces]):
        whole = cut is None or (cut["type"] == "Split" and cut["pattern"] == {"String": " "})  # no space is left
        if whole:
            return len(steps) == 2
    if not steps and cut is not None and cut["type"] == "Metaspace" and not cut.get("split", True):
        scheme = cut.get("prepend_scheme")
        if scheme == "never" or (scheme == "first" and lineage.has_template):  # a rendering begins with a special token
            return False
    raise _unknown(f"a tokenizer whose rules of white space are {json.dumps([rules['normalizer'], cut])}", where)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, lineage: Lineage) -> None:
    """Write tokens, special tokens, what ends a reply, and the chat template."""
    tokenizer = load_tokenizer(lineage.home)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    begins, ends = _added_around(tokenizer)
    # what a chat begins with its template says: where it writes no such token, llama.cpp must not add one
    chats = lineage.has_template
    writer.add_add_bos_token(begins and (not chats or _renders_bos(lineage)))
    writer.add_add_eos_token(ends and not chats)
    stops = end_tokens(lineage)
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": stops[0] if stops else tokenizer.eos_token_id,
        "eot": stops[1] if len(stops) > 1 else None,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for name, number in special.items():
        if number is not None and number < len(vocabulary.tokens):
            getattr(writer, f"add_{name}_token_id")(number)
    if chats:
        writer.add_chat_template(template_text(lineage.template))


def end_tokens(lineage: Lineage) -> list[int]:
    """The single tokens that end a reply, the trained one first."""
    return [stop[0] for stop in lineage.stops if len(stop) == 1] if lineage.has_template else []


def _added_around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer puts its first and its last special token around a text."""
    ids = tokenizer("a")["input_ids"]
    return ids[0] == tokenizer.bos_token_id, ids[-1] == tokenizer.eos_token_id and len(ids) > 1


def _renders_bos(lineage: Lineage) -> bool:
    template = lineage.template
    return template.render([Message("user", "x")], add_generation_prompt=True).startswith(
        str(template.tokenizer.bos_token or "\0")
    )
