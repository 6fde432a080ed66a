"""What tells look-alikes apart: the Unicode form of a text, and its numbers, symbols, negations and meaningful case.

:mod:`posttrain.data.text` folds texts so that like ones are found: 2³ becomes 23, case and symbols go. That may propose a pair and
never decides about it. Here nothing is folded but the Unicode form, and every part that makes another exercise of the same words is a
*mark*: digits, symbols, negations, number words, the case of code and of words like USERNAME or userName. Marks of prose
(the comma of a sentence, a bullet, quotation marks, the capital of a first word) are none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from posttrain.data.text import CJK

_MEANINGFUL_FORMS = ("<super>", "<sub>", "<fraction>", "<circle>", "<font>", "<square>")
"""Compatibility forms that are other content and not another way to write the same: x² is not x2, ℝ is not R."""
_COMPATIBLE = ((0xA0, 0x3400), (0xA69C, 0xABFF), (0xF900, 0x10000), (0x1D400, 0x1D800), (0x1EE00, 0x1F300))
"""Where code points with compatibility forms stand."""


_UNSEEN = (0xAD, 0x200B, 0x2060, 0xFEFF)
"""Soft hyphen, space without width, its opposites: nobody sees whether they are there."""


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NEGATIONS = _listed(
    "not no nor never neither none nothing without nicht kein keine keinen keinem keiner nie pas jamais nunca não niet geen не нет "
    "不 没 無 无 非 未 否 别 勿 莫"
)
_NUMERALS = _listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion half "
    "〇 零 一 二 三 四 五 六 七 八 九 十 百 千 万 亿 两 兩 萬 億 半"
)
_UNITS = _listed(
    "mm cm dm m km in ft yd mi mph ml cl dl l mg g kg t lb lbs oz ns ms s sec min h hr hrs hz khz mhz ghz kb mb gb tb kib mib gib "
    "w kw mw kwh v mv kv a ma j kj cal kcal n pa kpa hpa bar psi mol k c f am pm px pt em rem st nd rd th μm μg μs μl ω kω mω "
    "inch inches foot feet yard yards mile miles meter meters centimeter centimeters millimeter millimeters kilometer kilometers "
    "gram grams kilogram kilograms pound pounds ounce ounces ton tons liter liters milliliter milliliters gallon gallons "
    "second seconds minute minutes hour hours day days week weeks month months year years degree degrees "
    "cent cents dollar dollars euro euros yen yuan usd eur gbp jpy cny rmb"
)
_UNITS_ZH = _listed(
    "微米 毫米 厘米 分米 米 公里 英寸 英尺 英里 里 毫克 克 公斤 斤 吨 磅 毫升 升 平方厘米 平方米 平方公里 立方厘米 立方米 公顷 亩 "
    "毫秒 秒 分钟 小时 个小时 天 日 周 个星期 月 个月 年 度 角 元 块 美元 欧元 英镑 日元 港币"
)
"""Words that are units behind a number."""
_RELATIONS = _listed(
    "third fourth fifth sixth seventh eighth ninth tenth thirds fourths fifths quarter quarters double triple twice thrice dozen"
)
"""Ordinals, parts and multiples: they tell texts apart, and are not amounts, since other words say the same."""
_ARTICLES = frozenset(("one", "一"))
"""Numerals that mostly count nothing: one of them, 一首诗."""
_FILLERS = _listed("always ever very really quite 很 太 真 已 经")
"""What a negation takes the place of (很高兴, 不高兴): neither words nor marks."""
_TELLING = _NEGATIONS | _NUMERALS | _UNITS | _RELATIONS | _FILLERS
_TELLING_BYTES = frozenset(word.encode() for word in _TELLING if word.isascii())
_TELLING_CJK = "".join(sorted(word for word in _NEGATIONS | _NUMERALS | _FILLERS if len(word) == 1))
_NUMERALS_ZH = "".join(sorted(word for word in _NUMERALS if not word.isascii()))
_UNIT_ZH = f"(?:{'|'.join(sorted(_UNITS_ZH, key=lambda word: (-len(word), word)))})"
_COUNTED_ZH = rf"(?:(?<=[\d{_NUMERALS_ZH}])|(?<=[\d{_NUMERALS_ZH}] )){_UNIT_ZH}"
"""A Chinese unit behind a number."""
_LETTERS_ALONE = bytes(code if chr(code).isascii() and chr(code).isalpha() else 32 for code in range(256))
_LETTER_RUN = re.compile(f"[^{CJK}]+")
_ASCII_WORD = re.compile("([a-zA-Z]+)")
_PLAIN_GAPS = frozenset(("", " ", "\n", ", ", ". ", "\n\n"))
_COMMAND = re.compile(r"\\[a-zA-Z]+")
"""Of LaTeX, of a regular expression, of a string: another one is another exercise."""
_CONTRACTION = re.compile(r"(?:\b(ca|wo|sha))?n['’]t\b|\b(can)not\b", re.IGNORECASE)
_WHOLE = {"ca": "can", "wo": "will", "sha": "shall", "can": "can"}
_CODE = ("`", "()", "==", "=>", "->", "::", "{", "</", "def ", "import ", "return ", "print(", "#include")
"""What shows that a text holds code."""
_BULLETS = "-*•●○■□▪►▶◆◇★☆✓✔❖➢"
_ALWAYS = "_%&@#\\/[]{}‰′″‴·"
"""Punctuation that is content wherever it stands."""
_START, _LETTER, _WORD, _IDEOGRAPH, _DIGIT, _BLANK, _SIGN = range(7)
"""What stands beside a character: an end of the text, a word of one letter, a longer one, an ideograph or kana, a digit, white
space, or another character."""
_OPERAND = (_LETTER, _DIGIT)
_LATIN = (_LETTER, _WORD)


@dataclass(frozen=True, slots=True)
class Marks:
    """What a text has beside its words. Texts with equal ``words`` are the same exercise where all marks are equal."""

    words: str
    """The words, casefolded, without negations, numerals and the few that stand in place of a negation."""
    signs: str
    """Numbers, symbols, negations and the case of code, each with the number of words before it."""
    case: str
    """Words in capitals and with inner capitals, in prose, each with the number of words before it."""
    amounts: str
    """Numbers and operators in the order of the alphabet, and how many negations: equal for texts that say the same in other words."""
    shouted: bool
    """A text in capitals as a whole: its case says nothing."""


def unicode_form(text: str) -> str:
    """The text with canonical and width variants as one: NFKC, but for forms that are other content (², ½, ①, ℝ, ㎡)."""
    if text.isascii() or (
        unicodedata.is_normalized("NFKC", text) and not any(map(text.__contains__, map(chr, _UNSEEN)))
    ):
        return text  # in a third of the time of what follows
    return unicodedata.normalize("NFC", text.translate(_forms()))


def plain(text: str) -> str:
    """The text as equality sees it: its Unicode form, runs of white space as one blank."""
    return " ".join(unicode_form(text).split())


def letters(form: str) -> str:
    """The letters of a text in its Unicode form, without negations, numerals and units: equal where :attr:`Marks.words` are.

    A tenth of the work of marks: texts of other letters are not told apart by them.
    """
    form = _expanded(form)
    if "\\" in form:
        form = (_COMMAND if form.isascii() else _commands(_last(form))).sub("_", form)  # no blank: it would join
    if form.isascii():
        found = form.encode().lower().translate(_LETTERS_ALONE).split()
        return b"".join(
            found if _TELLING_BYTES.isdisjoint(found) else [w for w in found if w not in _TELLING_BYTES]
        ).decode()
    parts = _letters_alone(form.casefold()).split()
    return "".join(
        ["" if part in _TELLING else part if part.isascii() else _LETTER_RUN.sub(_untelling, part) for part in parts]
    )


def marks(text: str) -> Marks:
    """See :class:`Marks`."""
    form = _expanded(unicode_form(text))
    parts = _pattern(form).split(form)
    gaps, words = parts[::2], parts[1::2]
    folded = "\0".join(words).casefold().split("\0") if words else []
    left_out = _left_out(form, gaps, words, folded)
    code = "```" in form
    codelike = code or any(sign in form for sign in _CODE)
    shouted = not code and form.isupper() and sum(len(word) > 1 for word in words) > 1
    edges = ["", *words, ""]
    found = [
        _signs(gap, _kind(edges[place]), _kind(edges[place + 1]), code) if gap not in _PLAIN_GAPS else ()
        for place, gap in enumerate(gaps)
    ]
    signs, case, amounts = list[str](), list[str](), list[str]()
    negations, place = 0, 0
    for number, (word, common) in enumerate(zip([*words, ""], [*folded, ""], strict=True)):
        if found[number]:
            signs.append(f"{place} {' '.join(found[number])}")
            amounts += filter(_is_amount, found[number])
        if common in _FILLERS:
            continue
        if number in left_out:
            exact = gaps[number][-1:] == "\\" or (common in _UNITS and len(word) < 3)
            signs.append(f"{place} {word if exact else common}")
            negations += common in _NEGATIONS
            amounts += [common] if common in _NUMERALS and common not in _ARTICLES else []
            continue
        if word != common:
            if code or _in_code(gaps[number], found[number], gaps[number + 1], found[number + 1]):
                signs.append(f"{place} {word}")
            elif (codelike and gaps[number] == " ") or not _may_begin(word):
                case.append(f"{place} {word}")
        place += 1
    counted = f"{' '.join(sorted(amounts))} {negations}"
    return Marks(_spelled(form, folded, left_out), "\n".join(signs), "\n".join(case), counted, shouted)


# ---- how it is done ------------------------------------------------------------------------------------------------


def _expanded(form: str) -> str:
    """The text with "not" for every n't."""
    lower = form.lower()
    if "cannot" in lower or ("'" in lower and "n't" in lower) or ("’" in lower and "n’t" in lower):
        return _CONTRACTION.sub(lambda found: f"{_WHOLE.get((found[1] or found[2] or '').lower(), '')} not", form)
    return form


