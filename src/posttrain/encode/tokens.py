"""Proven spans of characters become token ids with loss weights.

A rendering is tokenised whole, without special tokens of the tokenizer's own (the template writes them). Two things
are then held true at every span:

- no token straddles its ends;
- the tokens before its start are those inference feeds: the text up to the start, tokenised by itself, ends in them.

Where one of them fails, the text is cut there and the pieces are tokenised apart, and kept only when they decode to
the same text as the whole; otherwise the example is rejected.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from posttrain.artifacts import Ledger
from posttrain.encode.fitting import Tools, fit
from posttrain.encode.lengths import Lengths, length_statistics
from posttrain.encode.spans import Rendering, Span, prove_turn, supervised_renderings
from posttrain.encode.template import ChatTemplate, RejectedError, RowRejected
from posttrain.errors import TemplateError
from posttrain.types import Message, Origin, PairRow, SftRow, Tokens, ToolCall, UnpairedRow

OverLength = Literal["drop", "truncate"]
ASSISTANT = "assistant"
"""What the replies of conversations are called among lengths."""
ROWS_AT_ONCE = 256
"""Rows whose renderings are tokenised in one call (the tokenizer works on them in parallel)."""


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A rendering as tokens. Token k shows the characters [ends_T[k-1], ends_T[k]): all shown texts make the text.

    A character of several tokens (byte-level BPE) is shown by the first of them; the others show nothing.
    """

    text: str
    ids_T: NDArray[np.int32]
    ends_T: NDArray[np.int64]
    weights_T: NDArray[np.float32]
    span_tokens: tuple[int, ...]
    """Number of tokens of each supervised span."""


Example = TypeVar("Example")
AnyRow = TypeVar("AnyRow", SftRow, PairRow, UnpairedRow)


@dataclass(frozen=True, slots=True)
class Encoded(Generic[Example]):
    """What a row became: training examples, and what was left out of it."""

    examples: Sequence[Example]
    dropped: Sequence[RowRejected] = ()
    """Why there is no example, or not all: the mask or the tokens could not be proven, or they are too many."""
    notes: Collection[str] = ()
    truncated: int = 0
    """Number of examples that were cut at the limit."""
    conversation_tokens: int | None = None
    """Length of the whole conversation (of the longest example), before anything was cut or dropped; None = nothing was proven."""
    assistant_tokens: Sequence[int] = ()
    """Length of every supervised assistant turn with its stop, before anything was cut or dropped."""


@dataclass(frozen=True, slots=True)
class EncodedRows(Generic[Example]):
    """The training examples of all rows, in order, and the lengths before anything was cut or dropped."""

    examples: list[Example]
    conversation_lengths: NDArray[np.int64]
    """Tokens of each conversation whose mask was proven; of preferences those of every side, prompt included."""
    reply_lengths: Mapping[str, NDArray[np.int64]]
    """Tokens of each supervised assistant turn (``assistant``); of preferences those of each reply, by its kind."""

    def lengths(self, limit: int) -> Lengths:
        """Return what stands in lengths.json."""
        replies = np.concatenate(list(self.reply_lengths.values()))
        kinds = {name: length_statistics(n, limit) for name, n in self.reply_lengths.items() if name != ASSISTANT}
        return Lengths(
            limit, length_statistics(self.conversation_lengths, limit), length_statistics(replies, limit), **kinds
        )


# ---- rows ------------------------------------------------------------------------------------------------------------


def encode_rows(
    rows: Sequence[SftRow],
    template: ChatTemplate,
    max_length: int,
    over_length: OverLength = "drop",
    ledger: Ledger | None = None,
    progress: Callable[[int], None] | None = None,
) -> EncodedRows[Tokens]:
    """Encode conversations in order; see `encode_units`."""
    return encode_units(
        rows,
        lambda row: {ASSISTANT: row},
        lambda row, sides: sides[ASSISTANT],
        (ASSISTANT,),
        template,
        max_length,
        over_length,
        ledger,
        progress,
    )


