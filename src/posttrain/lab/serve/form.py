"""The OpenAI format seen from the server, by pure functions: a body as what is asked, the pieces of a reply as bodies.

A parameter is obeyed or refused by its name; none is ignored. Those that ask for nothing (``n: 1``, ``presence_penalty: 0``) are taken.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError
from posttrain.generate.engine import Sampling, TokenLogprob, split_think
from posttrain.generate.voice import Asked, Piece
from posttrain.table import did_you_mean
from posttrain.types import Message, Role

MAX_TOKENS = 1024
"""Longest reply of a chat that does not say; a text goes on by 16 tokens, as at OpenAI."""
MOST_TOKENS = 1_000_000
MOST_STOPS = 16
MOST_LIKELY = 20
"""Likely tokens told at a place."""
_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_READ = {"model", "stream", "stream_options", "temperature", "top_p", "max_tokens", "seed", "stop", "logprobs"}
_READ_OF_CHAT = _READ | {"messages", "max_completion_tokens", "top_logprobs"}
_READ_OF_TEXT = _READ | {"prompt"}
_ASKS_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
"""Parameters that are not supported, and the values with which they ask for nothing. null is one of each."""
_OF_WHO_ASKS = ("user", "safety_identifier", "metadata", "prompt_cache_key")
"""Say who asks and why; no reply depends on them."""


@dataclass(frozen=True)
class Wish:
    """What a body asks for."""

    asked: Asked
    model: str
    chat: bool
    stream: bool
    tells_usage: bool
    """Whether a stream ends with its usage."""


# ---- reading -------------------------------------------------------------------------------------------------------


def wish_of(body: Any, chat: bool) -> Wish:
    """What the body of a request asks. Raises ConfigError whose place is the parameter."""
    if not isinstance(body, dict):
        raise ConfigError("the body is not a JSON object")
    known = _READ_OF_CHAT if chat else _READ_OF_TEXT
    for name, value in body.items():
        _check_known(str(name), value, known)
    given = {name: value for name, value in body.items() if value is not None}
    options = given.get("stream_options", {})
    stream = _flag(given, "stream")
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise ConfigError("only include_usage is supported", where="stream_options")
    if options and not stream:
        raise ConfigError("is for streams only", where="stream_options", fix="set stream, or leave it away")
    if not isinstance(given.get("model"), str):
        raise ConfigError("the name of the model is missing", where="model", fix="GET /v1/models tells it")
    sampling = Sampling(
        temperature=_number(given, "temperature", 1.0, 0.0, 100.0),
        top_p=_number(given, "top_p", 1.0, 1e-6, 1.0),
        max_tokens=_max_tokens(given, chat),
        seed=_whole(given, "seed", 0, -(2**63), 2**63 - 1) if "seed" in given else secrets.randbits(31),
        logprobs=_logprobs(given, chat),
    )
    asked = Asked(_messages(given) if chat else _prompt(given), sampling, _stops(given))
    return Wish(asked, given["model"], chat, stream, _flag(options, "include_usage"))


def _check_known(name: str, value: Any, known: Iterable[str]) -> None:
    if name in known or name in _OF_WHO_ASKS or value is None:
        return
    nothing = _ASKS_NOTHING.get(name)
    if nothing is None:
        raise ConfigError(f"this server does not know this parameter{did_you_mean(name, known)}", where=name)
    if value not in nothing:
        raise ConfigError("this parameter is not supported here", where=name, fix="leave it away")


def _number(given: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError("must be a number", where=name)
    if not low <= value <= high:
        raise ConfigError(f"{value} is not from {low:g} to {high:g}", where=name)
    return float(value)


def _whole(given: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = given.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"must be a whole number from {low} to {high}", where=name)
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ConfigError("must be true or false", where=name)
    return value


def _max_tokens(given: Mapping[str, Any], chat: bool) -> int:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    if len(names) > 1 and given[names[0]] != given[names[1]]:
        raise ConfigError("max_tokens and max_completion_tokens are one limit and differ", where=names[0])
    return _whole(given, names[0] if names else "max_tokens", MAX_TOKENS if chat else 16, 1, MOST_TOKENS)


def _logprobs(given: Mapping[str, Any], chat: bool) -> int | None:
    """Likely tokens to be told at each place; None = no log-probabilities at all."""
    if not chat:
        return _whole(given, "logprobs", 0, 0, MOST_LIKELY) if "logprobs" in given else None
    if not _flag(given, "logprobs"):
        if given.get("top_logprobs"):
            raise ConfigError("needs logprobs: true", where="top_logprobs")
        return None
    return _whole(given, "top_logprobs", 0, 0, MOST_LIKELY)


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("stop", [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError("must be a text or a list of texts, none of them empty", where="stop")
    if len(texts) > MOST_STOPS:
        raise ConfigError(f"at most {MOST_STOPS} texts", where="stop")
    return tuple(_unicode(text, "stop") for text in texts)


def _unicode(text: str, where: str) -> str:
    """A text as it is. Raises ConfigError for a lone surrogate, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the text is not Unicode: it has a lone surrogate", where=where) from error
    return text


