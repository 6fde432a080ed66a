"""What a reply must hold: keywords, letters, placeholders, a postscript, beginnings and ends."""

from __future__ import annotations

import re
from typing import Annotated

from annotated_types import MaxLen, MinLen

from posttrain.tasks.ifeval_rules.counting import Relation, meets
from posttrain.tasks.ifeval_rules.verifier import Count, Text, Verifier

Texts = Annotated[tuple[Text, ...], MinLen(1)]
Character = Annotated[str, MinLen(1), MaxLen(1)]

_PLACEHOLDER = re.compile(r"\[.*?\]")


def existence(*, keywords: Texts) -> Verifier:
    """Every keyword occurs, in any case and also inside a longer word."""
    patterns = [re.compile(re.escape(keyword), re.IGNORECASE) for keyword in keywords]
    return lambda reply: all(pattern.search(reply) for pattern in patterns)


def frequency(*, keyword: Text, frequency: Count, relation: Relation) -> Verifier:
    """How often a keyword occurs, in any case and also inside a longer word."""
    pattern = re.compile(re.escape(keyword), re.IGNORECASE)
    return lambda reply: meets(len(pattern.findall(reply)), relation, frequency)


def forbidden_words(*, forbidden_words: Texts) -> Verifier:
    """None of the words occurs as a whole word, in any case."""
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in forbidden_words), re.IGNORECASE)
    return lambda reply: pattern.search(reply) is None


def letter_frequency(*, letter: Character, let_frequency: Count, let_relation: Relation) -> Verifier:
    """How often a character occurs, in any case.

    ``#`` and ``!`` are taken as they are written. The original replaces what is not in a-z by a random letter, so its verdicts on
    the prompts 1122 and 1129 differ from run to run.
    """
    return lambda reply: meets(reply.lower().count(letter.lower()), let_relation, let_frequency)


def number_placeholders(*, num_placeholders: Count) -> Verifier:
    """At least so many pairs of square brackets, each on one line."""
    return lambda reply: len(_PLACEHOLDER.findall(reply)) >= num_placeholders


def postscript(*, postscript_marker: Text) -> Verifier:
    """The marker occurs, in any case; the letters of ``P.S.`` and ``P.P.S`` may stand apart."""
    marker = postscript_marker.lower()
    spaced = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s"}.get(marker, re.escape(marker))
    pattern = re.compile(spaced)
    return lambda reply: pattern.search(reply.lower()) is not None


def repeat_prompt(*, prompt_to_repeat: Text) -> Verifier:
    """The reply begins with the request, in any case."""
    start = prompt_to_repeat.strip().lower()
    return lambda reply: reply.strip().lower().startswith(start)


def end_checker(*, end_phrase: Text) -> Verifier:
    """The reply ends with the phrase, in any case; quotes around the reply do not count."""
    end = end_phrase.strip().lower()
    return lambda reply: reply.strip().strip('"').lower().endswith(end)


def no_comma() -> Verifier:
    """No comma occurs (the ASCII one, as in the original)."""
    return lambda reply: "," not in reply


def constrained_response() -> Verifier:
    """One of the three answers that the prompt names occurs."""
    return lambda reply: any(f"My answer is {word}." in reply for word in ("yes", "no", "maybe"))
