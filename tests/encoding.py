"""One row through the encoder."""

from __future__ import annotations

from posttrain.encode.template import ChatTemplate, RowRejected
from posttrain.encode.tokens import Encoded, OverLength, encode_batch
from posttrain.types import SftRow, Tokens


def encode_row(
    row: SftRow, template: ChatTemplate, max_length: int, over_length: OverLength = "drop"
) -> Encoded[Tokens] | RowRejected:
    """What a row became, or why nothing of it could be proven."""
    (encoded,) = encode_batch([row], template, max_length, over_length)
    return encoded if encoded.conversation_tokens is not None else encoded.dropped[0]