def _left_out(form: str, gaps: Sequence[str], words: Sequence[str], folded: Sequence[str]) -> set[int]:
    """The words, by number, that are marks (negations, numerals, units behind a number) or fillers."""
    telling = [] if _TELLING.isdisjoint(folded) else [n for n, word in enumerate(folded) if word in _TELLING]
    left_out = set[int]()
    for n in telling:  # of m/s, both
        if folded[n] not in _UNITS or _counted(gaps[n]) or (gaps[n] == "/" and n - 1 in left_out):
            left_out.add(n)
    if not form.isascii() and not _UNITS_ZH.isdisjoint(folded):
        units = [n for n, word in enumerate(folded) if word in _UNITS_ZH]
        left_out.update(n for n in units if _counted_zh(gaps[n], folded[n - 1] if n else ""))
    if "\\" in form:
        left_out.update(n for n, gap in enumerate(gaps[:-1]) if gap[-1:] == "\\" and _kind(words[n]) != _IDEOGRAPH)
    return left_out


@cache
def _forms() -> dict[int, str]:
    """Code point -> the same in its usual form."""
    found = {}
    for first, last in _COMPATIBLE:
        for code in range(first, last):
            parts = unicodedata.decomposition(chr(code))
            if parts.startswith("<") and not parts.startswith(_MEANINGFUL_FORMS):
                normal = unicodedata.normalize("NFKC", chr(code))
                if normal == " " or not normal.startswith(" "):
                    found[code] = normal
    return found | dict.fromkeys(_UNSEEN, "")


