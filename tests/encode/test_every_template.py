"""Every chat template that TRL and llama.cpp publish, judged by an oracle of its own.

The templates are fetched from the package registry, not committed. The oracle knows nothing of `posttrain.encode`: it
renders each conversation with Hugging Face's apply_chat_template up to every assistant turn, takes what the generation
prompt leaves over, and ends it at the first token that ends generation, which a table of models below says.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from encoding import encode_row
from posttrain.assets import Package, download
from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import Encoded
from posttrain.errors import AssetError
from posttrain.types import Message, Origin, SftRow, ToolCall

PACKAGES = (
    Package("trl", "trl-1.16.0-py3-none-any.whl", "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396"),
    Package(
        "llama-cpp-python",
        "llama_cpp_python-0.3.36.tar.gz",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    ),
)

ENDS = {
    "*cohere*|*command*": "<|END_OF_TURN_TOKEN|>",
    "*gpt-oss*|*gptoss*": "<|return|> <|call|>",
    "*muse*glimmer*": "<|eot|>",
    "*hermes*": "<|im_end|>",
    "*llama3*|*llama-3*|*functionary*": "<|eot_id|> <|eom_id|>",
    "*glm*": "<|user|> <|observation|> <|endoftext|>",
    "*gemma4*|*gemma-4*|*diffusion_gemma*": "<turn|> <|tool_response>",
    "*gemma*": "<end_of_turn>",
    "*granite*": "<|end_of_text|>",
    "*apriel-1.5*": "</s>",
    "*phi*|*apriel*": "<|end|>",
    "*apertus*": "<|assistant_end|> <|tools_suffix|>",
    "*kimi-k3*": "<|end_of_msg|>",
    "*deepseek*|*spark*": "<｜end▁of▁sentence｜>",
    "*solar*": "<|end|> <|calls|>",
    "*minimax-m1*": "<end_of_sentence>",
    "*minimax*": "[e~[",
    "*nemotron-nano-v2*": "<SPECIAL_12>",
    "*ling*": "<|role_end|>",
    "*gigachat*": "<|message_sep|>",
    "*hy3*": "<｜hy_eos:opensource｜>",
    "*smolvlm*|*idefics*": "<end_of_utterance>",
    "*laguna*": "</assistant>",
    "*reka*": "<sep>",
    "*seed-oss*": "<seed:eos>",
    "*mistral*|*devstral*|*ministral*|*llava*": "</s>",
    "*rwkv*": "",
}
"""Tokens that end generation of a model, by the name of its template (the first line that fits); else ``<|im_end|>``."""

NOT_SPECIAL = re.compile(r"</?(?:think|tool_call|tool_response)>")
MARKERS = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜\s]+｜>|<\|\w+>|<\w+\|>|</?(?:start|end|beginning)_of_\w+>|\[/?[A-Z_]{3,}\]|<SPECIAL_\d+>"
    r"|<sep>|\[e~\[|\]~!?b\[?\]?|<seed:\w+>|</?s>|</?(?:think|tool_call|tool_response|assistant|user|system)>"
)
"""What the templates of the two packages use as single tokens."""


@pytest.fixture(scope="session")
def sources() -> dict[str, str]:
    """Every template by name. Skips where the registry can't be reached."""
    try:
        trl, llama = (download(package) for package in PACKAGES)
    except AssetError as error:
        if "can't fetch" in str(error):
            pytest.skip(f"no package registry: {error}")
        raise
    with zipfile.ZipFile(trl) as wheel:
        found = {
            f"trl/{Path(name).stem}": wheel.read(name).decode()
            for name in wheel.namelist()
            if name.startswith("trl/chat_templates/") and name.endswith(".jinja")
        }
    with tarfile.open(llama) as sdist:
        for member in sdist:
            if "/llama.cpp/models/templates/" in member.name and member.name.endswith(".jinja"):
                file = sdist.extractfile(member)
                assert file is not None
                found[f"llama.cpp/{Path(member.name).stem}"] = file.read().decode()
    return found


def ends_of(name: str) -> list[str]:
    for patterns, ends in ENDS.items():
        if any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns.split("|")):
            return ends.split()
    return ["<|im_end|>"]


