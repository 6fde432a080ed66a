"""The instruction types of IFEval (Zhou et al. 2023, arXiv:2311.07911), each a function from an instruction's arguments to a verifier.

The annotations of the arguments are what a prompt file may write there; reading one checks them. A new type is one function and one
line in :data:`INSTRUCTIONS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge, MaxLen, MinLen

from posttrain.table import Table
from posttrain.tasks.ifeval_rules.counting import Relation, count_capital_words, count_sentences, count_words, meets
from posttrain.tasks.ifeval_rules.language import FEW_CAPITALS_FLOOR, FEW_SMALL_FLOOR, Verifier, written_in

Count = Annotated[int, Ge(0)]
Number = Annotated[int, Ge(1)]
Text = Annotated[str, MinLen(1)]
Texts = Annotated[tuple[Text, ...], MinLen(1)]
Character = Annotated[str, MinLen(1), MaxLen(1)]

_PLACEHOLDER = re.compile(r"\[.*?\]")
_HIGHLIGHT = re.compile(r"\*([^\n*]*)\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*([^\n*]*)\*\*")
_TITLE = re.compile(r"<<[^\n]+>>")
_FENCE = re.compile(r"\A```(?:json|Json|JSON)?|```\Z")
_RULE = re.compile(r"\s?\*\*\*\s?")
_BULLET = re.compile(r"^\s*(?:\*[^*].*|-.*)$", re.MULTILINE)

# ---- keywords, letters, placeholders, beginnings and ends ----------------------------------------------------------


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


# ---- form ----------------------------------------------------------------------------------------------------------


def number_highlighted_sections(*, num_highlights: Count) -> Verifier:
    """At least so many pieces between single or double asterisks that hold more than spaces."""

    def follows(reply: str) -> bool:
        pieces = [*_HIGHLIGHT.findall(reply), *_DOUBLE_HIGHLIGHT.findall(reply)]
        return sum(bool(piece.strip()) for piece in pieces) >= num_highlights

    return follows


def title() -> Verifier:
    """A line holds a title in double angle brackets that is not empty."""
    return lambda reply: any(found.lstrip("<").rstrip(">").strip() for found in _TITLE.findall(reply))


def json_format() -> Verifier:
    """The whole reply is JSON, alone or in a Markdown fence."""

    def follows(reply: str) -> bool:
        try:
            json.loads(_FENCE.sub("", reply.strip()).strip())
        except (ValueError, RecursionError):
            return False
        return True

    return follows


def quotation() -> Verifier:
    """The whole reply stands between straight double quotes."""

    def follows(reply: str) -> bool:
        text = reply.strip()
        return len(text) > 1 and text[0] == text[-1] == '"'

    return follows


# ---- lengths -------------------------------------------------------------------------------------------------------


def number_words(*, num_words: Count, relation: Relation) -> Verifier:
    """The number of words."""
    return lambda reply: meets(count_words(reply), relation, num_words)


def number_sentences(*, num_sentences: Count, relation: Relation) -> Verifier:
    """The number of sentences, as for English; see ``counting.sentences``."""
    return lambda reply: meets(count_sentences(reply), relation, num_sentences)


def number_paragraphs(*, num_paragraphs: Count) -> Verifier:
    """Exactly so many paragraphs divided by ``***``; an empty one is allowed at either end and counts nowhere."""

    def follows(reply: str) -> bool:
        paragraphs = [part.strip() for part in _RULE.split(reply)]
        return all(paragraphs[1:-1]) and sum(map(bool, paragraphs)) == num_paragraphs

    return follows


def nth_paragraph_first_word(*, num_paragraphs: Count, nth_paragraph: Number, first_word: Text) -> Verifier:
    """Exactly so many paragraphs divided by an empty line, and the first word of one of them.

    Empty paragraphs do not count, but they shift the place at which the word is looked for, as in the original.
    """

    def follows(reply: str) -> bool:
        paragraphs = [part.strip() for part in reply.split("\n\n")]
        counted = sum(map(bool, paragraphs))
        if counted != num_paragraphs or nth_paragraph > counted:
            return False
        return _first_word(paragraphs[nth_paragraph - 1]) == first_word.lower()

    return follows


def _first_word(paragraph: str) -> str:
    """The first word in small letters, without quotes before it and up to the first mark; nothing of an empty paragraph."""
    run = paragraph.split(maxsplit=1)[0] if paragraph else ""
    return re.split(r"""[.,?!'"]""", run.lstrip("'").lstrip('"'), maxsplit=1)[0].lower()


def multiple_sections(*, section_spliter: Text, num_sections: Count) -> Verifier:
    """At least so many headings ``Section 1``; the key's spelling is the original's."""
    heading = re.compile(rf"\s?{re.escape(section_spliter)}\s?\d+\s?")
    return lambda reply: len(heading.findall(reply)) >= num_sections


def number_bullet_lists(*, num_bullets: Count) -> Verifier:
    """Exactly so many lines that begin with ``*`` (not ``**``) or ``-``."""
    return lambda reply: len(_BULLET.findall(reply)) == num_bullets


def two_responses() -> Verifier:
    """Two different replies divided by six asterisks; an empty one is allowed at either end and counts nowhere."""

    def follows(reply: str) -> bool:
        parts = [part.strip() for part in reply.split("******")]
        written = [part for part in parts if part]
        return all(parts[1:-1]) and len(written) == 2 and written[0] != written[1]

    return follows


# ---- language and case ---------------------------------------------------------------------------------------------


def response_language(*, language: Annotated[str, MinLen(2)]) -> Verifier:
    """The whole reply is in a language (ISO 639 code; ``zh-cn`` and ``zh-tw`` are ``zh``)."""
    return written_in(language.lower().partition("-")[0])


def english_capital() -> Verifier:
    """English, with capital letters and no small ones."""
    english = written_in("en", FEW_CAPITALS_FLOOR)
    return lambda reply: reply.isupper() and english(reply)


def english_lowercase() -> Verifier:
    """English, with small letters and no capital ones."""
    english = written_in("en", FEW_SMALL_FLOOR)
    return lambda reply: reply.islower() and english(reply)


def capital_word_frequency(*, capital_frequency: Count, capital_relation: Relation) -> Verifier:
    """How many words are all in capitals; see ``counting.count_capital_words``."""
    return lambda reply: meets(count_capital_words(reply), capital_relation, capital_frequency)


INSTRUCTIONS: Table[Callable[..., Verifier]] = Table(
    "IFEval instruction",
    {
        "keywords:existence": existence,
        "keywords:frequency": frequency,
        "keywords:forbidden_words": forbidden_words,
        "keywords:letter_frequency": letter_frequency,
        "language:response_language": response_language,
        "length_constraints:number_sentences": number_sentences,
        "length_constraints:number_paragraphs": number_paragraphs,
        "length_constraints:number_words": number_words,
        "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
        "detectable_content:number_placeholders": number_placeholders,
        "detectable_content:postscript": postscript,
        "detectable_format:number_bullet_lists": number_bullet_lists,
        "detectable_format:constrained_response": constrained_response,
        "detectable_format:number_highlighted_sections": number_highlighted_sections,
        "detectable_format:multiple_sections": multiple_sections,
        "detectable_format:json_format": json_format,
        "detectable_format:title": title,
        "combination:two_responses": two_responses,
        "combination:repeat_prompt": repeat_prompt,
        "startend:end_checker": end_checker,
        "startend:quotation": quotation,
        "change_case:capital_word_frequency": capital_word_frequency,
        "change_case:english_capital": english_capital,
        "change_case:english_lowercase": english_lowercase,
        "punctuation:no_comma": no_comma,
    },
)
"""Type -> a function from its arguments (keywords only) to a verifier."""