def _pattern(form: str) -> re.Pattern[str]:
    """What finds the words of a text: the more kinds of characters there may be, the slower the search."""
    return _ASCII_WORD if form.isascii() else _words(_last(form))


def _last(form: str) -> str:
    return "\uffff" if max(form) < "\U00010000" else "\U0010ffff"


@cache
def _words(last: str) -> re.Pattern[str]:
    """A word of characters up to ``last``: a run of CJK characters, one of them that tells, or a run of other letters but
    meaningful forms.
    """
    cjk = "".join(part for part in re.findall(".-.", CJK) if part[0] <= last)
    return re.compile(
        rf"([{_TELLING_CJK}]|{_COUNTED_ZH}|(?:(?![{_TELLING_CJK}])[{cjk}])+|[^\W\d_{cjk}{_meaningful(last)}]+)"
    )


def _letters_alone(folded: str) -> str:
    """A text with blanks for what isn't a letter of a word: a table finds them in half the time of a pattern."""
    folded = _amounts_zh().sub(" ", folded)
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    alone = np.where(_are_letters().take(codes), codes, np.uint32(ord(" ")))
    return alone.tobytes().decode("utf-32-le", "surrogatepass")


@cache
def _are_letters() -> NDArray[np.bool_]:
    """Of every code point, whether it is a letter of a word."""
    others = frozenset(_TELLING_CJK + _meaningful("\U0010ffff"))
    low = [c.isalnum() and not c.isdecimal() and c not in others for c in map(chr, range(0x20000))]
    found = np.zeros(0x110000, np.bool_)
    found[: len(low)], found[len(low) : 0x40000] = low, True  # beyond it there are ideographs, then no letters
    return found


