"""Blind comparisons: two models drawn by lot, what each of them said, and one vote for it.

    <runs>/.votes/open/ID.jsonl     a comparison without a vote: who is left and right, then one line a reply
    <runs>/.votes/votes.jsonl       one line a vote: ``posttrain arena`` reads it as it is

All of it are files, so a comparison outlives the page and the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from posttrain.artifacts import append_json
from posttrain.errors import RunError

VOTES = ".votes"
Side = Literal["left", "right"]
OTHER: Mapping[Side, Side] = {"left": "right", "right": "left"}
Vote = Literal["left", "right", "tie", "both_bad"]
WINNERS: Mapping[Vote, str] = {"left": "model_a", "right": "model_b", "tie": "tie", "both_bad": "both_bad"}
"""What stands in the column ``winner``: the left model is model a."""


def votes_file(runs: Path) -> Path:
    """The file of all votes."""
    return runs / VOTES / "votes.jsonl"


def _open_folder(runs: Path) -> Path:
    return runs / VOTES / "open"


# ---- comparisons ---------------------------------------------------------------------------------------------------


def draw_duel(runs: Path, models: Sequence[Mapping[str, Any]], seed: int | None = None) -> str:
    """Draw two models, and which is left, by lot; returns the name of the comparison. ``models``: what describes each, with its ``name``.

    Raises RunError where there are not two, or the folder can't be written.
    """
    names = {str(model["name"]): model for model in models}
    if len(names) < 2:
        raise RunError("two models are needed for a comparison", fix="choose another one")
    drawn_by = secrets.randbits(31) if seed is None else seed
    left, right = random.Random(drawn_by).sample(sorted(names), 2)
    duel = secrets.token_hex(12)
    head = {"left": names[left], "right": names[right], "seed": drawn_by, "when": _now()}
    try:
        _open_folder(runs).mkdir(parents=True, exist_ok=True)
        append_json(_open_folder(runs) / f"{duel}.jsonl", head)
    except OSError as error:
        raise _unwritable(runs, error) from error
    return duel


def model_of(runs: Path, duel: str, side: Side) -> Mapping[str, Any]:
    """What describes the model on a side. Raises RunError where this comparison is not open."""
    found: Mapping[str, Any] = _read(runs, duel)[0][side]
    return found


def keep_reply(runs: Path, duel: str, side: Side, asked: Mapping[str, Any], reply: str) -> None:
    """Keep what a side has said. ``asked``: messages and sampling. Once there is a vote nothing is kept any more."""
    path = _open_folder(runs) / f"{duel}.jsonl"
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:  # opened, not made
        file.seek(0, os.SEEK_END)
        file.write(_line({"side": side, **asked, "reply": reply, "when": _now()}))


def cast(runs: Path, duel: str, vote: Vote) -> dict[str, Any]:
    """Cast the one vote of a comparison; returns its line. Raises RunError for a second one, or where a side has said nothing yet."""
    if vote not in get_args(Vote):
        raise RunError(f"there is no vote {vote!r}", fix=f"one of {', '.join(get_args(Vote))}")
    try:
        votes_file(runs).parent.mkdir(parents=True, exist_ok=True)
        with votes_file(runs).open("ab") as file, _locked(file.fileno()):
            line = _voted(runs, duel, vote)
            known = f'"id": "{duel}"'.encode() in votes_file(runs).read_bytes()  # who voted was killed before the end
            if not known:
                append_json(votes_file(runs), line)
            (_open_folder(runs) / f"{duel}.jsonl").unlink()
    except OSError as error:
        raise _unwritable(runs, error) from error
    if known:
        raise RunError("there has been a vote on this comparison", fix="begin a new one")
    return line


def _voted(runs: Path, duel: str, vote: Vote) -> dict[str, Any]:
    """The line of a vote."""
    head, *replies = _read(runs, duel)
    last = {side: next((one for one in reversed(replies) if one.get("side") == side), None) for side in get_args(Side)}
    left, right = last["left"], last["right"]
    if left is None or right is None:
        raise RunError("both have to say something before there can be a vote", fix="send a message first")
    void = next(
        (
            f"the {side} reply names {named!r}"
            for side in get_args(Side)
            for one in replies
            if one["side"] == side and (named := named_maker(one["reply"], _words_of(head)))
        ),
        None,
    )
    return {
        "id": duel,
        "model_a": head["left"]["name"],
        "model_b": head["right"]["name"],
        "winner": WINNERS[vote] if void is None else None,
        "vote": vote,
        "void": void,
        "left": "model_a",
        "prompt": next(m["content"] for m in reversed(left["messages"]) if m["role"] == "user"),
        "messages_a": left["messages"],
        "messages_b": right["messages"],
        "reply_a": left["reply"],
        "reply_b": right["reply"],
        "sampling_a": left.get("sampling"),
        "sampling_b": right.get("sampling"),
        "digest_a": head["left"].get("digest"),
        "digest_b": head["right"].get("digest"),
        "drawn_by": head["seed"],
        "when": _now(),
        "seconds": round(_seconds_since(max(left["when"], right["when"])), 1),
    }


def _read(runs: Path, duel: str) -> list[dict[str, Any]]:
    """The lines of an open comparison, found by a look into the folder."""
    folder = _open_folder(runs)
    try:
        if f"{duel}.jsonl" not in os.listdir(folder):
            raise FileNotFoundError
        lines = (folder / f"{duel}.jsonl").read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise RunError("there has been a vote on this comparison, or it never was", fix="begin a new one") from None
    except (OSError, ValueError) as error:
        raise RunError(f"this comparison can't be read: {error}", where=str(folder), fix="begin a new one") from error


# ---- who gives itself away -----------------------------------------------------------------------------------------

MAKERS = (
    *(
        "OpenAI",
        "ChatGPT",
        "GPT",
        "Anthropic",
        "Claude",
        "Google",
        "DeepMind",
        "Gemini",
        "Gemma",
        "Bard",
        "Meta AI",
        "Llama",
    ),
    *(
        "Mistral",
        "Mixtral",
        "Microsoft",
        "Phi",
        "Qwen",
        "Alibaba",
        "DeepSeek",
        "SmolLM",
        "Hugging Face",
        "Cohere",
        "Vicuna",
    ),
    *("LMSYS", "xAI", "Grok", "Zhipu", "GLM", "Baichuan", "MiniMax", "Kimi", "Moonshot", "Nvidia", "IBM", "Granite"),
    *("通义", "千问", "阿里巴巴", "阿里云", "智谱", "百川", "文心", "百度", "深度求索", "月之暗面", "谷歌", "微软"),
)
_SELF = re.compile(
    r"\b(?:I am|I'm|I was|my name is|call me|as an? (?:AI|language|assistant)|(?:trained|developed|created|made|built) (?:and \w+ )?by)\b"
    r"|我是|我叫|作为|(?:由|被).{0,20}(?:开发|训练|研发|创建|打造)",
    re.IGNORECASE,
)
_REACH = 80
"""Letters behind words about oneself within which a name counts."""


def named_maker(reply: str, own: Sequence[str] = ()) -> str | None:
    """The name by which a reply gives its model away: one of its ``own`` names anywhere, a maker's where it speaks of itself."""
    for name in own:
        if _word(name).search(reply):
            return name
    for found in _SELF.finditer(reply):
        near = reply[max(0, found.start() - 5) : found.end() + _REACH]
        for name in MAKERS:
            if _word(name).search(near):
                return name
    return None


def _word(name: str) -> re.Pattern[str]:
    edges = (r"(?<![A-Za-z0-9])", r"(?![A-Za-z])") if name.isascii() else ("", "")
    return re.compile(edges[0] + re.escape(name) + edges[1], re.IGNORECASE)


def _words_of(head: Mapping[str, Any]) -> list[str]:
    """The names of the families of both models: ``SmolLM`` of ``HuggingFaceTB/SmolLM2-135M-Instruct``."""
    families = (
        re.match(r"[A-Za-z]{4,}", str(head[side].get("base") or "").rpartition("/")[2]) for side in get_args(Side)
    )
    return [found.group() for found in families if found is not None and found.group().lower() not in _COMMON]


_COMMON = {
    "model",
    "base",
    "instruct",
    "chat",
    "checkpoint",
    "final",
    "output",
    "merged",
    "files",
    "adapter",
    "tiny",
    "small",
}
"""First words of folders that are no family."""


# ---- files ---------------------------------------------------------------------------------------------------------


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "replace")


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Only one vote at a time, from however many boards."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _seconds_since(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def _unwritable(runs: Path, error: OSError) -> RunError:
    return RunError(f"votes can't be kept here: {error}", where=str(runs / VOTES), fix="make the folder writable")
