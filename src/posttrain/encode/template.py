"""A tokenizer and its chat template as one value, and the rendering of conversations with it.

The template is the truth: nothing is known here about any particular one. Rendering goes through the tokenizer's own
``apply_chat_template``, so what is trained on is what any Hugging Face runtime renders at inference.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from posttrain.errors import ModelError, TemplateError
from posttrain.types import Message, message_dict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# ---- the time -------------------------------------------------------------------------------------------------------
#
# Some templates ask for the time ("Today Date: ..."): they are told one for a whole run. Rows that are rendered before and
# after midnight, and a run that is resumed, would else be trained on different texts.

_started = datetime.now()
_stopped: list[datetime] = []


def clock() -> datetime:
    """The local time to tell a template: that of the run, or the start of this process where there is none."""
    return _stopped[-1] if _stopped else _started


@contextlib.contextmanager
def stopped_at(now: datetime) -> Iterator[None]:
    """Let every template that is loaded meanwhile be told this time."""
    _stopped.append(now)
    try:
        yield
    finally:
        _stopped.pop()


_TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")
"""Of the files that a tokenizer is made of."""

# ---- templates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowRejected:
    """Why one row can't be trained on: a short fixed reason (docs/masks.md lists them) and the detail of this case."""

    reason: str
    detail: str = ""