@cache
def _amounts_zh() -> re.Pattern[str]:
    """The end of a number with its unit: found sooner than a unit that stands behind a number."""
    return re.compile(rf"[\d{_NUMERALS_ZH}] ?{_UNIT_ZH}")


@cache
def _commands(last: str) -> re.Pattern[str]:
    """A word behind a backslash."""
    cjk = "".join(part for part in re.findall(".-.", CJK) if part[0] <= last)
    return re.compile(rf"\\[^\W\d_{cjk}{_meaningful(last)}]+")


def _untelling(found: re.Match[str]) -> str:
    return "" if found[0] in _TELLING else found[0]


@cache
def _meaningful(last: str) -> str:
    return "".join(
        chr(code)
        for begin, end in _COMPATIBLE
        for code in range(begin, end)
        if chr(code) <= last and unicodedata.decomposition(chr(code)).startswith(_MEANINGFUL_FORMS)
    )


@lru_cache(1 << 16)
def _kind(word: str) -> int:
    if not word:
        return _START
    return _IDEOGRAPH if re.match(f"[{CJK}]", word) else _WORD if len(word) > 1 else _LETTER


def _spelled(form: str, folded: Sequence[str], left_out: Set[int]) -> str:
    """The words in a line: a blank behind each, none behind ideographs, wherever a run of them was cut."""
    left = [word for n, word in enumerate(folded) if n not in left_out] if left_out else folded
    if form.isascii():
        return " ".join(left)
    return "".join([word if _kind(word) == _IDEOGRAPH else f"{word} " for word in left]).rstrip()


def _may_begin(word: str) -> bool:
    """Whether a word is written as the first of a sentence is."""
    return word in ("A", "I") or (word.istitle() and len(word) > 1)


@lru_cache(1 << 16)
def _signs(gap: str, left: int, right: int, code: bool) -> tuple[str, ...]:
    """The marks between two words of these kinds: runs of digits, and symbols one by one."""
    kinds = [left, *(_DIGIT if c.isdecimal() else _BLANK if c.isspace() else _SIGN for c in gap), right]
    found: list[str] = []
    digits = False
    for place, character in enumerate(gap, 1):
        if kinds[place] == _DIGIT:
            if digits:
                found[-1] += character
            else:
                found.append(character)
        elif kinds[place] == _SIGN and (code or _tells(gap, place - 1, kinds)):
            found.append(character)
        digits = kinds[place] == _DIGIT
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Beside:
    """What stands beside a symbol between two words: characters ("" where that is a word), and what they are."""

    before: str
    after: str
    left: int
    right: int
    nearest: int
    """What stands before it, white space apart; ``following``: what stands behind it."""
    following: int


def _tells(gap: str, place: int, kinds: list[int]) -> bool:
    """Whether a symbol is content; ``kinds``: of what stands before the gap, of its characters, of what follows."""
    sign, category = gap[place], unicodedata.category(gap[place])
    if category[0] == "C" or sign in "`\ufe0e\ufe0f" or _is_layout(gap, place, kinds):
        return False
    if category[0] != "P" or sign in _ALWAYS:
        return True
    rule = _PROSE.get(sign)
    return rule is not None and rule(
        _Beside(
            gap[place - 1] if place else "",
            gap[place + 1 : place + 2],
            kinds[place],
            kinds[place + 2],
            next((kind for kind in kinds[place::-1] if kind != _BLANK), _START),
            next((kind for kind in kinds[place + 2 :] if kind != _BLANK), _START),
        )
    )


def _is_layout(gap: str, place: int, kinds: list[int]) -> bool:
    """A bullet, the sign of a heading, or a character of a line of them (a blank to fill in counts once, as ___)."""
    sign = gap[place]
    if sign == "_":
        return gap[:place].endswith("___")
    most = 2 if sign == "." else 3
    if sign in "-=*~#." and (most + 1) * sign in gap[max(0, place - most) : place + most + 1]:
        return True
    _, broken, line = gap[:place].rpartition("\n")
    begins = (broken or kinds[0] == _START) and not line.strip(f" \t{sign}")
    behind = gap[place:].lstrip("#") if sign == "#" else gap[place + 1 :]
    return bool(begins) and sign in f"#{_BULLETS}" and behind[:1].isspace()


