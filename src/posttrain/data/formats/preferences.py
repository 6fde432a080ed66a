"""Formats of preferences: two replies of which one is better, rated or ranked answers, and replies that are judged good or bad
(docs/data-preferences.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import (
    Foreign,
    RowError,
    finite,
    first_text,
    items,
    json_value,
    kind_of,
    lacking,
    objects,
    optional_text,
    value_in,
)
from posttrain.data.formats.conversations import ALPACA, MESSAGES, MOSS, PROMPT_COMPLETION, SHAREGPT, TEXT_PAIR
from posttrain.data.formats.drafts import Format, Judgement, Pair, Ranked, Talk, having, is_whole, parted
from posttrain.data.formats.prompts import is_transcript, prompt_key_of, prompt_of, reply_under, transcript
from posttrain.data.formats.turns import Turns, talk, turns_under
from posttrain.types import Message

_SIDES = ("chosen", "rejected")


def _sides(record: Foreign, names: Sequence[str] = _SIDES) -> tuple[Turns, Turns]:
    """The better and the worse reply."""
    better, worse = (turns_under(record, key, "assistant") for key in names)
    return better, worse


def _is_hh_rlhf(record: Foreign) -> bool:
    """Whether both sides are transcripts and nothing else tells the prompt."""
    sides = record.get("chosen"), record.get("rejected")
    return prompt_key_of(record) is None and all(isinstance(side, str) and is_transcript(side) for side in sides)


def _hh_rlhf(record: Foreign) -> Pair:
    """HH-RLHF: ``chosen`` and ``rejected`` are whole transcripts, and the turns they share are the prompt."""
    chosen, rejected = (transcript(optional_text(record, key)) for key in _SIDES)
    return Pair(record, set(_SIDES), *parted(chosen, rejected))


_TALKS = (*keys.TALKS[1:], "messages")
_WHOLE = ("chosen_messages", "rejected_messages")


def _is_ranking(record: Foreign) -> bool:
    """Whether a conversation has two replies, or there are two conversations."""
    replies = record.keys() >= set(_SIDES) and keys.first(record, _TALKS) is not None and prompt_key_of(record) is None
    return replies or record.keys() >= set(_WHOLE)


def _ranking(record: Foreign) -> Pair:
    """LLaMA-Factory's ranking: a conversation that waits for a reply, and the replies under ``chosen`` and ``rejected``."""
    if record.keys() >= set(_WHOLE):
        chosen, rejected = (talk(items(record, key)) for key in _WHOLE)
        return Pair(record, set(_WHOLE), *parted(chosen, rejected))
    chosen, rejected = _sides(record)
    used = {*_SIDES, *_TALKS}
    if is_whole(chosen) or is_whole(rejected):
        return Pair(record, used, *parted(chosen, rejected))
    prompt = talk(items(record, keys.first(record, _TALKS) or "conversations"))
    if prompt and prompt[-1].role == "assistant":
        raise RowError("wrong_shape", "the conversation before the two replies ends with a reply")
    return Pair(record, used, prompt, chosen, rejected)


_SCORES = tuple(
    (form.format("chosen"), form.format("rejected"))
    for form in ("score_{}", "{}_score", "rating_{}", "{}_rating", "{}-rating", "reward_{}", "{}_reward")
)


def _is_pair(record: Foreign) -> bool:
    return record.keys() >= set(_SIDES) and not _is_hh_rlhf(record) and not _is_ranking(record)


def _pair(record: Foreign) -> Pair:
    """Pairs: ``chosen`` and ``rejected``, each text, a message or messages, with a prompt or as whole conversations."""
    prompt, used = prompt_of(record)
    chosen, rejected = _sides(record)
    if not prompt or is_whole(chosen) or is_whole(rejected):
        shared, chosen, rejected = parted(chosen, rejected)
        written = all(isinstance(record.get(key, ""), str) for key in used)
        if shared[: len(prompt)] != prompt and not (written and _is_told(prompt, shared)):
            raise RowError("wrong_shape", "chosen and rejected are whole conversations that begin unlike the prompt")
        prompt = shared
    return Pair(record, {*_SIDES, *used}, prompt, chosen, rejected, _margin(record))