def tokenizer_of(markers: set[str], eos: str) -> PreTrainedTokenizerFast:
    """Every byte is a token, and so is every marker; all but tags are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: k for k, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for marker in sorted({*markers, "<s>", eos}):
        token = AddedToken(marker, normalized=False, special=NOT_SPECIAL.fullmatch(marker) is None)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos)


# ---- conversations ---------------------------------------------------------------------------------------------------

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply(text: str, *cities: str, first: int = 0, **more: Any) -> dict[str, Any]:
    calls = [
        {
            "id": f"call{first + k:05d}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": city}},
        }
        for k, city in enumerate(cities)
    ]
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {}), **more}


def result(text: str, number: int = 0) -> dict[str, Any]:
    return {"role": "tool", "name": "get_weather", "tool_call_id": f"call{number:05d}", "content": text}


SYSTEM = {"role": "system", "content": "Be very brief."}
ADD, FOUR = ask("What is 2+2?"), reply("It is four.")


def thought(reasoning: str, text: str) -> dict[str, Any]:
    return reply(f"<think>\n{reasoning}\n</think>\n\n{text}")


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [ADD, FOUR],
    "system": [SYSTEM, ADD, FOUR],
    "three turns": [ADD, FOUR, ask("And 3+3?"), reply("Six."), ask("4+4?"), reply("Surely eight!")],
    "system and two turns": [SYSTEM, ADD, FOUR, ask("And 3+3?"), reply("Six.")],
    "two replies in a row": [ADD, FOUR, reply("That was easy.")],
    "a question at the end": [ADD, FOUR, ask("And 3+3?")],
    "Chinese": [ask("你好吗？"), reply("很好，谢谢。👋")],
    "lines": [ask("Code?"), reply("def f():\n    return 1\n\n\nf()")],
    "the word of the prompt": [ask("It is four."), FOUR, ask("It is four."), FOUR],
    "content quotes an end": [ADD, reply("A turn ends with END here."), ask("And?"), reply("Done now.")],
    "content quotes a think block's end": [
        ADD,
        reply("It closes with </think> in Qwen."),
        ask("And?"),
        reply("Done now."),
    ],
    "reasoning": [ADD, reply("It is four.", reasoning_content="two and two")],
    "reasoning twice": [
        ADD,
        reply("It is four.", reasoning_content="two and two"),
        ask("And 3+3?"),
        reply("Six.", reasoning_content="three and three"),
    ],
    "reasoning, then none": [
        ADD,
        reply("It is four.", reasoning_content="two and two"),
        ask("And 3+3?"),
        reply("Six."),
    ],
    "think block": [ADD, thought("two and two", "It is four.")],
    "think block twice": [
        ADD,
        thought("two and two", "It is four."),
        ask("And 3+3?"),
        thought("three and three", "Six."),
    ],
    "tools and no call": [ADD, FOUR],
    "call": [ask("Weather in Rome?"), reply("", "Oslo")],
    "call and answer": [ask("Weather?"), reply("", "Oslo"), result('{"sky": "clear"}'), reply("It is sunny.")],
    "text and call": [
        ask("Weather?"),
        reply("Let me look.", "Oslo"),
        result('{"sky": "clear"}'),
        reply("It is sunny."),
    ],
    "text that is in the call": [
        ask("Weather?"),
        reply("Rome", "Rome"),
        result('{"sky": "clear"}'),
        reply("It is sunny."),
    ],
    "parallel calls": [
        ask("Weather?"),
        reply("", "Oslo", "Bern"),
        result('{"sky": "clear"}', 0),
        result('{"sky": "grey"}', 1),
        reply("Sunny and dull."),
    ],
    "two rounds of calls": [
        SYSTEM,
        ask("Weather?"),
        reply("", "Oslo"),
        result('{"sky": "clear"}', 0),
        reply("", "Bern", first=1),
        result('{"sky": "grey"}', 1),
        reply("Sunny and dull."),
        ask("Thanks!"),
        reply("Any time."),
    ],
    "reasoning and call": [
        ask("Weather?"),
        reply("", "Oslo", reasoning_content="look it up"),
        result('{"sky": "clear"}'),
        reply("It is sunny.", reasoning_content="clear is sunny"),
    ],
}


def row_of(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> SftRow:
    turns = tuple(
        Message(
            m["role"],
            m["content"],
            m.get("reasoning_content"),
            tuple(
                ToolCall(c["function"]["name"], json.dumps(c["function"]["arguments"]), c["id"])
                for c in m.get("tool_calls", ())
            ),
            name=m.get("name"),
            tool_call_id=m.get("tool_call_id"),
        )
        for m in messages
    )
    return SftRow(turns, Origin("rows.jsonl", 1), "test", tuple(tools))


# ---- the oracle ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What one assistant turn trains: ``given`` to the model, and what it has to write."""

    given: str
    written: str