def encode_units(
    rows: Sequence[AnyRow],
    sides: Callable[[AnyRow], Mapping[str, SftRow]],
    made: Callable[[AnyRow, Mapping[str, Encoded[Tokens]]], Encoded[Example]],
    kinds: Sequence[str],
    template: ChatTemplate,
    max_length: int,
    over_length: OverLength,
    ledger: Ledger | None,
    progress: Callable[[int], None] | None,
) -> EncodedRows[Example]:
    """Encode rows in order. Every drop, cut and note goes to step ``encode`` of the ledger.

    sides: the conversations of a row, each with its kind of reply, of all ``kinds``. made: what a row becomes, from what these
    became. progress: called with the number of rows done. The step counts examples: a row that is expanded into n adds n - 1,
    so what went in and was added is what came out and was dropped.
    """
    ledger = Ledger() if ledger is None else ledger
    step = ledger.step("encode", rows_in=len(rows))
    notes: Counter[str] = Counter()
    examples: list[Example] = []
    conversation_lengths: list[int] = []
    reply_lengths: dict[str, list[int]] = {kind: [] for kind in kinds}
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        batch = [(row, sides(row)) for row in rows[begin : begin + ROWS_AT_ONCE]]
        conversations = [side for _, of_row in batch for side in of_row.values()]
        encoded = iter(encode_batch(conversations, template, max_length, over_length))
        for row, of_row in batch:
            found = {kind: next(encoded) for kind in of_row}
            for kind, side in found.items():
                if side.conversation_tokens is not None:
                    conversation_lengths.append(side.conversation_tokens)
                    turns = side.assistant_tokens
                    reply_lengths[kind] += turns if kind == ASSISTANT else (sum(turns),)
            result = made(row, found)
            for rejected in result.dropped:
                ledger.drop(step, row.origin, rejected.reason, rejected.detail)
            step.added += len(result.examples) + len(result.dropped) - 1
            step.rows_out += len(result.examples)
            step.truncated += result.truncated
            notes.update(result.notes)
            examples.extend(result.examples)
        if progress is not None:
            progress(begin + len(batch))
    step.notes.update(sorted(notes.items()))
    lengths = {kind: np.array(values, np.int64) for kind, values in reply_lengths.items()}
    return EncodedRows(examples, np.array(conversation_lengths, np.int64), lengths)


def encode_prompt(messages: Sequence[Message], template: ChatTemplate, tools: Tools = ()) -> NDArray[np.int32]:
    """Encode the ids [T] a model is given to continue a conversation: the template's generation prompt comes last.

    Raises TemplateError where the template refuses the conversation.
    """
    try:
        fitted = fit(messages, tools, template)
        text = fitted.render(fitted.messages, prompt=True)
    except RejectedError as error:
        raise TemplateError(
            f"the template refuses this prompt: {error.rejected.detail}", where=template.name
        ) from error
    return text_ids(text, template)


def stop_sequences(template: ChatTemplate) -> tuple[tuple[int, ...], ...]:
    """The token sequences that end generation as the template trains it: of a reply, then of a call where it ends unlike.

    One id where the stop ends with a token the tokenizer knows, which alone decides (``<|eot_id|>``); the tokens of the
    whole stop where it is ordinary text. Raises TemplateError where a reply has no provable stop.
    """
    question, mark = Message("user", "x"), "\U000f0000"
    call = ToolCall("f", '{"x": "y"}', "call00000")
    described = {
        "name": "f",
        "description": "f",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    }
    reply = SftRow((question, Message("assistant", mark)), Origin(template.name, 1), template.name)
    calling = replace(
        reply,
        messages=(question, Message("assistant", "", tool_calls=(call,))),
        tools=({"type": "function", "function": described},),
    )
    found = [_written_stop(row, template) for row in (reply, calling)]
    if isinstance(found[0], RowRejected):
        raise TemplateError(f"this template has no provable stop: {found[0].detail}", where=template.name)
    return tuple(dict.fromkeys(stop for stop in found if not isinstance(stop, RowRejected)))


def _written_stop(row: SftRow, template: ChatTemplate) -> tuple[int, ...] | RowRejected:
    try:
        turn = prove_turn(fit(row.messages, row.tools, template), 1)
    except RejectedError as error:
        return error.rejected
    rendering = Rendering(turn.text, (Span(turn.start, turn.end, 1.0),))
    tokenised = tokenise_renderings([rendering], template)[0]
    if isinstance(tokenised, RowRejected):
        return tokenised
    first = np.searchsorted(tokenised.ends_T, turn.end - len(turn.stop), "right")
    weighted = np.flatnonzero(tokenised.weights_T)
    if not len(weighted):
        return RowRejected("no_stop", "the tokenizer gives no token for a reply and its stop")
    last = weighted[-1] + 1  # the last token may swallow white space behind the stop
    ids = tuple(int(i) for i in tokenised.ids_T[first:last])
    return ids[-1:] if ids and ids[-1] in template.added_ids else ids


