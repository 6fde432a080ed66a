"""An answer without its prompt: what IFD compares an answer under its prompt with (Li et al. 2024, arXiv 2308.12032).

Both sides are the same tokens: those the model writes, its stop included. Under its prompt an answer stands where the
template puts it. Alone, nothing of the conversation stands before it but what opens any assistant turn: the beginning
token, where the template writes one, and the assistant header (``<|im_start|>assistant``). So every token of the answer
is predicted on both sides, and the only difference is the prompt.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posttrain.encode.template import ChatTemplate, RejectedError
from posttrain.encode.tokens import text_ids
from posttrain.errors import TemplateError
from posttrain.types import Message, Tokens


def answer_opening(template: ChatTemplate) -> NDArray[np.int32]:
    """The ids [T] before an answer that stands alone, at least one.

    The header is what the generation prompt adds to a conversation. Where a template has none (Mistral's header is part
    of the user turn) the beginning token stands alone, or the end token in vocabularies without one.
    Raises TemplateError where there is no such token, or the template refuses a conversation of one user turn.
    """
    question = [Message("user", "x")]
    try:
        conversation = template.render(question)
        prompt = template.render(question, add_generation_prompt=True)
    except RejectedError as error:
        raise TemplateError(
            f"the template refuses a single user turn: {error.rejected.detail}", where=template.name
        ) from error
    tokenizer = template.tokenizer
    ids = text_ids(prompt[len(conversation) :], template).tolist() if prompt.startswith(conversation) else []
    if text_ids(conversation, template)[:1].tolist() == [tokenizer.bos_token_id] != ids[:1]:
        ids = [tokenizer.bos_token_id, *ids]
    if not ids:
        ids = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    if not ids:
        raise TemplateError(
            "nothing can stand before an answer alone: no generation prompt, no beginning and no end token",
            where=template.name,
            fix="give a template with a generation prompt",
        )
    return np.array(ids, np.int32)


def answers_alone(example: Tokens, opening: NDArray[np.int32]) -> list[Tokens]:
    """Every supervised run of tokens of an example behind the opening, each an example of its own."""
    supervised_T = np.concatenate([[False], example.weights_T != 0, [False]])
    edges = np.flatnonzero(supervised_T[1:] != supervised_T[:-1]).reshape(-1, 2)
    weights_O = np.zeros(len(opening), np.float32)
    return [
        Tokens(
            np.concatenate([opening, example.ids_T[begin:end]]),
            np.concatenate([weights_O, example.weights_T[begin:end]]),
            example.row_id,
            part,
        )
        for part, (begin, end) in enumerate(edges.tolist())
    ]
