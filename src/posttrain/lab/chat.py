"""Talk to a model in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import ConfigError, ModelError
from posttrain.generate.engine import THINK_CLOSE, THINK_OPEN, Failure, Sampling
from posttrain.generate.voice import Asked, Voice, pieces
from posttrain.model.targets import gguf_file, resolve_target
from posttrain.types import Message

if TYPE_CHECKING:
    from posttrain.generate.voices import LlamaCppVoice, LocalVoice

CONTEXT = 4096
"""Tokens of a conversation with a GGUF file."""


def open_voice(
    target: str, base: str | None, template_file: Path | None, slots: int = 1, raw: bool = False
) -> LocalVoice | LlamaCppVoice:
    """Load what a user points at: a stage, an adapter, a model folder, an asset, a hub name or a GGUF file.

    slots: replies made at once. raw: a model without a chat template is taken as well. A note on stderr says when replies are slow.
    """
    path = gguf_file(target)
    if path is not None:
        if base is not None or template_file is not None:
            raise ConfigError(
                "a GGUF file has a base and a template of its own", where=target, fix="leave --base and --template away"
            )
        from posttrain.generate.llamacpp import LlamaCppEngine
        from posttrain.generate.voices import LlamaCppVoice

        return LlamaCppVoice(LlamaCppEngine(path, context=CONTEXT, slots=slots), slots)
    lineage = resolve_target(target, base).spoken(template_file)

    from posttrain.encode.template import load_tokenizer  # seconds to import: what is no model is told at once
    from posttrain.generate.voices import LocalVoice
    from posttrain.generate.ways import speed_note
    from posttrain.model import hardware
    from posttrain.model.adapters import frozen_model

    template = None if raw and not lineage.has_template else lineage.template
    stops, device = lineage.stops, hardware.resolve_device("auto")
    model = frozen_model(lineage.folder, lineage.adapter, hardware.choose_dtype("auto", device), device)
    if (note := speed_note(model)) is not None:
        sys.stderr.write(f"note: {note}\n")
    return LocalVoice(model, load_tokenizer(lineage.home), template, stops, slots)


def converse(
    target: str,
    base: str | None,
    prompt: str | None,
    system: str | None,
    sampling: Sampling,
    template_file: Path | None,
) -> None:
    """Answer one prompt, or talk until /quit or the end of input. Replies are streamed to stdout; Ctrl-C ends a reply."""
    with closing(open_voice(target, base, template_file)) as voice:
        _converse(voice, prompt, [Message("system", system)] if system else [], sampling)


def _converse(voice: Voice, prompt: str | None, opening: Sequence[Message], sampling: Sampling) -> None:
    history = list(opening)

    def answer(text: str) -> None:
        history.append(Message("user", text))
        reply = ""
        try:
            for piece in stream(voice, history, sampling):
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


def stream(voice: Voice, history: Sequence[Message], sampling: Sampling) -> Iterator[str]:
    """The reply piece by piece, thinking in its tags. Raises ModelError where there is none."""
    thinking = False
    with closing(pieces(voice, Asked(tuple(history), sampling))) as heard:
        for piece in heard:
            if isinstance(piece, Failure):
                raise ModelError(piece.detail, fix=_FIXES.get(piece.reason, "/reset begins anew"))
            if piece.reasoning:
                yield ("" if thinking else f"{THINK_OPEN}\n") + piece.reasoning
                thinking = True
            if thinking and (piece.text or piece.finish is not None):
                yield f"\n{THINK_CLOSE}\n\n"
                thinking = False
            if piece.text:
                yield piece.text


_FIXES = {"not_finite": "its weights are damaged, or too large for the compute type"}
