"""The prompts of a benchmark, from a file, a folder or the hub. Nothing of a benchmark is shipped: give its path.

A benchmark is read strictly: a row that can't be read, or has no prompt where one is expected, is an error, because a
prompt that is not in the index is contamination that can't be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import MinLen

from posttrain.data.formats import RowError
from posttrain.data.formats.base import Foreign, items, kind_of, objects, optional_text
from posttrain.data.formats.turns import talk
from posttrain.data.places import DataFile, HubSet, Resolve, locate
from posttrain.data.sources import read_whole
from posttrain.data.streams import Stream, uncompressed
from posttrain.data.text import tokens
from posttrain.errors import DataError
from posttrain.references import NamesRows
from posttrain.types import Origin

Turns = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One set of evaluation prompts: a file, a folder of files, or a hub data set (``org/name``)."""

    name: Annotated[str, MinLen(1)]
    """Name in tables. mt_bench, vicuna, alpaca_eval, arena_hard, ifeval and gsm8k are read by their own layout."""
    path: Annotated[str, NamesRows()]
    """A file (JSON, JSON Lines, CSV, Parquet, or .txt with one prompt a line), a folder of such files, or a hub name."""
    columns: tuple[str, ...] = ()
    """Columns that make up the prompt, joined by a line break; default: those of the layout that fits."""
    split: str | None = None
    """Split of a folder or hub data set; default: a folder must hold one only, of a hub data set ``test``."""
    config: str | None = None
    """Configuration of a hub data set, or of a clone of one, where it has several."""

    def parts(self, resolve: Resolve) -> Sequence[DataFile | HubSet]:
        """What it is read from. Raises DataError where it is missing."""
        folder = Path(self.path).expanduser()
        texts = sorted(path for path in folder.rglob("*") if _is_text(path)) if folder.is_dir() else []
        if not texts:
            return locate(self.path, resolve, self.split, hub_split="test", config=self.config).parts
        others = [path.name for path in folder.rglob("*") if path.is_file() and not _is_text(path)]
        if others:
            raise DataError(
                f"the folder holds .txt files and others ({others[0]})",
                where=self.path,
                fix="give the benchmark's own file, or a folder of files of one kind",
            )
        return [DataFile(f"{self.path.rstrip('/')}/{p.relative_to(folder).as_posix()}", p) for p in texts]


class Prompt(NamedTuple):
    """One evaluation prompt: its benchmark, its id there, and the turns of the user."""

    benchmark: str
    id: str
    turns: Turns


# ---- layouts -------------------------------------------------------------------------------------------------------


def _messages(record: Foreign) -> Turns | None:
    """OpenAI messages or ShareGPT conversations: the turns of the user."""
    key = next((key for key in ("messages", "conversations", "conversation") if record.get(key)), None)
    return None if key is None else _of_user(items(record, key))


def _turns(record: Foreign) -> Turns | None:
    """MT-Bench, Vicuna, Arena-Hard v0.1: a list of turns, each text or ``{content}``."""
    return tuple(_turn(turn, "turns") for turn in items(record, "turns")) if "turns" in record else None


def _instruction(record: Foreign) -> Turns | None:
    """AlpacaEval, Alpaca, Self-Instruct: instruction and input, joined as in training rows."""
    if "instruction" not in record:
        return None
    inner = objects(record, "instances") if "instances" in record else [record]
    given = [optional_text(each, key) for each in inner for key in ("input", "context")]
    return ("\n".join([optional_text(record, "instruction"), *filter(None, given)]),)


def _prompt(record: Foreign) -> Turns | None:
    """IFEval, Arena-Hard, hub copies of MT-Bench: text, a list of turns, or messages under ``prompt``."""
    given = record.get("prompt")
    if given is None or isinstance(given, str):
        return None if given is None else (given,)
    found = items(record, "prompt")
    if found and all(isinstance(turn, Mapping) and "role" in turn for turn in found):
        return _of_user(found)
    return tuple(_turn(turn, "prompt") for turn in found)


def _question(record: Foreign) -> Turns | None:
    """GSM8K and most question sets; a passage or context stands before the question, as the model sees it."""
    key = _first(record, "question", "problem", "Question")
    if key is None:
        return None
    before = [optional_text(record, name) for name in ("passage", "context")]
    return ("\n".join([*filter(None, before), optional_text(record, key)]),)


def _single(record: Foreign) -> Turns | None:
    """Anything else with one text under a usual name."""
    key = _first(record, "query", "input", "text", "goal", "user")
    return None if key is None else (optional_text(record, key),)


def _first(record: Foreign, *names: str) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def _of_user(turns: Sequence[Any]) -> Turns:
    return tuple(turn.content for turn in talk(turns) if turn.role == "user")