class Undecided(Exception):
    """To refuse the turn and to learn it in the context of the rendering, with a note, are both honest."""


class Unprovable(Exception):
    """Nothing in the renderings says what the model has to write."""


@dataclass(frozen=True)
class Oracle:
    tokenizer: PreTrainedTokenizerFast
    source: str
    ends: list[str]
    tools: list[dict[str, Any]]
    seen: dict[str, str | Unprovable] = field(default_factory=dict)

    def render(self, messages: list[dict[str, Any]], prompt: bool = False) -> str:
        key = json.dumps([messages, prompt])
        if key not in self.seen:
            try:
                self.seen[key] = self.rendered(messages, prompt)
            except Unprovable as error:
                self.seen[key] = error
        if isinstance(found := self.seen[key], Unprovable):
            raise found
        return found

    def rendered(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        last: Exception | None = None
        for form in self.forms(messages):
            try:
                text = self.tokenizer.apply_chat_template(
                    form,
                    tools=self.tools or None,
                    chat_template=self.source,
                    add_generation_prompt=prompt,
                    tokenize=False,
                )
            except Exception as error:
                last = error
                continue
            if all(words_of(m)[-1] in text for m in messages if m["role"] == "user"):
                return text
            last = Unprovable("a user turn is left out")
        raise Unprovable(str(last))

    @staticmethod
    def forms(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """As given; calls with their arguments as text; contents as typed parts."""
        alike = [{**m, **({"reasoning": m["reasoning_content"]} if "reasoning_content" in m else {})} for m in messages]
        yield alike
        as_text = json.loads(json.dumps(alike))
        for call in (call for m in as_text for call in m.get("tool_calls", ())):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        yield as_text
        yield [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in alike]

    def turn(self, messages: list[dict[str, Any]], i: int) -> list[Expected]:
        """What may be trained at assistant turn i. Raises Unprovable."""
        before, turn = messages[:i], messages[i]
        conversation, given = self.render(before), self.render(before, prompt=True)
        text = self.render(messages[: i + 1])
        header = given.removeprefix(conversation) if given.startswith(conversation) else ""
        opened = re.search(r"<think>\s*\Z", given)
        base = given[: opened.start()] if opened else given
        if text.startswith(given):
            written = text[len(given) :]
        elif opened and re.match(r"(<think>)?\s*</think>", text[len(base) :]) and text.startswith(base):
            # the closing of the block that the prompt opened is the model's to write
            written = text[len(base) :].removeprefix("<think>").lstrip()
        else:
            written = self.behind_header(text, header, before[-1]) if header.strip() else None
        quoted = "</think>" in turn["content"] and not turn["content"].startswith("<think>")
        if quoted and opened and written is not None and written.startswith(turn["content"]):
            raise Unprovable("the template reads a quoted </think> as the end of reasoning")
        if quoted and opened and written is None:
            raise Undecided
        if written is not None and self.says(written, turn):
            return [Expected(given, self.ended(written, messages[: i + 1]))]
        block = re.fullmatch(r"<think>\n(.*)\n</think>\n\n(.*)", turn["content"], re.DOTALL)
        if block is not None and block[2] in text and block[1] not in text:
            # R1: the template shows no reasoning; the model writes what the row has behind what the prompt opens
            tail = text[text.rindex(block[2]) + len(block[2]) :]
            raw = turn["content"].removeprefix(opened.group()) if opened else turn["content"]
            if opened or "</think>" not in header:
                return [Expected(given, self.ended(raw + tail, [*before, {**turn, "content": block[2]}]))]
        if written is None and not turn.get("reasoning_content") and not block:
            # the prompt opens what the rendering lacks: the rendering's own context up to there, which is noted
            same = next((k for k, (a, b) in enumerate(zip(given, text, strict=False)) if a != b), len(given))
            at = max([text.rfind("\n", 0, same) + 1, *(m.end() for m in MARKERS.finditer(text[:same]))])
            if re.findall(r"\w+", before[-1]["content"] or "x")[-1] in text[:at] and self.says(text[at:], turn):
                return [Expected(text[:at], self.ended(text[at:], messages[: i + 1]))]
        raise Unprovable("the words of the turn are not behind the prompt")

    @staticmethod
    def behind_header(text: str, header: str, last: dict[str, Any]) -> str | None:
        """What stands behind the first header that the turn before it does not follow."""
        word = re.findall(r"\w+", last["content"] or " ".join(words_of(last)))[0]
        parts = text.split(header)
        rests = (header.join(parts[k:]) for k in range(1, len(parts)))
        return next((rest for rest in rests if word not in rest), None)

    def says(self, written: str, turn: dict[str, Any]) -> bool:
        squeezed = "".join(written.split())
        quoted = "</think>" in turn["content"] and not turn["content"].startswith("<think>")
        if quoted and turn["content"] not in written:
            return False
        if turn.get("tool_calls") and turn["content"]:
            # the words must stand beside the call, not only in it
            call = max(written.find(words_of(turn)[-1] + extra) for extra in ('"', "</", "\n", "'", "<", ")", "}", "]"))
            rest = written[:call] + written[call + len(words_of(turn)[-1]) :] if call >= 0 else written
            if turn["content"] not in rest:
                return False
        return all("".join(words.split()) in squeezed for words in words_of(turn))

    def ended(self, written: str, messages: list[dict[str, Any]]) -> str:
        """Through the first token that ends generation behind the words, which may show only when a turn follows."""
        after = max(written.rfind(words) + len(words) for words in words_of(messages[-1]))
        follows = [result("x", 7)] if messages[-1].get("tool_calls") else [ask("x")]
        for tail in (written[after:], *self.followed(messages, follows)):
            found = [(tail.index(end), len(end)) for end in self.ends if end in tail]
            if found:
                at, length = min(found)
                return written[:after] + tail[: at + length]
        raise Unprovable("no token that ends generation")

    def followed(self, messages: list[dict[str, Any]], follows: list[dict[str, Any]]) -> Iterator[str]:
        last = words_of(messages[-1])[-1]
        for more in (follows, [ask("x")]):
            try:
                text = self.render([*messages, *more])
            except Unprovable:
                continue
            yield text[text.rindex(last) + len(last) :] if last in text else ""


def words_of(turn: dict[str, Any]) -> list[str]:
    """What must be found in the text of a turn, the last to be written last."""
    block = re.fullmatch(r"<think>\n(.*)\n</think>\n\n(.*)", turn["content"], re.DOTALL)
    contents = list(block.groups()) if block else [turn["content"]] if turn["content"].strip() else []
    calls = [
        word
        for c in turn.get("tool_calls", ())
        for word in (c["function"]["name"], *c["function"]["arguments"].values())
    ]
    return [*([turn["reasoning_content"]] if turn.get("reasoning_content") else []), *contents, *calls] or [""]


# ---- the comparison --------------------------------------------------------------------------------------------------


def trained(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[Expected]:
    """Every run of supervised tokens with all that stands before it, as text."""
    out = []
    for tokens in encoded.examples:
        ids, on = tokens.ids_T.tolist(), (tokens.weights_T != 0).tolist()
        starts = [k for k in range(len(on)) if on[k] and not (k and on[k - 1])]
        for start in starts:
            end = next((k for k in range(start, len(on)) if not on[k]), len(on))
            out.append(Expected(tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:end])))
    return out


FEW = ("one turn", "three turns", "reasoning", "think block", "call and answer", "parallel calls", "reasoning and call")


def judge(name: str, source: str, kinds: list[str], eos: str | None = None) -> dict[str, str]:
    """The outcome of every conversation under one template: exact, refused, or what is wrong."""
    ends = ends_of(name)
    quoted = ends[0] if ends else "</s>"
    eos = eos or quoted
    plain = tokenizer_of(set(), eos)
    markers = set(MARKERS.findall(source)) | set(ends)
    for kind in kinds:
        try:
            oracle = Oracle(plain, source, ends, TOOLS if "call" in kind else [])
            markers |= set(MARKERS.findall(oracle.render(CONVERSATIONS[kind])))
        except Unprovable:
            continue
    tokenizer = tokenizer_of(markers, eos)
    template = ChatTemplate(tokenizer, source, name)
    outcomes = {}
    seen: dict[bool, dict[str, str | Unprovable]] = {True: {}, False: {}}
    for kind in kinds:
        given = CONVERSATIONS[kind]
        messages = [{**m, "content": m["content"].replace("END", quoted)} for m in given]
        tools = TOOLS if "call" in kind or "tools" in kind else []
        oracle = Oracle(tokenizer, source, ends, tools, seen[bool(tools)])
        encoded = encode_row(row_of(messages, tools), template, 10**9)
        outcomes[kind] = compare(encoded, oracle, messages, tokenizer)
    return outcomes


def compare(encoded: Any, oracle: Oracle, messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> str:
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    try:
        whole = oracle.render(messages)
        context = [m for m in messages if m["role"] in ("system", "tool")]
        lost = [m["role"] for m in context if not all(word in whole for word in re.findall(r"\w+", m["content"]))]
        expected = [oracle.turn(messages, i)[0] for i in turns]
    except Unprovable as error:
        expected, lost = None, [str(error)]
    except Undecided:
        return "undecided"
    if not isinstance(encoded, Encoded) or encoded.dropped:
        rejected = encoded.dropped[0] if isinstance(encoded, Encoded) else encoded
        if expected is not None and not lost:
            return f"UNJUST {rejected.reason}: {rejected.detail} | {expected}"
        return f"refused {rejected.reason}"
    found = trained(encoded, tokenizer)
    if "system_folded" in encoded.notes or "tool_ids_numbered" in encoded.notes:
        return "folded"
    if expected is None or lost:
        return f"WRONG accepted though {lost} | {found}"
    if len(encoded.examples) == 1:  # turns that adjoin are one run
        found = [Expected(found[0].given, "".join(e.written for e in found))]
        expected = [Expected(expected[0].given, "".join(e.written for e in expected))]
    if [e.written for e in found] != [e.written for e in expected]:
        return f"WRONG written {[e.written for e in found]} | {[e.written for e in expected]}"
    if [e.given for e in found] != [e.given for e in expected]:
        return f"WRONG given {[e.given for e in found]} | {[e.given for e in expected]}"
    return "exact"


@pytest.mark.slow
def test_every_published_template(sources):
    """No mask is wrong, and of the conversations that could be learned under 2% are refused.

    With the model's own end token in the tokenizer, and every second template with one that none writes: then the renderings alone tell.
    """
    assert len(sources) > 140
    outcomes: dict[str | None, dict[tuple[str, str], str]] = {None: {}, "</s>": {}}
    for number, (name, text) in enumerate(sources.items()):
        for eos, found in [*outcomes.items()][: 1 + number % 2]:  # both while transformers has the template compiled
            kinds = list(CONVERSATIONS) if eos is None else [kind for kind in CONVERSATIONS if kind in FEW]
            found |= {(name, kind): outcome for kind, outcome in judge(name, text, kinds, eos).items()}
    for eos, found in outcomes.items():
        assert not {case: outcome for case, outcome in found.items() if outcome.startswith("WRONG")}
        unjust = {case: outcome for case, outcome in found.items() if outcome.startswith("UNJUST")}
        exact = sum(outcome == "exact" for outcome in found.values())
        assert exact > (2500 if eos is None else 250)
        assert len(unjust) / (exact + len(unjust)) < 0.02, unjust
