"""Talk to a model in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import encode_prompt
from posttrain.errors import ConfigError, ModelError
from posttrain.generate.decode import decode, without_stop
from posttrain.generate.engine import Failure, Request, Sampling, complete
from posttrain.generate.llamacpp import LlamaCppEngine
from posttrain.generate.ways import speed_note
from posttrain.model import hardware
from posttrain.model.adapters import frozen_model
from posttrain.model.targets import gguf_file, resolve_target
from posttrain.types import Message

CONTEXT = 4096
"""Tokens of a conversation with a GGUF file."""
ReplyTo = Callable[[Sequence[Message]], Iterator[str]]
"""A conversation -> the pieces of the reply."""


def converse(
    target: str,
    base: str | None,
    prompt: str | None,
    system: str | None,
    sampling: Sampling,
    template_file: Path | None,
) -> None:
    """Answer one prompt, or talk until /quit or the end of input. Replies are streamed to stdout; Ctrl-C ends a reply."""
    path = gguf_file(target)
    if path is None:
        reply_to = _local(target, base, sampling, template_file)
    else:
        if base is not None or template_file is not None:
            raise ConfigError(
                "a GGUF file has a base and a template of its own", where=target, fix="leave --base and --template away"
            )
        reply_to = _llamacpp(path, sampling)
    opening = [Message("system", system)] if system else []
    history = list(opening)

    def answer(text: str) -> None:
        history.append(Message("user", text))
        reply = ""
        try:
            for piece in reply_to(history):
                sys.stdout.write(piece)
                sys.stdout.flush()
                reply += piece
        except KeyboardInterrupt:
            if prompt is not None:
                raise
            sys.stdout.write(" [stopped]")
        sys.stdout.write("\n")
        history.append(Message("assistant", reply))

    if prompt is not None:
        answer(prompt)
        return
    sign = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(sign).strip()
        except EOFError:
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/reset":
            history[:] = opening
        elif re.fullmatch(r"/[a-z]+", text):
            sys.stderr.write("/quit ends, /reset begins anew; anything else is said to the model\n")
        elif text:
            answer(text)


def _local(target: str, base: str | None, sampling: Sampling, template_file: Path | None) -> ReplyTo:
    """Replies of a model folder, an adapter or a stage."""
    lineage = resolve_target(target, base).spoken(template_file)
    template, stops = lineage.template, lineage.stops
    device = hardware.resolve_device("auto")
    model = frozen_model(lineage.folder, lineage.adapter, hardware.choose_dtype("auto", device), device)
    if (note := speed_note(model)) is not None:
        sys.stderr.write(f"note: {note}\n")
    return lambda history: stream(model, history, template, stops, sampling)


def _llamacpp(path: Path, sampling: Sampling) -> ReplyTo:
    """Replies of a GGUF file through llama.cpp, each of them whole."""
    engine = LlamaCppEngine(path, context=CONTEXT, slots=1)

    def reply(history: Sequence[Message]) -> Iterator[str]:
        (outcome,) = complete(engine, [Request(tuple(history), sampling)])
        if isinstance(outcome, Failure):
            raise ModelError(f"llama.cpp gave no reply: {outcome.detail}", where=str(path), fix="/reset begins anew")
        yield outcome.text

    return reply


def stream(
    model: object,
    history: Sequence[Message],
    template: ChatTemplate,
    stops: Sequence[tuple[int, ...]],
    sampling: Sampling,
) -> Iterator[str]:
    """The reply piece by piece. A character whose bytes are not all there yet waits for the next token.

    Raises ModelError where the model computes NaN or infinity: there is no next token.
    """
    ids: list[int] = []
    written = ""
    longest_stop = max((len(stop) for stop in stops), default=0)
    for new in decode(model, [encode_prompt(history, template)], stops, [sampling]):  # type: ignore[arg-type]
        if new.finish == "not_finite":
            raise ModelError(
                f"the model computed NaN or infinity after {len(ids)} tokens of its reply",
                fix="its weights are damaged, or too large for the compute type",
            )
        ids.append(new.token)
        whole = without_stop(ids, stops) if new.finish == "stop" else ids
        # A stop of several tokens must not be shown half: hold its possible beginning back until it is decided.
        sure = whole if new.finish else whole[: max(0, len(whole) - max(0, longest_stop - 1))]
        text = template.tokenizer.decode(sure, skip_special_tokens=True)
        if text.endswith("�"):
            if new.finish is None:
                continue
            text = text.rstrip("�")  # the limit came in the middle of a character
        yield text[len(written) :]
        written = text
