"""What IFEval counts: words, sentences and words in capitals, and how a count is held against a limit.

The original (arXiv:2311.07911) counts with NLTK: ``RegexpTokenizer`` for words, the Punkt model of English for sentences,
the Treebank tokenizer for words in capitals. These are rules of our own that give the same counts where it matters
(tests/tasks/test_published_ifeval.py), without a trained model: the list of abbreviations below stands for Punkt's.
"""

from __future__ import annotations

import re
from typing import Literal

Relation = Literal["less than", "at least"]


def meets(count: int, relation: Relation, limit: int) -> bool:
    """Whether a count is below the limit, or reaches it.

    >>> meets(3, "less than", 3), meets(3, "at least", 3)
    (False, True)
    """
    return count < limit if relation == "less than" else count >= limit


# ---- words ---------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+")
_SEPARATED = re.compile(
    r"""\.\.+ | -- | [;@\#$%&?!()\[\]{}<>"\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e\u2026]   # tokens of their own
      | [:,] (?!\d)                                                          # but not in 10:30 and 1,000
      | ' (?= (?: [smd] | ll | re | ve )? (?: [\s.,:;?!()\[\]{}<>"'] | $ ) )    # it's, they're, the boys'
      | (?<= \w ) (?= n't (?: [\s.,:;?!()\[\]{}<>"'] | $ ) )                      # do | n't
      | (?<= \b can ) (?= not \b ) | (?<= \b (?:gon|wan) ) (?= na \b ) | (?<= \b got ) (?= ta \b ) | (?<= \b (?:gim|lem) ) (?= me \b )
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Where the Treebank tokenizer cuts inside a run without spaces. What it cuts off is a token of its own, apart from the
apostrophe, which goes with the letters behind it."""


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores, so ``don't`` is two.

    >>> count_words("I don't know.")
    4
    """
    return len(_WORD.findall(text))


def count_capital_words(text: str) -> int:
    """Tokens without a small letter and with a capital one, cut as the Treebank tokenizer cuts them.

    A hyphen or slash does not cut, an apostrophe does: ``WELL-KNOWN`` and ``AND/OR`` are one each, ``IT'S`` is two.

    >>> count_capital_words("I said: IT'S A WELL-KNOWN fact (NASA, 1969).")
    6
    """
    return sum(part.isupper() for run in text.split() for part in _SEPARATED.sub(" ", run).split())


# ---- sentences -----------------------------------------------------------------------------------------------------

_TITLES = "mr mrs ms dr prof sr jr st rep sen gen col maj lt adm inc ltd co corp cos bros vs v ft ave"
_DATES = "jan feb aug sep sept oct nov dec tues wed fri a.m p.m a.d"
_PLACES = (
    "u.s u.k u.n u.s.a d.c n.y l.a ariz calif colo conn fla ga ill kan ky mich minn nev okla ore pa tenn va vt wash wis"
)
_ABBREVIATIONS = frozenset(f"{_TITLES} {_DATES} {_PLACES} ph.d m.b.a".split())
"""Words that a full stop shortens: after them it ends no sentence by itself. A choice of the common ones that Punkt's model of English
knows, too; it does not know ``e.g.`` and ``i.e.``, so a sentence ends there, for the original and here."""

_PRONOUNS = "the a an this that these those there here it he she they we you his her their our your its my"
_PREPOSITIONS = (
    "in on at by for from with after before during since while when where if as although though because once of to"
)
_ADVERBS = (
    "and but or so however then also thus moreover meanwhile now today yes no not well just maybe perhaps finally first second next later "
    "instead otherwise still yet even only"
)
_VERBS = "is are was were do does did can could will would should may let please"
_QUANTITIES = "both either some many most all each every one another other such what why how who which"
_STARTERS = frozenset(f"{_PRONOUNS} {_PREPOSITIONS} {_ADVERBS} {_VERBS} {_QUANTITIES}".split())
"""Words that carry a capital only where a sentence starts: after an abbreviation or an ellipsis they tell that one does."""

_CLOSING = r"[)\";}\]*:@'({\[!?\u2018\u2019\u201c\u201d\u00ab\u00bb]"
"""What may stand directly behind the end of a sentence."""
_END = re.compile(
    rf"(?:(?P<line_start>^[ \t]*)|(?<!\S))(?P<run>\S*[.?!])(?=(?P<closing>{_CLOSING})|\s+(?P<next>\S+))", re.MULTILINE
)
"""The part of a run without spaces up to its last possible end of a sentence, and what follows."""
_BEHIND_END = re.compile(r"""\s*["')\]}\u2018\u2019\u201c\u201d\u00ab\u00bb]+(?:\s+|(?=--)|$)""")
"""Quotes and brackets that still belong to the sentence before."""
_MARKS = re.compile(r"[()\"`{\[:;&#*@}\]\-,\u2018\u201c]")
"""What a token does not hold."""
_NUMBER = re.compile(r"-?[.,]?\d[\d,.\-]*\.")
_LETTERS = re.compile(r"[^\W\d_]+")
_INITIAL = re.compile(r"[^\W\d]\.")


def sentences(text: str) -> list[str]:
    """The sentences of a text, after Punkt (Kiss and Strunk 2006).

    ``!`` and ``?`` end a sentence, a full stop does unless it belongs to an abbreviation, an initial, an ellipsis or a number
    that goes on in small letters. A line break ends none: a list without full stops is one sentence. The ``1.`` or ``A.`` of an enumeration
    is a sentence of its own before a capital letter, as it is for Punkt.

    >>> sentences('Dr. Lee asked: "Why?" No one knew... not even J. Smith. 1. Stop.')
    ['Dr. Lee asked: "Why?"', 'No one knew... not even J. Smith.', '1.', 'Stop.']
    """
    found: list[str] = []
    start = 0
    for end in _END.finditer(text):
        if not _is_end(end["run"], end["closing"] or end["next"], end["line_start"] is not None):
            continue
        stop = end.end()
        behind = _BEHIND_END.match(text, stop)
        stop = behind.end() if behind else stop
        found.append(text[start:stop].strip())
        start = stop
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def count_sentences(text: str) -> int:
    """How many sentences a text has (see :func:`sentences`)."""
    return len(sentences(text))


def _is_end(run: str, follower: str, at_line_start: bool) -> bool:
    """Whether the last mark of a run without spaces ends a sentence, given the mark or the run that follows."""
    if "!" in run or "?" in run:
        return True
    token = _MARKS.split(run)[-1].lstrip("'")
    initial = _INITIAL.fullmatch(token) is not None
    if _NUMBER.fullmatch(token) or (initial and at_line_start):
        return not follower[0].islower()
    if initial or token[:-1].lower() in _ABBREVIATIONS or run.endswith(".."):
        letters = _LETTERS.match(follower)
        if letters is None:
            return initial
        return follower[0].isupper() and letters[0].lower() in _STARTERS
    return True