def encode_batch(
    rows: Sequence[SftRow], template: ChatTemplate, max_length: int, over_length: OverLength
) -> list[Encoded[Tokens]]:
    """Turn rows into training examples of at most ``max_length`` tokens. All renderings are tokenised in one call."""
    proven = [_proven(row, template) for row in rows]
    renderings = [r for found in proven if not isinstance(found, RowRejected) for r in found[0]]
    tokenised = iter(tokenise_renderings(renderings, template))
    return [
        Encoded((), (found,))
        if isinstance(found, RowRejected)
        else _assemble(row, list(itertools.islice(tokenised, len(found[0]))), found[1], max_length, over_length)
        for row, found in zip(rows, proven, strict=True)
    ]


def _proven(row: SftRow, template: ChatTemplate) -> tuple[tuple[Rendering, ...], frozenset[str]] | RowRejected:
    try:
        return supervised_renderings(row, template)
    except RejectedError as error:
        return error.rejected


def _assemble(
    row: SftRow,
    texts: Sequence[TokenisedText | RowRejected],
    notes: frozenset[str],
    max_length: int,
    over_length: OverLength,
) -> Encoded[Tokens]:
    good = [text for text in texts if isinstance(text, TokenisedText)]
    dropped = [text for text in texts if isinstance(text, RowRejected)]
    if not good:
        return Encoded((), dropped[:1])
    row_id = row.id
    examples, truncated = [], 0
    for part, text in enumerate(good):
        example = Tokens(text.ids_T, text.weights_T, row_id, part)
        fitting = fit_length(example, max_length, over_length)
        if isinstance(fitting, RowRejected):
            dropped.append(fitting)
        else:
            examples.append(fitting)
            truncated += fitting is not example
    longest = max(len(text.ids_T) for text in good)
    return Encoded(examples, dropped, notes, truncated, longest, [n for text in good for n in text.span_tokens])


def fit_length(example: Tokens, max_length: int, over_length: OverLength) -> Tokens | RowRejected:
    """Return the example itself where it fits, otherwise what the policy makes of it.

    ``truncate`` cuts after ``max_length`` tokens and then removes what is no longer followed by a supervised token, so
    that no half header of the next turn stays behind.
    """
    if len(example) <= max_length:
        return example
    too_long = RowRejected("too_long", f"{len(example)} tokens, limit {max_length}")
    if over_length == "drop":
        return too_long
    supervised = np.flatnonzero(example.weights_T[:max_length])
    if not len(supervised):
        return too_long
    end = int(supervised[-1]) + 1
    return Tokens(example.ids_T[:end], example.weights_T[:end], example.row_id, example.part)


# ---- text to tokens --------------------------------------------------------------------------------------------------


def tokenise_renderings(renderings: Sequence[Rendering], template: ChatTemplate) -> list[TokenisedText | RowRejected]:
    """Tokenise renderings and weigh their tokens. Reasons: ``invalid_unicode``, ``tokens_not_provable``,
    ``double_bos``.
    """
    sound = [_encodable(rendering.text) for rendering in renderings]
    texts = [rendering.text for rendering, good in zip(renderings, sound, strict=True) if good]
    pieces = iter(_tokenise(texts, template))
    seen: dict[str, list[int]] = {}
    return [
        _weigh(rendering, next(pieces), template, seen)
        if good
        else RowRejected("invalid_unicode", "the text holds half of a surrogate pair")
        for rendering, good in zip(renderings, sound, strict=True)
    ]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Piece = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]
"""(ids, starts, ends) of the tokens of one text: the offsets the tokenizer gives, ends rising and closing the text."""