def _is_told(prompt: Turns, shared: Turns) -> bool:
    """Whether a prompt given as text says what the shared turns say: a part of them, or a rendering of them."""
    given, whole = (" ".join(" ".join(turn.content for turn in turns).split()) for turns in (prompt, shared))
    return given in whole or all(" ".join(turn.content.split()) in given for turn in shared if turn.role == "user")


def _margin(record: Foreign) -> float | None:
    for names in _SCORES:
        better, worse = (finite(record.get(name)) for name in names)
        if better is not None and worse is not None:
            return better - worse
    return None


_ARENA = ("conversation_a", "conversation_b")
_WINNERS = {"model_a": _ARENA, "model_b": _ARENA[::-1]}
"""Winner -> the keys of chosen and rejected."""
_ARENA_TIES = ("tie", "tie (bothbad)")


def _arena(record: Foreign) -> Pair:
    """Chatbot Arena: two conversations with the same user, and which model won."""
    winner = record.get("winner")
    if winner in _ARENA_TIES:
        raise RowError("tie", f"winner: {winner}")
    names = _WINNERS.get(winner) if isinstance(winner, str) else None
    if names is None:
        raise RowError("unknown_winner", f"winner {winner!r}; known: {', '.join((*_WINNERS, *_ARENA_TIES))}"[:200])
    chosen, rejected = (talk(items(record, key)) for key in names)
    asked, also_asked = ([turn.content for turn in turns if turn.role == "user"] for turns in (chosen, rejected))
    if asked != also_asked:
        raise RowError("no_shared_prompt", "the user said other things to the two models")
    return Pair(record, {*_ARENA, "winner"}, *parted(chosen, rejected))


_VOTED = ("question", "response_j", "response_k")


def _stack_exchange(record: Foreign) -> Pair:
    """StackExchange paired: a ``question`` with ``response_j``, the answer with more votes, and ``response_k``."""
    question, better, worse = (optional_text(record, key) for key in _VOTED)
    sides = (Message("assistant", better),), (Message("assistant", worse),)
    return Pair(record, set(_VOTED), (Message("user", question),), *sides)


_PREFERRED = ("preferred_output", "non_preferred_output")


def _openai_preference(record: Foreign) -> Pair:
    """OpenAI's form for preference fine-tuning: ``input`` with messages and tools, ``preferred_output``, ``non_preferred_output``."""
    given = record.get("input")
    if isinstance(given, str) and isinstance(written := value_in(given), Mapping):  # a cell of a table
        given = written
        record = {**record, "input": given}
    if not isinstance(given, Mapping | str | list):
        raise RowError("wrong_shape", f"'input' is {kind_of(given)}, expected messages")
    prompt = turns_under(record, "input", "user")
    inner = {key: value for key, value in given.items() if key != "messages"} if isinstance(given, Mapping) else {}
    return Pair({**inner, **record}, {"input", *_PREFERRED}, prompt, *_sides(record, _PREFERRED))