class RejectedError(Exception):
    """Carries a RowRejected up to where rows are counted. It never leaves ``posttrain.encode``' row functions."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.rejected = RowRejected(reason, detail)
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A tokenizer with the chat template that goes with it. Make one with :func:`load_template`."""

    tokenizer: PreTrainedTokenizerBase
    text: str | None = None
    """Jinja source; None = the tokenizer's own template."""
    name: str = "chat template"
    """What messages call it: the file, or the tokenizer's folder."""
    now: datetime = field(default_factory=clock)
    """The local time that a template is told which asks for it: one for all renderings."""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
        parts: bool = False,
        argument_text: bool = False,
    ) -> str:
        """Render a conversation exactly as Hugging Face does.

        ``parts``: contents are lists of one part of type text. ``argument_text``: arguments of calls are the JSON text of their object.
        Raises RejectedError ``template_raised`` with the template's own words where it refuses the conversation, and
        TemplateError with the line where the template itself is not valid Jinja.
        """
        try:
            return self._apply(_plain(messages, parts, argument_text), tools, add_generation_prompt)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the chat template is not valid Jinja: {error.message}", where=f"{self.name}:{error.lineno}"
            ) from error
        except Exception as error:  # a template is foreign code: whatever it raises is its answer to this row
            # Some templates add the arguments of a tool call to a string; most want the object they stand for.
            called = any(message.tool_calls for message in messages)
            if isinstance(error, TypeError) and called and not argument_text:
                return self.render(messages, tools, add_generation_prompt, parts, argument_text=True)
            raise _refusal(error) from error

    def _apply(self, plain: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        if (key := self.reasoning_key) is not None:
            plain = [turn | {key: turn["reasoning_content"]} if "reasoning_content" in turn else turn for turn in plain]
        rendered = self.tokenizer.apply_chat_template(
            plain,
            tools=[dict(tool) for tool in tools] or None,
            chat_template=self._source(bool(tools)),
            add_generation_prompt=prompt,
            tokenize=False,
        )
        assert isinstance(rendered, str), "apply_chat_template(tokenize=False) must give text"
        return rendered

    @property
    def reads_clock(self) -> bool:
        """Whether the template may write the time of day into a rendering."""
        return "strftime_now" in (self._source(False) or "") + (self._source(True) or "")

    @cached_property
    def reasoning_key(self) -> str | None:
        """The name the template reads reasoning under, where it is none that Hugging Face gives every template."""
        source = self.text or str(self.tokenizer.chat_template or "")
        names = {name for name in ("reasoning", "thought") if re.search(rf"[.'\"]{name}\b", source)}
        if not names or re.search(r"[.'\"](?:reasoning_content|thinking)\b", source):
            return None
        return sorted(names)[0]

    def _source(self, tools: bool) -> str | None:
        """The Jinja source to render with; None = what the tokenizer would take. The clock stands still in it."""
        source = self.text
        if source is None:
            named = [{"name": "any"}] if tools else None
            with contextlib.suppress(ValueError):  # no default among several templates: told when it is rendered
                source = self.tokenizer.get_chat_template(tools=named)
        if source is None or "strftime_now" not in source:
            return self.text
        return _stopped_clock(self.now) + source

    @cached_property
    def end_tokens(self) -> frozenset[str]:
        """Texts of the tokens that end generation: of the tokenizer and of its folder's generation configuration."""
        folder = Path(str(self.tokenizer.name_or_path or ""))
        found: Any = None
        for name in ("generation_config.json", "config.json"):  # the second counts where the first says nothing
            with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
                settings = json.loads((folder / name).read_text(encoding="utf-8"))
                found = found or settings.get("eos_token_id") or settings.get("text_config", {}).get("eos_token_id")
        known = self.tokenizer.added_tokens_decoder
        ids = found if isinstance(found, list) else [found]
        texts = {known[i].content for i in ids if isinstance(i, int) and i in known}
        return frozenset(texts | ({str(self.tokenizer.eos_token)} if self.tokenizer.eos_token else set()))

    @cached_property
    def added_tokens(self) -> tuple[str, ...]:
        """Texts of all added tokens but white space, longest first: the tokenizer never splits them."""
        texts = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.content.strip()}
        return tuple(sorted(texts, key=lambda text: (-len(text), text)))

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of ``added_tokens``."""
        decoder = self.tokenizer.added_tokens_decoder
        return frozenset(token_id for token_id, token in decoder.items() if token.content.strip())

    @cached_property
    def added_pattern(self) -> re.Pattern[str] | None:
        """Matches the text of any of ``added_tokens``, the longest there is; None where there are none."""
        return _any_of(self.added_tokens)

    @cached_property
    def special_pattern(self) -> re.Pattern[str] | None:
        """Matches the text of any special token; None where there are none."""
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return _any_of([text for text in self.added_tokens if text in special])


def _any_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, texts))) if texts else None


_DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuVDFTReklrhP"


def _stopped_clock(now: datetime) -> str:
    """Jinja, on no line of its own, after which ``strftime_now`` gives this time.

    The function that Hugging Face hands to templates reads the clock, and newer versions take no other.
    """
    codes = [f"%{flag}{letter}" for flag in ("", "-") for letter in _DIRECTIVES]
    said = [(code, now.strftime(code)) for code in codes]
    replaced = "".join(f"|replace({code!r},{text!r})" for code, text in said if text and text != code)
    return "{% macro strftime_now(format) %}{{ format" + replaced + "|replace('%%','%') }}{% endmacro %}{{ '' }}"


def _plain(messages: Sequence[Message], parts: bool, argument_text: bool) -> list[dict[str, Any]]:
    try:
        dicts = [message_dict(message) for message in messages]
    except ValueError as error:
        raise RejectedError(
            "bad_tool_arguments", f"the arguments of a tool call can't be read as JSON: {error}"
        ) from error
    if parts:
        for plain in dicts:
            plain["content"] = [{"type": "text", "text": plain["content"]}] if plain["content"] else []
    if argument_text:
        for message, plain in zip(messages, dicts, strict=True):
            for call, out in zip(message.tool_calls, plain.get("tool_calls", ()), strict=True):
                out["function"]["arguments"] = call.arguments
    return dicts


def _refusal(error: Exception) -> RejectedError:
    if isinstance(error, RejectedError):
        return error
    said_by_template = type(error) is jinja2.TemplateError  # what raise_exception() in a template raises
    return RejectedError("template_raised", str(error) if said_by_template else f"{type(error).__name__}: {error}")


class _OnDemand(types.ModuleType):
    """A module whose code runs when one of its names is asked for; other threads wait meanwhile."""

    _running = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        """Run the module's code at the first name that is not there."""
        spec = self.__spec__
        if spec is None or spec.loader is None or (name.startswith("__") and name != "__path__"):
            raise AttributeError(name)
        with self._running:
            if type(self) is _OnDemand and "__path__" not in vars(self):
                self.__path__ = spec.submodule_search_locations or []
                spec.loader.exec_module(self)
                self.__class__ = types.ModuleType  # type: ignore[assignment]
        if type(self) is _OnDemand:  # its own code asks while it runs
            raise AttributeError(name)
        return getattr(self, name)


