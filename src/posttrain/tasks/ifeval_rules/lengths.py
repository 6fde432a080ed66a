"""How long a reply is and how it is divided: words, sentences, paragraphs, sections, bullets, two replies in one."""

from __future__ import annotations

import re

from posttrain.tasks.ifeval_rules.counting import Relation, count_sentences, count_words, meets
from posttrain.tasks.ifeval_rules.verifier import Count, Number, Text, Verifier

_RULE = re.compile(r"\s?\*\*\*\s?")
_BULLET = re.compile(r"^\s*(?:\*[^*].*|-.*)$", re.MULTILINE)


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