def _tokenise(texts: Sequence[str], template: ChatTemplate) -> list[Piece]:
    if not texts:
        return []
    batch = template.tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    return [
        _piece(text, ids, offsets)
        for text, ids, offsets in zip(texts, batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def text_ids(text: str, template: ChatTemplate) -> NDArray[np.int32]:
    """The ids [T] of a text by itself."""
    return _tokenise([text], template)[0][0]


def _piece(text: str, ids: list[int], offsets: list[tuple[int, int]]) -> Piece:
    starts_ends = np.array(offsets, np.int64).reshape(-1, 2)
    ends = np.maximum.accumulate(starts_ends[:, 1])
    ends[-1:] = len(text)
    return np.array(ids, np.int32), starts_ends[:, 0], ends


def _joined(pieces: Iterable[Piece], lengths: Iterable[int]) -> Piece:
    """One Piece of several that follow each other; ``lengths`` are those of their texts."""
    ids, starts, ends, offset = [], [], [], 0
    for piece, length in zip(pieces, lengths, strict=True):
        ids.append(piece[0])
        starts.append(piece[1] + offset)
        ends.append(piece[2] + offset)
        offset += length
    joined_ends = np.concatenate(ends)
    joined_ends[-1:] = offset
    return np.concatenate(ids), np.concatenate(starts), joined_ends


def _weigh(
    rendering: Rendering, whole: Piece, template: ChatTemplate, seen: MutableMapping[str, list[int]]
) -> TokenisedText | RowRejected:
    piece, cuts = whole, [0]
    while True:
        wrong = _wrong_boundaries(rendering, piece, cuts, template, seen) - set(cuts)
        if not wrong:
            break
        cuts = sorted({*cuts, *wrong})
        texts = [rendering.text[a:b] for a, b in itertools.pairwise([*cuts, len(rendering.text)])]
        piece = _joined(_tokenise(texts, template), map(len, texts))
    if piece is not whole and not _faithful(piece, whole, rendering.text, template):
        around = [rendering.text[max(0, cut - 15) : cut + 15] for cut in cuts[1:]]
        return RowRejected(
            "tokens_not_provable",
            f"tokens cross the edge of an assistant turn and can't be split there without changing the text, at {around[0]!r}",
        )
    ids, _, ends = piece
    bos = template.tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        return RowRejected("double_bos", f"the rendering begins with {template.tokenizer.bos_token!r} twice")
    weights = np.zeros(len(ids), np.float32)
    counts = []
    for span in rendering.spans:
        first, last = (_tokens_before(at, piece) for at in (span.start, span.end))
        weights[first:last] = span.weight
        counts.append(last - first)
    weights[:1] = 0.0  # nothing predicts the first token
    return TokenisedText(rendering.text, ids, ends, weights, tuple(counts))


def _wrong_boundaries(
    rendering: Rendering,
    piece: Piece,
    cuts: Sequence[int],
    template: ChatTemplate,
    seen: MutableMapping[str, list[int]],
) -> set[int]:
    """Find ends of spans that a token straddles, and starts before which the tokens are not those inference feeds."""
    text = rendering.text
    wrong: set[int] = set()
    for span in rendering.spans:
        wrong.update(at for at in (span.start, span.end) if not _clean(at, text, piece, template))
        if span.start not in wrong and not _fed_at_inference(span.start, text, piece, cuts, template, seen):
            wrong.add(span.start)
    return wrong


def _clean(at: int, text: str, piece: Piece, template: ChatTemplate) -> bool:
    """Whether a token ends and the next begins at this character.

    White space that an added token swallows (its ``rstrip`` flag) stays with that token: no other reading exists.
    """
    ids, starts, ends = piece
    k = int(np.searchsorted(ends, at, "right"))
    if k == len(ids):
        return True
    if (k == 0 and at == 0) or (k > 0 and ends[k - 1] == at):
        return bool(starts[k] >= at)
    return int(ids[k]) in template.added_ids and text[at : int(ends[k])].isspace()


def _tokens_before(at: int, piece: Piece) -> int:
    """Count the tokens before a clean boundary, one included that swallows white space beyond it."""
    ends = piece[2]
    k = int(np.searchsorted(ends, at, "right"))
    return k + int(k < len(ends) and (ends[k - 1] if k else 0) < at)


def _fed_at_inference(
    at: int,
    text: str,
    piece: Piece,
    cuts: Sequence[int],
    template: ChatTemplate,
    seen: MutableMapping[str, list[int]],
) -> bool:
    """Whether the tokens before a character are those of the text before it, tokenised by itself.

    Added tokens are split off before anything else, so what stands before the last of them has no say, nor has what
    stands before a cut. That leaves a short header, the same for most rows; ``seen`` remembers its ids.
    """
    ids, _, ends = piece
    k = _tokens_before(at, piece)
    first = _tokens_before(max(cut for cut in cuts if cut < at or cut == 0), piece)
    j = next((j for j in range(k - 1, first, -1) if int(ids[j]) in template.added_ids), first)
    header = text[int(ends[j - 1]) if j else 0 : at]
    if header not in seen:
        seen[header] = text_ids(header, template).tolist()
    return bool(seen[header] == ids[j:k].tolist())


def _faithful(piece: Piece, whole: Piece, text: str, template: ChatTemplate) -> bool:
    """Whether tokens of separately tokenised pieces still say the same text (no space put before each piece)."""
    decoded = _decode(piece[0], template)
    return decoded == text or decoded == _decode(whole[0], template)


def _decode(ids: NDArray[np.int32], template: ChatTemplate) -> str:
    decoded = template.tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(decoded, str), "one list of ids decodes to one text"
    return decoded