def _defer_torch() -> None:
    """Let `import torch` cost nothing until something of it is used.

    transformers imports torch beside every tokenizer, and no tokenizer uses it: half of the time it takes to look at a row.
    """
    spec = importlib.util.find_spec("torch") if "torch" not in sys.modules else None
    if spec is not None:
        module = _OnDemand(spec.name)
        module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
        sys.modules[spec.name] = module


def _model_kind(folder: Path) -> types.SimpleNamespace | None:
    """What AutoTokenizer asks of a model's configuration, where the tokenizer names its own class.

    None: it has to build the configuration itself, whose classes load torch.
    """
    try:
        texts = [(folder / name).read_text(encoding="utf-8") for name in ("config.json", "tokenizer_config.json")]
        config, tokenizer = map(json.loads, texts)
        if not isinstance(tokenizer["tokenizer_class"], str) or "auto_map" in tokenizer:
            return None
        return types.SimpleNamespace(**{"model_type": None, **config, "_name_or_path": str(folder)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it says what is wrong with the folder
        return None


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face model folder. Nothing is fetched and no code of the folder is run.

    One that was loaded in this process is given again while its files stay as they are: nobody may change it. (That of a vocabulary of 262,000
    takes three seconds, and a stage asks for it several times.)

    Raises ModelError where the folder or its tokenizer is missing, unreadable, or can't tell where its tokens stand.
    """
    if not folder.is_dir():
        raise ModelError("no such model folder", where=str(folder), fix="give the folder of a Hugging Face model")
    files = sorted(path for path in folder.iterdir() if path.suffix in _TOKENIZER_SUFFIXES)
    return _loaded(folder, tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _loaded(folder: Path, files: tuple[tuple[str, int, int], ...]) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder with these files."""
    _defer_torch()
    from transformers import AutoTokenizer  # a second to import: only where a tokenizer is needed

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=_model_kind(folder), local_files_only=True, trust_remote_code=False
        )
        tokenizer("x")  # odd settings show only when a text is cut into tokens
    except Exception as error:  # missing and damaged files surface as many exception types
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"no usable tokenizer in this folder ({first_line})",
            where=str(folder),
            fix="put tokenizer.json and tokenizer_config.json there (tokenizer.save_pretrained writes them)",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            "this tokenizer gives no character offsets, so masks can't be proven",
            where=str(folder),
            fix="convert it to a fast tokenizer (a folder with tokenizer.json)",
        )
    return tokenizer


def load_template(tokenizer: PreTrainedTokenizerBase, file: Path | None = None) -> ChatTemplate:
    """Load the tokenizer's own chat template, or the one in a Jinja ``file``.

    Raises TemplateError where there is none, or with file and line where it is not valid Jinja.
    """
    name = str(file) if file is not None else str(getattr(tokenizer, "name_or_path", "") or "the tokenizer's template")
    text = None
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"can't read this template: {error}", where=name) from error
    else:
        try:
            tokenizer.get_chat_template()
        except ValueError as error:
            problem = (
                f"no default chat template: {error}"
                if tokenizer.chat_template
                else "this tokenizer has no chat template"
            )
            raise TemplateError(problem, where=name, fix="give one with template: FILE.jinja (--template)") from error
    template = ChatTemplate(tokenizer, text, name)
    # Compile it now, so that errors of syntax are told once. It may refuse this conversation: rows are judged later.
    with contextlib.suppress(RejectedError):
        template.render([Message("user", "x")])
    return template
