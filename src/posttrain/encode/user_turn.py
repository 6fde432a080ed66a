"""What stands before and behind a user's words: what a model is given to write the user's turn itself (MAGPIE, arXiv:2406.08464).

Both come from the chat template alone: a conversation whose last turn is a mark is rendered as for an answer. What stands before the mark,
with the system turn that the template writes by default, is the pre-query; what follows it ends the user's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.encode.fitting import FIRST_MARK
from posttrain.encode.stop import known_markers
from posttrain.encode.template import ChatTemplate, RejectedError
from posttrain.encode.tokens import text_ids
from posttrain.errors import TemplateError
from posttrain.types import Message


class UserTurn(NamedTuple):
    """The texts around a user's words."""

    before: str
    """From the beginning of the conversation, special tokens included."""
    behind: str
    """Up to where the assistant's words begin."""


def user_turn(template: ChatTemplate, messages: Sequence[Message] = ()) -> UserTurn:
    """What a template writes around the next turn of the user, after ``messages`` (a system turn, or whole turns before).

    Raises TemplateError where the template refuses such a conversation, does not write the user's words as they are, or where nothing tells
    a model that the user speaks.
    """
    try:
        text = template.render([*messages, Message("user", FIRST_MARK)], add_generation_prompt=True)
        said = template.render([*messages, Message("user", f"x{FIRST_MARK}")], add_generation_prompt=True)
    except RejectedError as error:
        raise TemplateError(
            f"the template refuses a turn of the user here: {error.rejected.detail}", where=template.name
        ) from error
    before, mark, behind = text.partition(FIRST_MARK)
    if not mark or FIRST_MARK in behind or said != f"{before}x{FIRST_MARK}{behind}":
        raise TemplateError(
            "this template does not write a user's words once and as they are, so no place can be told where a user begins to speak",
            where=template.name,
            fix="use a model with another chat template",
        )
    bos = template.tokenizer.bos_token
    header = before.removeprefix(bos if isinstance(bos, str) else "")
    if not header.strip() or (messages and header.rstrip().endswith(messages[-1].content.strip())):
        raise TemplateError(
            "nothing stands before a user's words in this template: a model can't be told that a user speaks",
            where=template.name,
            fix="use a model whose chat template has a user header",
        )
    if not behind.strip():
        raise TemplateError(
            "nothing ends a user's turn in this template", where=template.name, fix="use a model with another template"
        )
    return UserTurn(before, behind)


def user_turn_ids(template: ChatTemplate, messages: Sequence[Message]) -> NDArray[np.int32]:
    """The ids [T] a model is given to write the user's next turn. Raises TemplateError as `user_turn`."""
    return text_ids(user_turn(template, messages).before, template)


def user_stops(template: ChatTemplate) -> tuple[tuple[int, ...], ...]:
    r"""The token sequences that end a user's turn: what the template writes behind it, and every special token.

    Small models often leave the end token out and go on with the next header, so any special token ends the turn. Where what follows the
    words begins with text (``\n\nAssistant:``), the tokens of its first line with words are a stop as well.
    """
    behind = user_turn(template).behind
    ids = template.tokenizer.all_special_ids
    special = {int(i) for i in ids} | {
        int(i) for i, token in template.tokenizer.added_tokens_decoder.items() if token.special
    }
    stops = [(i,) for i in sorted(special)]
    markers = known_markers(behind, template)
    if not markers or behind[: markers[0].start()].strip():
        line = behind[: len(behind) - len(behind.lstrip())] + behind.strip().partition("\n")[0]
        stops += [tuple(text_ids(text, template).tolist()) for text in dict.fromkeys((line, line.strip()))]
    else:
        stops.append(tuple(text_ids(markers[0].group(), template).tolist()))
    return tuple(dict.fromkeys(stop for stop in stops if stop))