_ENDS = (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B"))
RESPONSES = tuple(
    (name + joint + ends[0], name + joint + ends[1])
    for name in ("response", "output", "answer", "completion", "reply")
    for joint in ("_", "")
    for ends in _ENDS
)
"""The keys of two replies."""
_SIGNED = ("preference_strength", "overall_preference")
_VERDICTS = (
    *("better", "better_response_id", "preferred", "preference", "winner", "label", "choice", "chosen", "better_id"),
    *_SIGNED,
)
_COMPARED = re.compile(r"\[*(\w+)\s*(>+|<+|=+)\s*(\w+)\]*")
_TIES = ("tie", "equal", "both", "neither", "same", "tie (bothbad)")


def _numbered(record: Foreign) -> tuple[str, str] | None:
    return next((pair for pair in RESPONSES if pair[0] in record and pair[1] in record), None)


def _is_two_responses(record: Foreign) -> bool:
    sides, key = _numbered(record), keys.first(record, _VERDICTS)
    judged = sides is not None and key is not None and _better(key, record[key], sides) is not None
    return judged and prompt_key_of(record) is not None


def _two_responses(record: Foreign) -> Pair:
    """Two numbered replies and which is better: PKU-SafeRLHF (``response_0``, ``response_1``, ``better_response_id``) and its relatives."""
    sides, key = _numbered(record), keys.first(record, _VERDICTS)
    if sides is None or key is None:
        raise lacking(record, "no two replies with a verdict")
    better = _better(key, record[key], sides)
    if better == "":
        raise RowError("tie", f"{key}: {str(record[key])[:80]}")
    if better is None:
        detail = f"{key!r} is {str(record[key])[:80]!r}, expected one of {sides[0]}, {sides[1]}"
        raise RowError("unknown_winner", detail)
    safer = record.get("safer_response_id")
    if key != "better" and keys.is_present(safer) and _named(safer, sides) not in (better, None):
        raise RowError("labels_disagree", f"{key} and safer_response_id name different replies")
    prompt, used = prompt_of(record)
    ordered = (better, sides[1 - sides.index(better)])
    return Pair(record, {*used, *sides, key}, prompt, *_sides(record, ordered))


def _better(key: str, verdict: Any, sides: tuple[str, str]) -> str | None:
    """The key of the better reply, empty for a tie, None for what isn't a verdict."""
    if isinstance(verdict, str):
        word = verdict.strip().lower()
        compared = _COMPARED.fullmatch(word)
        if word in _TIES or (compared is not None and "=" in compared[2]):
            return ""
        return _named(compared[1 if ">" in compared[2] else 3] if compared is not None else word, sides)
    number = finite(verdict)
    if number is None:
        return None
    if key in _SIGNED:
        return "" if number == 0 else sides[number > 0]
    if key == "preference" and 1 < number < 2 and sides[0].endswith("1"):  # AlpacaEval's, weighted
        return "" if number == 1.5 else sides[number > 1.5]
    return _named(verdict, sides)


def _named(verdict: Any, sides: tuple[str, str]) -> str | None:
    """The key of the reply that a verdict names."""
    if isinstance(verdict, bool) or not isinstance(verdict, str | int | float):
        return None
    if isinstance(verdict, float) and verdict.is_integer():
        verdict = int(verdict)
    word = str(verdict).strip().lower()
    return next((side for side in sides if word in (side.lower(), side[-1].lower(), f"model_{side[-1].lower()}")), None)


# ---- rated and ranked answers --------------------------------------------------------------------------------------

_RATED = ("responses", "completions", "candidates", "outputs", "generations")
_TEXTS = ("text", "response", "content", "answer", "output", "completion")
_RATINGS = ("score", "rating", "reward", "rank")
_OVERALL = ("overall_score", "fine-grained_score", "annotations")


def _first(record: Foreign, key: str) -> Foreign:
    """The first object of a list under a key, an empty one where there is none."""
    found = record.get(key)
    return found[0] if isinstance(found, list) and found and isinstance(found[0], Mapping) else {}


def _negative_rank(answer: Foreign) -> float | None:
    rank = finite(answer.get("rank"))
    return None if rank is None else -rank


def _ultrafeedback(record: Foreign) -> Ranked:
    """UltraFeedback: an ``instruction`` with ``completions``, each a response that was rated."""
    prompt, used = prompt_of(record)
    completions = objects(record, "completions")
    scores = [finite(completion.get("overall_score")) for completion in completions]
    if None in scores:
        scores = [_mean_rating(completion) for completion in completions]
    texts = [optional_text(completion, "response") for completion in completions]
    return Ranked(record, used | {"completions"}, prompt, tuple(zip(scores, texts, strict=True)))


def _mean_rating(completion: Foreign) -> float | None:
    mean = finite(completion.get("fine-grained_score"))
    aspects = completion.get("annotations")
    if mean is not None or not isinstance(aspects, Mapping):
        return mean
    found = [finite(aspect.get("Rating")) for aspect in aspects.values() if isinstance(aspect, Mapping)]
    ratings = [rating for rating in found if rating is not None]
    return sum(ratings) / len(ratings) if ratings else None


def _is_ultrafeedback(record: Foreign) -> bool:
    first = _first(record, "completions")
    return "response" in first and not first.keys().isdisjoint(_OVERALL) and prompt_key_of(record) is not None


def _is_nectar(record: Foreign) -> bool:
    return _first(record, "answers").keys() >= {"answer", "rank"} and prompt_key_of(record) is not None


def _nectar(record: Foreign) -> Ranked:
    """Nectar: a ``prompt`` with ``answers``, each with its ``rank`` (1 is the best)."""
    prompt, used = prompt_of(record)
    answers = [(_negative_rank(answer), optional_text(answer, "answer")) for answer in objects(record, "answers")]
    return Ranked(record, used | {"answers"}, prompt, tuple(answers))


def _scored_key(record: Foreign) -> str | None:
    """The key of responses that are objects with text and score."""
    for key in _RATED:
        first = _first(record, key)
        if first_text(first, _TEXTS) and _score_of(first) is not None:
            return key
    return None


def _score_of(response: Foreign) -> float | None:
    key = next((key for key in _RATINGS if key in response), None)
    return None if key is None else _negative_rank(response) if key == "rank" else finite(response[key])


def _scores_key(record: Foreign) -> str | None:
    known = ("scores", "ratings", "rewards")
    return next((key for key in record if key in known or key.startswith("rewards_")), None)


def _is_scored_responses(record: Foreign) -> bool:
    scored = "responses" in record and _scores_key(record) is not None
    return (scored or _scored_key(record) is not None) and prompt_key_of(record) is not None


def _scored_responses(record: Foreign) -> Ranked:
    """Scored responses: a prompt, a list of ``responses``, and a list of their scores beside it."""
    prompt, used = prompt_of(record)
    rated = _scored_key(record)
    if rated is not None:
        own = [(_score_of(response), first_text(response, _TEXTS) or "") for response in objects(record, rated)]
        return Ranked(record, used | {rated}, prompt, tuple(own))
    key = _scores_key(record) or "scores"
    texts, scores = items(record, "responses"), items(record, key)
    if len(texts) != len(scores):
        raise RowError("wrong_shape", f"{len(texts)} responses with {len(scores)} scores in {key!r}")
    for text in texts:
        if not isinstance(text, str):
            raise RowError("wrong_shape", f"'responses' holds {kind_of(text)}, expected text")
    found = [finite(score.get("score") if isinstance(score, Mapping) else score) for score in scores]
    return Ranked(record, used | {"responses", key}, prompt, tuple(zip(found, texts, strict=True)))


def _root(record: Foreign) -> Foreign | None:
    """The first message, where a record is such a tree."""
    root = record.get("prompt", record)
    found = isinstance(root, Mapping) and isinstance(root.get("replies"), list) and isinstance(root.get("text"), str)
    return root if found else None


def _oasst(record: Foreign) -> Ranked:
    """OpenAssistant's trees: a message of the prompter, and its ``replies``, each with a ``rank`` (0 is the best)."""
    root = _root(record) or {}
    answers = [
        (_negative_rank(reply), "" if reply.get("deleted") is True else optional_text(reply, "text"))
        for reply in objects(root, "replies")
    ]
    used = {"prompt", "replies", "text", "role", "message_tree_id", "tree_state"}
    return Ranked(record, used, (Message("user", optional_text(root, "text")),), tuple(answers))


# ---- binary feedback -----------------------------------------------------------------------------------------------

_JUDGES = (
    *keys.names_of("label kto_tag desirable is_desirable is_safe safe is_response_safe response_safe"),
    *keys.names_of("is_correct is_good is_acceptable is_helpful thumbs_up"),
)
"""Keys of labels that mean good where they are true."""
_ACCUSERS = keys.names_of("is_unsafe unsafe is_harmful harmful is_toxic thumbs_down")
"""Keys of labels that mean bad where they are true."""
_SPEAKERS = (
    *keys.names_of("safety safety_label response_label response_harm_label response_safety quality quality_label"),
    *keys.names_of("verdict judgement judgment rating feedback correctness"),
)
"""Keys of labels in words only; a number there is a score."""
LABEL_KEYS = (*_JUDGES, *_ACCUSERS, *_SPEAKERS)
"""Every key of a label."""
_GOOD = (
    "true good safe desirable acceptable accepted correct unharmful harmless thumbs_up like liked helpful pass passed"
)
_BAD = (
    "false bad unsafe undesirable unacceptable rejected incorrect wrong harmful toxic thumbs_down dislike disliked "
    "unhelpful fail failed poor"
)
_WORDS = dict.fromkeys(_GOOD.split(), True) | dict.fromkeys(_BAD.split(), False)
_NUMBERS: Mapping[Any, bool] = {0: False, 1: True, -1: False}
_JUDGED: tuple[Format[Talk], ...] = (MESSAGES, SHAREGPT, MOSS, ALPACA, PROMPT_COMPLETION, TEXT_PAIR)


def _verdicts(record: Foreign) -> dict[str, bool]:
    """What the labels of a record say."""
    found = {key: _verdict(record, key) for key in LABEL_KEYS if key in record}
    return {key: verdict for key, verdict in found.items() if verdict is not None}


def _verdict(record: Foreign, key: str) -> bool | None:
    """What a label says: a boolean, its name as in a CSV cell, a word, 0 or 1."""
    value = record.get(key)
    word = value.strip().lower() if isinstance(value, str) else ""
    found = _WORDS.get(word)
    if key not in _SPEAKERS and found is None:
        number = finite(value)
        found = value if isinstance(value, bool) else None if number is None else _NUMBERS.get(number)
    if found is None:
        return None
    in_words = word in _WORDS and word not in ("true", "false")
    return not found if key in _ACCUSERS and not in_words else found


def _conversation(record: Foreign) -> Format[Talk] | None:
    return next((known for known in _JUDGED if known.detect(record)), None)


def _is_feedback(record: Foreign) -> bool:
    if "prompt_turns" in record or not _verdicts(record):
        return False
    numbered = not record.keys().isdisjoint(keys.OPTIONS) and judged_by_number(record)  # the number of an option
    return not numbered and _conversation(record) is not None


def judged_by_number(record: Foreign) -> bool:
    """Whether nothing but a number judges a reply: in a file where it has other values, too, it is a class or a score."""
    return all(finite(record[key]) is not None for key in _verdicts(record))


def numbers_are_classes(records: Sequence[Foreign]) -> bool:
    """Whether the numbers that are labels in a file are classes: some judge nothing, or the reply says which it is (few replies,
    often repeated, and each always with one label).
    """
    labels: dict[str, set[Any]] = {}
    labelled = 0
    for record in records:
        reply = record.get(keys.first(record, keys.REPLIES) or "")
        if isinstance(reply, str) and (number := finite(record.get("label"))) is not None:
            labels.setdefault(reply, set()).add(number)
            labelled += 1
    repeated = labelled >= 4 and 2 <= len(labels) <= labelled // 2 and all(len(found) == 1 for found in labels.values())
    several = len({number for found in labels.values() for number in found}) > 1
    return (repeated and several) or any(
        finite(record.get(key)) is not None and _verdict(record, key) is None
        for record in records
        for key in keys.LABELS
    )


def _feedback(record: Foreign) -> Judgement:
    """Binary feedback: any conversation format with a label that says whether the last reply is good."""
    found = _verdicts(record)
    known = _conversation(record)
    if not found:
        key = keys.first(record, LABEL_KEYS) or _JUDGES[0]
        raise RowError("wrong_shape", f"{key!r} is {kind_of(record.get(key))}, expected true or false")
    if known is None:
        raise lacking(record, "a label without a conversation")
    if len(set(found.values())) > 1:
        raise RowError("labels_disagree", ", ".join(f"{key}: {record[key]!r}" for key in found)[:200])
    turns = len(reply_under(record, "completion")) if known is PROMPT_COMPLETION else 1
    judged = known.read({name: value for name, value in record.items() if name not in found})
    return Judgement(judged, turns, next(iter(found.values())))


# ---- rows of the data chain ----------------------------------------------------------------------------------------

_COLUMNS = keys.names_of(
    "id source file line messages prompt_turns rejected desirable meta parents verdicts scores cluster split weight"
)
"""The columns of a rows file, without ``tools``."""
_NONE: frozenset[str] = frozenset()


def _is_written(record: Foreign, key: str, kind: type) -> bool:
    written = "messages" in record and isinstance(record.get("prompt_turns"), int)
    return written and isinstance(record.get(key), kind)


def _written_pair(record: Foreign) -> Pair:
    prompt, chosen = _parts(record)
    rejected = talk(items(record, "rejected"))
    return Pair(_beside(record), _NONE, prompt, chosen, rejected)


def _written_feedback(record: Foreign) -> Judgement:
    """Pairs and feedback as the data chain writes them into Parquet (docs/run-folder.md), read as any other source."""
    desirable = record.get("desirable")
    if not isinstance(desirable, bool):
        raise RowError("wrong_shape", f"'desirable' is {kind_of(desirable)}, expected true or false")
    prompt, completion = _parts(record)
    return Judgement(Talk(_beside(record), _NONE, prompt + completion), len(completion), desirable)


def _parts(record: Foreign) -> tuple[Turns, Turns]:
    messages, turns = talk(items(record, "messages")), record.get("prompt_turns")
    if not isinstance(turns, int) or not 0 <= turns <= len(messages):
        raise RowError("wrong_shape", f"'prompt_turns' is {str(turns)[:80]} of {len(messages)} messages")
    return messages[:turns], messages[turns:]


def _beside(record: Foreign) -> dict[str, Any]:
    """What a record says beside its turns: tools, and the keys of its ``meta``, which become its meta again."""
    meta = json_value(str(record.get("meta") or "{}"), "meta")
    if not isinstance(meta, Mapping):
        raise RowError("wrong_shape", f"'meta' is {kind_of(meta)}, expected an object")
    return {key: value for key, value in record.items() if key not in _COLUMNS} | dict(meta)


# ---- the formats ---------------------------------------------------------------------------------------------------

FEEDBACK = Format("feedback", _is_feedback, _feedback, "feedback")
FORMATS: tuple[Format[Pair] | Format[Ranked] | Format[Judgement], ...] = (
    Format("pairs", _is_pair, _pair, "pairs"),
    Format("hh_rlhf", _is_hh_rlhf, _hh_rlhf, "pairs"),
    Format("ranking", _is_ranking, _ranking, "pairs"),
    Format("ultrafeedback", _is_ultrafeedback, _ultrafeedback, "pairs", rated=True),
    Format("nectar", _is_nectar, _nectar, "pairs", rated=True),
    Format("scored_responses", _is_scored_responses, _scored_responses, "pairs", rated=True),
    Format("arena", having(*_ARENA, "winner"), _arena, "pairs"),
    Format("stack_exchange", having(*_VOTED), _stack_exchange, "pairs"),
    FEEDBACK,
    Format("openai_preference", having("input", *_PREFERRED), _openai_preference, "pairs"),
    Format("two_responses", _is_two_responses, _two_responses, "pairs"),
    Format("oasst", lambda record: _root(record) is not None, _oasst, "pairs", rated=True),
    Format("posttrain_pairs", partial(_is_written, key="rejected", kind=list), _written_pair, "pairs"),
    Format("posttrain_feedback", partial(_is_written, key="desirable", kind=bool), _written_feedback, "feedback"),
)
"""In the order in which they are looked at."""