def _turn(turn: Any, key: str) -> str:
    if isinstance(turn, Mapping):
        return optional_text(turn, "content")
    if not isinstance(turn, str):
        raise RowError("wrong_shape", f"{key!r} holds {kind_of(turn)}, expected text")
    return turn


LAYOUTS: Mapping[str, Callable[[Foreign], Turns | None]] = {
    "messages": _messages,
    "turns": _turns,
    "instruction": _instruction,
    "prompt": _prompt,
    "question": _question,
    "single": _single,
}
"""The user's turns of a record, or None where it is of another layout; the more telling layouts first: the first one that fits reads it."""
KNOWN: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "mt_bench": (("turns", "prompt"), (80,)),
    "vicuna": (("turns",), (80,)),
    "alpaca_eval": (("instruction",), (805,)),
    "arena_hard": (("turns", "prompt"), (500, 750)),
    "ifeval": (("prompt",), (541,)),
    "gsm8k": (("question",), (1319,)),
}
"""The benchmarks that are read by their own layouts only, and the sizes their published editions have (a file may be a part of one)."""

_IDS = ("question_id", "uid", "prompt_id", "task_id", "doc_id", "key", "id")


# ---- reading -------------------------------------------------------------------------------------------------------


def load(benchmark: Benchmark, resolve: Resolve) -> list[Prompt]:
    """All prompts of a benchmark, in order; records whose prompt is blank are left out.

    The id is the record's own where it has one, otherwise its number (``#1`` is the first). Raises DataError where a record can't be read
    or no layout fits it, and where there is no prompt at all.
    """
    records = (record for part in benchmark.parts(resolve) for record in _records(part))
    prompts = []
    for number, (origin, value) in enumerate(records, 1):
        try:
            turns = tuple(_writable(turn) for turn in _record_turns(benchmark, value) if turn.strip())
        except RowError as error:
            raise DataError(
                f"no prompt can be read here: {error.detail}",
                where=str(origin),
                fix="name the columns of the prompt (columns: [...]); see docs/data-decontamination.md",
            ) from error
        if turns:
            key = _first(value, *_IDS)
            prompts.append(Prompt(benchmark.name, f"#{number}" if key is None else _writable(str(value[key])), turns))
    if not prompts:
        raise DataError("no prompts in it", where=benchmark.path, fix="give the benchmark's file of prompts")
    return prompts


def _writable(text: str) -> str:
    """The text with a replacement character for half a surrogate pair or a broken byte: its words are looked for all the same."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def size_note(benchmark: str, prompts: int) -> str | None:
    """What to say where a known benchmark has another number of prompts than any of its published editions."""
    _, sizes = KNOWN.get(benchmark, ((), (prompts,)))
    published = " or ".join(map(str, sizes))
    return None if prompts in sizes else f"{prompts} prompts; the published {benchmark} has {published}"


def _is_text(path: Path) -> bool:
    return uncompressed(path.name.lower()).endswith(".txt")


def _records(part: DataFile | HubSet) -> Iterator[tuple[Origin, Foreign]]:
    if isinstance(part, DataFile) and _is_text(part.path):
        yield from _text_lines(part)
        return
    problem, fix = "a benchmark is read whole, and this is not a record: ", "mend the file or fetch it again"
    yield from ((record.origin, record.value) for record in read_whole(part, problem, fix))


def _text_lines(file: DataFile) -> Iterator[tuple[Origin, Foreign]]:
    """A prompt a line, without the blank ones."""
    stream = Stream(file.path)
    for number, line in enumerate(stream.lines(), 1):
        origin = Origin(file.label, number)
        try:
            text = line.decode("utf-8").removeprefix("\ufeff").strip()
        except UnicodeDecodeError as error:
            raise DataError("the text is not UTF-8", where=str(origin), fix="save the file as UTF-8") from error
        if text:
            yield origin, {"prompt": text}
    if stream.damage is not None:
        raise DataError(stream.damage, where=file.label, fix="fetch the file again")


def _record_turns(benchmark: Benchmark, value: Foreign) -> Turns:
    if benchmark.columns:
        missing = [name for name in benchmark.columns if name not in value]
        if missing:
            raise RowError("wrong_shape", f"no column {missing[0]!r}; columns: {', '.join(value)}")
        return ("\n".join(filter(None, (optional_text(value, name) for name in benchmark.columns))),)
    known = benchmark.name in KNOWN
    names = KNOWN[benchmark.name][0] if known else tuple(LAYOUTS)
    for name in names:
        if (turns := LAYOUTS[name](value)) is not None:
            return turns
    wanted = f"the layout of {benchmark.name}" if known else "a known layout"
    raise RowError("wrong_shape", f"not {wanted} ({', '.join(names)}); keys: {', '.join(value)}")


def wordless(prompts: Sequence[Prompt]) -> int:
    """Prompts without a single letter or digit: nothing can be compared with them."""
    return sum(not any(tokens(turn) for turn in prompt.turns) for prompt in prompts)