def _prompt(given: Mapping[str, Any]) -> str | tuple[int, ...]:
    value = given.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return _unicode(value, "prompt")
    if isinstance(value, list) and value and all(type(i) is int and 0 <= i < 2**31 for i in value):
        return tuple(value)
    several = isinstance(value, list) and len(value) > 1
    raise ConfigError(
        "several prompts in one request are not supported" if several else "must be a text or a list of token ids",
        where="prompt",
        fix="send a request for each" if several else None,
    )


def _messages(given: Mapping[str, Any]) -> tuple[Message, ...]:
    value = given.get("messages")
    if not isinstance(value, list) or not value:
        raise ConfigError("must be a list of messages, at least one", where="messages")
    return tuple(_message(message, f"messages[{place}]") for place, message in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise ConfigError("must be an object with role and content", where=where)
    for name in value:
        if name not in ("role", "content") and value[name] not in (None, [], ""):
            raise ConfigError("is not supported here", where=f"{where}.{name}", fix="leave it away")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ConfigError(f"{role!r} is not supported: known are {', '.join(_ROLES)}", where=f"{where}.role")
    return Message(_ROLES[role], _content(value.get("content"), f"{where}.content"))


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return _unicode(value, where)
    if not isinstance(value, list):
        raise ConfigError("must be a text or a list of text parts", where=where)
    for place, part in enumerate(value):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ConfigError("only parts of type text are supported", where=f"{where}[{place}]")
    return _unicode("".join(part["text"] for part in value), where)


# ---- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """One reply in OpenAI's form."""

    wish: Wish
    id: str
    created: int

    def chunk(self, piece: Piece, opening: bool = False) -> dict[str, Any]:
        """A chunk of a stream; ``opening``: the first."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": piece.finish}
        if self.wish.chat:
            said = {"content": piece.text} if piece.text or opening else {}
            thought = {"reasoning_content": piece.reasoning} if piece.reasoning else {}
            choice["delta"] = ({"role": "assistant"} if opening else {}) | said | thought
        else:
            choice["text"] = piece.reasoning + piece.text
        choice["logprobs"] = self._logprobs([piece])
        usage = {"usage": None} if self.wish.tells_usage else {}
        return self._head(streams=True) | {"choices": [choice]} | usage

    def usage_chunk(self, piece: Piece) -> dict[str, Any]:
        """The chunk behind the last one, which has the usage alone."""
        return self._head(streams=True) | {"choices": [], "usage": _usage(piece)}

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        text, reasoning = ("".join(part) for part in zip(*((p.text, p.reasoning) for p in pieces), strict=True))
        choice: dict[str, Any] = {"index": 0, "finish_reason": pieces[-1].finish, "logprobs": self._logprobs(pieces)}
        if self.wish.chat:
            split = split_think(text) if not reasoning else None  # what a stream could not take back
            message = {"role": "assistant", "content": split.text if split else text, "refusal": None}
            thought = split.reasoning if split else reasoning
            choice["message"] = message | ({"reasoning_content": thought} if thought else {})
        else:
            choice["text"] = reasoning + text
        return self._head(streams=False) | {"choices": [choice], "usage": _usage(pieces[-1])}

    def _head(self, streams: bool) -> dict[str, Any]:
        kind = "text_completion" if not self.wish.chat else "chat.completion.chunk" if streams else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.wish.model}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self.wish.asked.sampling.logprobs is None:
            return None
        tokens = [token for piece in pieces for token in piece.logprobs]
        if self.wish.chat:
            return {"content": [_of_chat(token) for token in tokens], "refusal": None}
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [{text: _finite(logprob) for text, logprob in token.top} for token in tokens],
            "text_offset": None,
        }


def _of_chat(token: TokenLogprob) -> dict[str, Any]:
    likely = [{"token": text, "logprob": _finite(logprob), "bytes": _bytes(text)} for text, logprob in token.top]
    told = {"token": token.token, "logprob": _finite(token.logprob), "bytes": _bytes(token.token)}
    return told | {"top_logprobs": likely}


def _finite(logprob: float) -> float:
    """OpenAI's number for what can't happen; JSON has no infinity."""
    return logprob if math.isfinite(logprob) else -9999.0


def _bytes(text: str) -> list[int] | None:
    """The bytes of a token; None where it is a part of a character, whose bytes its text does not tell."""
    return None if "\ufffd" in text else list(text.encode())


def _usage(piece: Piece) -> dict[str, int] | None:
    if piece.usage is None:
        return None
    read, written = piece.usage
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of a response that is no answer."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
