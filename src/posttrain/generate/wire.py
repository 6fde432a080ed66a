"""The OpenAI format, read and written by pure functions: a request as a body, a body as an outcome. Nothing is sent here.

What servers were seen to do differently (OpenAI, vLLM, llama.cpp, Ollama, DeepSeek, OpenRouter) is met where it stands below.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from posttrain.errors import ConfigError
from posttrain.generate.engine import (
    THINK_CLOSE,
    Completion,
    Failure,
    FailureReason,
    FinishReason,
    Ids,
    Outcome,
    Request,
    Sampling,
    SplitReply,
    TokenLogprob,
    Usage,
    split_think,
)
from posttrain.generate.voice import Piece

LIMITS = ("max_tokens", "max_completion_tokens")
"""The two names of the limit of tokens."""
OURS = ("model", "messages", "prompt", "n", "best_of", "stream", *LIMITS)
"""Fields of the body that ``extra_body`` may not set: the request says them, and the budget relies on them."""
UNCUT = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""vLLM takes from the model's ``generation_config.json`` what a request does not say: so it says that nothing is cut or punished."""

# ---- writing -------------------------------------------------------------------------------------------------------


def body_of(request: Request, model: str, max_tokens_field: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON body that asks for a reply.

    ``extra`` is laid over it; a value of None takes a field away (some models refuse ``temperature``). Raises ConfigError where a user's turn
    is asked for: a server that renders the template itself can't be stopped before the assistant's header.
    """
    if request.speaks == "user":
        raise ConfigError(
            "a user's turn can't be asked for over chat messages", where=model, fix="give a local model: local: TARGET"
        )
    sampling = request.sampling
    if request.tokens is not None:
        return {**_ids_body(request.tokens, sampling, model), **extra}
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in request.prompt],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        max_tokens_field: sampling.max_tokens,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed + request.sample  # several draws with one seed would be one draw
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    body |= extra
    return {name: value for name, value in body.items() if value is not None}


def _ids_body(tokens: Ids, sampling: Sampling, model: str) -> dict[str, Any]:
    """The body of a text completion in vLLM's form: ids in, ids out, ended by the given tokens and by no others."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(tokens.ids),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **UNCUT,
        "max_tokens": sampling.max_tokens,
        "ignore_eos": True,  # the server's own idea of an end; ours are all in the list
        "stop_token_ids": list(tokens.stops),
        "return_token_ids": True,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logprobs is not None:
        body["logprobs"] = sampling.logprobs
    return body


def most_tokens(body: Mapping[str, Any], max_tokens: int) -> Usage:
    """The most a request can cost in tokens, for a reservation: bytes of the body as prompt tokens, plus room for a template.

    A token of a byte-level vocabulary stands for at least one byte, and the JSON around the text has more bytes than the
    marks a template puts there; 256 more cover a default system prompt.
    """
    size = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return Usage(size + 256, max_tokens)


# ---- reading -------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a whole response says: the outcome, and the usage even where the rest can't be read."""

    outcome: Outcome
    usage: Usage | None = None
    again: bool = False
    """Whether asking again can help."""
    refused_field: str | None = None
    """The field of the body that the server does not take, where it says so."""


class _UnreadableError(Exception):
    """The body is not an answer; the message says what is wrong with it."""


def read_answer(content: bytes, *, wants_logprobs: bool = False) -> Answer:
    """The outcome of a body that came with status 200."""
    usage = None
    try:
        body = _json(content)
        usage = _usage(body.get("usage"))
        return Answer(_completion(body, usage, wants_logprobs), usage)
    except _UnreadableError as error:
        return Answer(Failure("bad_response", f"{error}: {excerpt(content)}"), usage)


def read_ids(content: bytes, asked: Mapping[str, Any]) -> Answer:
    """The outcome of a body that came with status 200 to a request with token ids; ``asked``: the body that asked.

    Whatever could make it a reply of another model, prompt or law is a ``bad_response``: it must not be trained on.
    """
    usage = None
    try:
        body = _json(content)
        usage = _usage(body.get("usage"))
        return Answer(_ids_completion(body, usage, asked), usage)
    except _UnreadableError as error:
        return Answer(Failure("bad_response", f"{error}: {excerpt(content)}"), usage)


def read_models(content: bytes) -> tuple[str, ...] | None:
    """The names of the models that a server lists; None where it is no list of models."""
    try:
        return tuple(str(card["id"]) for card in json.loads(content)["data"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _ids_completion(body: dict[str, Any], usage: Usage | None, asked: Mapping[str, Any]) -> Completion:
    choice, prompt, most, stops = _choice(body), asked["prompt"], asked["max_tokens"], asked["stop_token_ids"]
    if body.get("model") != asked["model"]:
        raise _UnreadableError(f"the answer is of {body.get('model')!r}, and {asked['model']!r} was asked")
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise _UnreadableError("the answer has no token_ids: this server does not know return_token_ids")
    if choice.get("prompt_token_ids") not in (None, prompt):
        raise _UnreadableError("the server has put other tokens in the place of the prompt's")
    finish, ended = _FINISHES.get(str(choice.get("finish_reason")), "other"), ids[-1] in stops
    if finish not in ("stop", "length") or ended != (finish == "stop") or any(token in stops for token in ids[:-1]):
        raise _UnreadableError(
            f"the reply was ended ({choice.get('finish_reason')}) by something else than its stop tokens"
        )
    if len(ids) > most or (finish == "length" and len(ids) < most):
        raise _UnreadableError(f"{len(ids)} tokens where {most} were to be the limit: has the server less room?")
    logprobs = None
    if "logprobs" in asked:
        logprobs = _logprobs(choice.get("logprobs"))
        if logprobs is None or len(logprobs) != len(ids) or not all(math.isfinite(one.logprob) for one in logprobs):
            raise _UnreadableError("not every token of the answer has a log-probability")
    return Completion("", finish, logprobs=logprobs, usage=usage, ids=tuple(ids))


def _json(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _UnreadableError(f"not JSON ({error})" if content else "an empty body") from error
    if not isinstance(body, dict):
        raise _UnreadableError("not a JSON object")
    return body


def _usage(value: Any) -> Usage | None:
    """Token counts; None where they are missing or no counts (some servers send null, some leave the field out)."""
    if not isinstance(value, dict):
        return None
    read, written = value.get("prompt_tokens"), value.get("completion_tokens")
    if type(read) is not int or type(written) is not int or min(read, written) < 0:
        return None
    return Usage(read, written)


def _choice(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("error"):  # OpenRouter reports a failure of the model behind it with status 200
        raise _UnreadableError("an error in the place of an answer")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _UnreadableError("no choices")
    return choices[0]


def _completion(body: dict[str, Any], usage: Usage | None, wants_logprobs: bool) -> Completion:
    choice = _choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _UnreadableError("a choice without message")
    text, apart = _text(message)
    # A server that parts the thinking itself has found its tags already; what looks like one is quoted text then.
    split = SplitReply(text, apart) if apart is not None else split_think(text)
    logprobs = _logprobs(choice.get("logprobs")) if wants_logprobs else None
    return Completion(
        text=split.text,
        finish=_FINISHES.get(str(choice.get("finish_reason")), "other"),
        reasoning=split.reasoning,
        logprobs=None if logprobs is None else logprobs_of_text(logprobs, split),
        usage=usage,
    )


def read_chunk(chunk: Any, most: int | None = None) -> Piece | Failure:
    """What one chunk of a stream says, of a chat or of a text that is gone on with. ``most``: likely tokens wanted at a place."""
    if not isinstance(chunk, dict):
        return Failure("bad_response", "a chunk that is not a JSON object")
    if chunk.get("error"):
        error = chunk["error"]
        code = error.get("code") if isinstance(error, dict) else None
        outcome = read_error(code if isinstance(code, int) else 500, json.dumps(chunk).encode()).outcome
        assert isinstance(outcome, Failure), "an error is a failure"
        return outcome
    usage = _usage(chunk.get("usage"))
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Piece(usage=usage)
    choice = choices[0]
    delta = choice.get("delta")
    try:
        text, reasoning = _text(delta if isinstance(delta, dict) else {"content": choice.get("text")})
    except _UnreadableError as error:
        return Failure("bad_response", str(error))
    logprobs = () if most is None else (_logprobs(choice.get("logprobs")) or ())
    named = choice.get("finish_reason")
    return Piece(
        text,
        reasoning or "",
        tuple(t._replace(top=t.top[:most]) for t in logprobs if t.token),  # one that a stop has cut has no text
        None if named is None else _FINISHES.get(str(named), "other"),
        usage,
    )


_FINISHES: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "eos": "stop",
}


def _text(message: dict[str, Any]) -> tuple[str, str | None]:
    """The text of a message and the thinking the server kept apart (``reasoning_content``, or ``reasoning`` in newer ones)."""
    content = message.get("content")
    apart = message.get("reasoning_content") or message.get("reasoning") or None  # "" = no thinking was found
    if apart is not None and not isinstance(apart, str):
        raise _UnreadableError("reasoning that is not text")
    if isinstance(content, list):  # parts, as Mistral sends them: the thinking is one of them, with parts of its own
        thinking = [p.get("thinking") for p in content if isinstance(p, dict) and p.get("type") == "thinking"]
        apart = "".join(_joined(part) for part in thinking) if thinking else apart
        content = _joined(content)
    if content is None:  # a model that declines in OpenAI's structured form, calls a tool, or never stopped thinking
        refusal = message.get("refusal")
        content = refusal if isinstance(refusal, str) else ""
    if not isinstance(content, str):
        raise _UnreadableError("content that is not text")
    return content, apart


def _joined(parts: Any) -> str:
    """The texts of a list of parts; a text that is no list is whole already."""
    if isinstance(parts, str):
        return parts
    texts = [p.get("text") for p in parts or () if isinstance(p, dict) and p.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def _logprobs(value: Any) -> tuple[TokenLogprob, ...] | None:
    """The form ``{content: [{token, logprob, top_logprobs}]}`` or the older ``{tokens, token_logprobs, top_logprobs}``."""
    try:
        if value.get("content") is not None:
            return tuple(
                TokenLogprob(
                    t["token"],
                    float(t["logprob"]),
                    _top((o["token"], o["logprob"]) for o in t.get("top_logprobs") or ()),
                )
                for t in value["content"]
            )
        tops = value.get("top_logprobs") or [None] * len(value["tokens"])
        found = zip(value["tokens"], value["token_logprobs"], tops, strict=True)
        return tuple(TokenLogprob(token, float(logprob), _top((top or {}).items())) for token, logprob, top in found)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # none were given; or the text is paid for and can be read: it is not thrown away


def _top(pairs: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(((str(token), float(logprob)) for token, logprob in pairs), key=lambda pair: -pair[1]))


def logprobs_of_text(logprobs: tuple[TokenLogprob, ...], split: SplitReply) -> tuple[TokenLogprob, ...] | None:
    """Those of the tokens that write ``split.text``; None where thinking came first and the tokens don't spell the text.

    Whole tokens: the first one may begin, and the last one end, outside of the text.
    """
    if split.reasoning is None:
        return logprobs
    spelt = "".join(t.token for t in logprobs)
    thinking, closed, _ = spelt.rpartition(THINK_CLOSE)
    start = spelt.find(split.text, len(thinking) + len(closed)) if closed else spelt.rfind(split.text)
    if start < 0:
        return None
    end = start + len(split.text)
    kept: list[TokenLogprob] = []
    place = 0
    for token in logprobs:
        if place < end and place + len(token.token) > start:
            kept.append(token)
        place += len(token.token)
    return tuple(kept)


# ---- errors --------------------------------------------------------------------------------------------------------

_FILTERED = ("content_filter", "content_policy_violation", "moderation")
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_credits")


def read_error(status: int, content: bytes, sent: Iterable[str] = ()) -> Answer:
    """What a response with a status other than 200 says. No provider bills these. ``sent``: the names of the body's fields."""
    code, words = _error_words(content)
    reason: FailureReason = "invalid_request"
    if any(name in code for name in _NO_CREDIT):  # comes as 429, and no waiting mends it
        reason = "refused"
    elif status == 429:
        reason = "rate_limited"
    elif status == 408:
        reason = "timeout"
    elif status >= 500:
        reason = "server_error"
    elif status in (401, 402, 403) or any(name in code for name in _FILTERED):
        reason = "refused"
    again = reason not in ("refused", "invalid_request")
    field = _refused_field(content, sent) if reason == "invalid_request" else None
    return Answer(Failure(reason, f"status {status}: {words}"), again=again, refused_field=field)


_NEEDED = ("model", "messages")
_REFUSES_FIELD = re.compile(
    r"unsupported|not (?:\w+ )?(?:supported|permitted|allowed|accepted|recogni[sz]ed)|does(?: not|n't) (?:support|accept|allow)|do(?: not|n't) support"
    r"|unrecogni[sz]ed|unknown|unexpected|extra (?:inputs|fields)|deprecated|is invalid for this model|must be (?:unset|omitted|1(?:\.0)?\b)|only (?:the )?default",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"too (?:large|long|high|many)|at most|maximum|exceed|context length|less than", re.IGNORECASE)


def _refused_field(content: bytes, sent: Iterable[str]) -> str | None:
    """The field of ours that an error is about: named as ``param``, in the place of the error, or in its words.

    A value that is only too large is no refusal of its field.
    """
    whole = content[:20_000].decode("utf-8", "replace")
    if not _REFUSES_FIELD.search(whole) or _TOO_LARGE.search(whole):
        return None
    words = re.findall(r"[A-Za-z_]\w*", whole)
    named = [name for name in sent if name not in _NEEDED and name in words]
    param = re.search(r"\"param\"\s*:\s*\"([^\"]+)\"", whole)
    if param is not None and param[1].partition(".")[0] in named:
        return param[1].partition(".")[0]
    return min(named, key=words.index, default=None)


def _error_words(content: bytes) -> tuple[str, str]:
    """(machine-readable code and type, message) of an error body; of anything else its beginning."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return "", excerpt(content)
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", _shortened(str(error))
    code = f"{error.get('code', '')} {error.get('type', '')}"
    return code, _shortened(str(error.get("message") or error.get("detail") or error))


def excerpt(content: bytes) -> str:
    """The beginning of a body on one line, for a message."""
    return _shortened(content[:2_000].decode("utf-8", "replace"))


def _shortened(text: str, length: int = 200) -> str:
    text = " ".join(text.encode("utf-8", "replace").decode().split())  # a lone surrogate can't be printed
    return text[:length] + ("..." if len(text) > length else "")