def _is_bracket(outer: int, inner: int, inside: str) -> bool:
    return outer in _LATIN or outer == _DIGIT or inner in _OPERAND or (inner == _SIGN and inside not in "\"'“”‘’")


def _is_dot(at: _Beside) -> bool:
    """Of a decimal, between names, the folder above, or before a quantifier."""
    if at.right == _DIGIT:
        return at.left == _DIGIT or (at.left in (_BLANK, _START, _SIGN) and at.before != ".")
    named = at.left in _LATIN and at.right in _LATIN
    return named or (at.right == _SIGN and at.after in "*+?") or (at.before == ".") != (at.after == ".")


def _is_operator(at: _Beside) -> bool:
    """A minus, a range, or the sign of an option."""
    operands = (*_OPERAND, _SIGN)
    binds = at.nearest in operands and at.following in operands and _LETTER in (at.nearest, at.following)
    option = at.left in (_BLANK, _START, _SIGN) and (at.right in _LATIN or (at.right == _SIGN and at.after in "->="))
    return at.right == _DIGIT or binds or (at.nearest in (_DIGIT, _SIGN) and at.following == _DIGIT) or option


def _is_star(at: _Beside) -> bool:
    """A product or a quantifier, and not around words in bold."""
    operand = at.nearest in _OPERAND or at.following in _OPERAND
    return operand or at.left == at.right == _BLANK or (at.left == _SIGN and at.before != "*")


def _is_exclamation(at: _Beside) -> bool:
    """A factorial or a denial."""
    return at.left == _DIGIT or at.before == ")" or at.after == "=" or (at.right in _LATIN and at.left not in _LATIN)


def _is_quotation(at: _Beside) -> bool:
    """Of a literal in code; an inch."""
    opens, closes = at.left == _SIGN and at.before in "([{=+", at.right == _SIGN and at.after in ")]}+"
    return _DIGIT in (at.left, at.right) or opens or closes


_PROSE: Mapping[str, Callable[[_Beside], bool]] = {
    "(": lambda at: _is_bracket(at.left, at.right, at.after),
    ")": lambda at: _is_bracket(_BLANK, at.left, at.before),
    ".": _is_dot,
    ",": lambda at: at.left == at.right == _DIGIT,
    ";": lambda at: at.nearest == at.following == _DIGIT,
    ":": lambda at: not {_BLANK, _IDEOGRAPH, _START} & {at.left, at.right},
    "!": _is_exclamation,
    "?": lambda at: at.left != _BLANK and at.right in (*_LATIN, _DIGIT),
    **dict.fromkeys("-‐‑–—", _is_operator),
    "*": _is_star,
    '"': _is_quotation,
    "'": lambda at: _is_quotation(at) or (at.left == _LETTER and at.right not in _LATIN),
}
"""Punctuation that is content in some places; what is not named here is never."""


@lru_cache(1 << 12)
def _counted(gap: str) -> bool:
    """Whether what follows stands behind a number."""
    return gap.rstrip(" ")[-1:].isnumeric() or gap[-1:] == "°"


def _counted_zh(gap: str, word: str) -> bool:
    """Whether what follows stands behind a number, as :data:`_COUNTED_ZH` has it; ``word``: what stands before the gap."""
    before = gap.removesuffix(" ")
    return before[-1:].isdecimal() or (not before and len(word) == 1 and word in _NUMERALS_ZH)


@lru_cache(1 << 12)
def _is_amount(sign: str) -> bool:
    return sign[0].isnumeric() or unicodedata.category(sign[0]) == "Sm"


def _in_code(before: str, signs_before: tuple[str, ...], after: str, signs_after: tuple[str, ...]) -> bool:
    """Whether a word stands where case is content: right beside a symbol, or in back quotes."""
    beside = bool(signs_before and before[-1:].strip() and before[-1] not in "\"'“‘") or before[-1:] == "`"
    beside = beside or bool((signs_after and after[:1].strip() and after[0] not in ".,;:!?\"'”’)") or after[:1] == "`")
    return beside or (after == "." and bool(signs_after))
