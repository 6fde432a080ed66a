"""Every filter by hand: what it finds, what it must leave alone."""

from __future__ import annotations

import pytest

from data_examples import talk
from posttrain.data.filters import FILTERS
from posttrain.data.filters.base import Conversation
from posttrain.data.filters.form import open_fence, out_of_turn
from posttrain.data.filters.garbled import Garbled, mojibake
from posttrain.data.filters.harmful import Harmful, terms_in
from posttrain.data.filters.language import LanguageFilter
from posttrain.data.filters.lexicon import LEXICON
from posttrain.data.filters.private import chinese_id_is_valid, entropy, iban_is_valid, luhn, personal_data, secrets
from posttrain.data.filters.repetition import Repetition, longest_run, share_seen_before
from posttrain.data.filters.replies import Refusal, Template, boilerplate, refusal, sentences
from posttrain.types import Message, Role, ToolCall

KINDS = ("email", "phone", "id_card", "iban", "credit_card")


def value(name: str, check: str, row: Conversation, config: object = None) -> float:
    measured = (config or FILTERS[name]()).measure(row)
    return next(m.value for m in measured if m.check == f"{name}.{check}")


def reasons(name: str, row: Conversation, config: object = None) -> list[str]:
    return [m.reason for m in (config or FILTERS[name]()).measure(row) if not m.passed]


# ---- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "wrong"),
    [
        ("user assistant", 0),
        ("system user assistant user assistant", 0),
        ("user assistant tool tool assistant", 0),
        ("user user assistant", 1),
        ("assistant user assistant", 1),
        ("user assistant system user assistant", 1),
        ("user tool assistant", 1),
        ("user assistant assistant", 1),
    ],
)
def test_whose_turn_it_is(roles: str, wrong: int) -> None:
    named: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
    assert len(out_of_turn([Message(named[role], "x") for role in roles.split()])) == wrong


def test_a_call_is_no_empty_turn() -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("f", "{}"),))
    talked = (Message("user", "x"), call, Message("tool", ""), Message("assistant", "y"))
    assert reasons("structure", Conversation(talked)) == []


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("```\nx\n```", False),
        ("```python\nx", True),
        ("a\n```\nx\n```\nb\n```\ny", True),
        ("````md\n```py\nx\n```\n````", False),
        ("```md\n```py\nx\n```\n```", False),  # nested by the same fence: closed in one of the two readings
        ("Use ```x``` inline", False),
        ("Here: ```python\nx\n```", False),
        ("```\nprint(1)```", False),
        ("~~~\nx\n~~~", False),
        ("~~~\nx", True),
        ("1. one:\n   ```\n   x\n   ```", False),
    ],
)
def test_open_fences(text: str, is_open: bool) -> None:
    assert open_fence(text) == is_open


# ---- garbled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["é", "café", "naïve", "Łódź", "It’s “here”…", "你好", "日本語", "😊", "à côté", "Straße"]
)
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_utf8_read_as_another_encoding_is_found(text: str, wrong: str) -> None:
    try:
        broken = text.encode("utf-8").decode(wrong)
    except UnicodeDecodeError:
        pytest.skip("bytes that Windows-1252 does not have")
    if text == "Łódź":  # its letters have leads that are common capital letters: Å and Ä stand in Swedish
        return
    assert mojibake(broken)
    assert not mojibake(text)


@pytest.mark.parametrize("text", ["你好世界", "今天天气很好", "保持健康的三个提示", "人工智能"])
def test_utf8_read_as_gbk_is_found(text: str) -> None:
    broken = text.encode("utf-8").decode("gbk", "replace")  # a byte in the middle may be lost: U+FFFD tells
    assert set(reasons("garbled", talk("x", broken))) & {"mojibake", "broken_characters"}
    assert mojibake("你好世界".encode().decode("gbk")) == ["浣犲ソ涓栫晫"]
    assert not mojibake(text)


@pytest.mark.parametrize(
    "text",
    [
        "卓越学堂与知识之窗",
        "《实战篇》",
        "职业选手应聘职位",
        "CAFÉ»",
        "“café”…",
        "ÂGE",
        "SÃO PAULO",
        "Ñandú «é»",
        "10°C",
    ],
)
def test_words_that_look_like_mojibake_are_none(text: str) -> None:
    assert mojibake(text) == []


def test_broken_characters_and_symbols() -> None:
    assert value("garbled", "broken_characters", talk("a\ufffd", "b\x07\ue000\n\t")) == 3
    assert reasons("garbled", talk("Draw a table", "| 1 | 2 |\n|---|---|\n" * 30)) == []
    assert reasons("garbled", talk("Convert", "```\n" + "$%^&*" * 50 + "\n```")) == []
    assert reasons("garbled", talk("Say it", "$%^&*" * 50)) == ["mostly_symbols"]
    assert reasons("garbled", talk("Say it", "$%^&*" * 50), Garbled(max_symbol_share=1.0)) == []


# ---- language ------------------------------------------------------------------------------------------------------


def test_one_side_in_a_kept_language_is_enough_for_a_conversation() -> None:
    task = talk("请把这句话翻译成英文。", "Please translate this sentence into the language of your choice.")
    keep = LanguageFilter(keep=("zh",), identifier="script")
    assert reasons("language", task, keep) == []
    answer = LanguageFilter(keep=("zh",), identifier="script", fields="assistant")
    assert reasons("language", task, answer) == ["other_language"]


def test_code_with_a_line_of_prose_has_the_language_of_the_prose() -> None:
    row = talk("Write a function that returns the sum of the list.", "def total(xs):\n    return sum(xs)\n")
    (measured,) = LanguageFilter(keep=("zh",), identifier="script").measure(row)
    assert (measured.check, measured.passed) == ("language.en", False)


# ---- repetition ----------------------------------------------------------------------------------------------------


def test_repetition_by_hand() -> None:
    assert longest_run("Wow!!! So。。。。 yes??") == "。。。。"
    assert share_seen_before("abab") == 0.5
    assert share_seen_before([]) == 0
    lines = "\n".join(["one", "two", *["three"] * 8])
    assert value("repetition", "lines", talk("x", lines)) == pytest.approx(0.7)
    assert value("repetition", "lines", talk("x", "\n".join(["a"] * 7))) == 0  # fewer than min_lines
    words = " ".join(["a b c d e"] * 20)  # 96 5-grams, 5 of them different
    assert value("repetition", "ngrams", talk("x", words)) == pytest.approx(1 - 5 / 96)
    assert value("repetition", "ngrams", talk("x", "f(1);\n" * 60)) == 0  # code repeats itself by right
    config = Repetition(max_ngram_share=None)
    assert reasons("repetition", talk("x", words), config) == []


# ---- template ------------------------------------------------------------------------------------------------------


def test_boilerplate_and_sentences() -> None:
    assert boilerplate("Sure! Here is a list:\n1. Cats") == ["Sure! Here is a list:"]
    closings = boilerplate("Cats purr. I hope this helps! Let me know if you need more.")
    assert [closing.strip() for closing in closings] == ["I hope this helps!", "Let me know if you need more."]
    assert boilerplate("好的，以下是一首诗：\n床前明月光") == ["好的，以下是一首诗："]
    assert boilerplate("Let me know if you are coming.") == []  # the whole answer is its content
    assert reasons("template", talk("A poem?", "Sure! Here is a poem:")) == ["boilerplate"]
    assert reasons("template", talk("A poem?", "Sure! Here is a poem:\nRoses are red, violets are blue")) == []
    strict = Template(max_boilerplate_share=0)
    assert reasons("template", talk("A poem?", "Sure! Here is a poem:\nRoses are red, violets are blue"), strict)
    assert sentences("It costs 3.50 euros. Really? 是的。好！") == 4
    assert sentences("one line\nanother line") == 2


# ---- refusal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I don't have personal opinions.",
        "I'm sorry, but I cannot assist with that request.",
        "I’m sorry, I can’t help with that.",
        "No, I cannot assist with this request.",
        "I am an AI and do not have feelings.",
        "Unfortunately, I am unable to access the internet.",
        "作为一个人工智能语言模型，我无法提供个人意见。",
        "很抱歉，我无法完成这个请求。",
        "对不起，由于我是一个人工智能助手，我没有实体形态。",
        "作为AI语言模型，我不能浏览网页。",
    ],
)
def test_refusals_are_found(answer: str) -> None:
    assert refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I am like a moth to a flame; I can't help myself.",
        "As an AI assistant developed by the team, I got the name Ada.",
        "I am an AI assistant named Ada. How can I help you today?",
        "我是人工智能助手小明，很高兴认识你。",
        "这个陈述的反对观点可能是“你作为一个人工智能助手并没有提供足够的帮助”。",
        "Dear customer, I'm sorry for the delay; your parcel arrives on Monday.",
        "I'm sorry to hear that. Try restarting the router.",
        "An AI language model predicts the next token and cannot see images.",
        "抱歉让您久等了，这是您要的清单。",
    ],
)
def test_what_is_no_refusal(answer: str) -> None:
    assert refusal(answer) == ""


def test_with_tools_a_refusal_may_be_right() -> None:
    messages = talk("Order a pizza.", "I'm sorry, but I can't assist with that.").messages
    assert reasons("refusal", Conversation(messages, tools=True)) == []
    assert reasons("refusal", Conversation(messages, tools=True), Refusal(with_tools=True)) == ["refusal"]


# ---- harmful -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["Tell me HOW  to\nmake a bomb!", "请教我制作炸弹", "ｈｏｗ ｔｏ ｍａｋｅ ａ ｂｏｍｂ", "我想知道如何自杀"]
)
def test_requests_for_harm_are_found(text: str) -> None:
    assert terms_in(text, LEXICON)


@pytest.mark.parametrize(
    "text",
    [
        "How do I kill a Python process?",
        "How to make a bombastic speech",
        "路口交通信号灯",
        "漆黑鬼影",
        "预防自杀的方法",
        "A bomb was found and defused.",
        "Scunthorpe is a town in Lincolnshire.",
    ],
)
def test_harmless_words_are_left_alone(text: str) -> None:
    assert terms_in(text, LEXICON) == []


def test_own_terms_are_whole_words_beside_chinese_too() -> None:
    config = Harmful(lexicon=False, extra_terms=("Acme", "禁词"))
    assert reasons("harmful", talk("什么是acme公司", "一家公司"), config) == ["harmful_terms"]
    assert reasons("harmful", talk("acmeism", "a poetry movement"), config) == []
    assert reasons("harmful", talk("x", "这里有禁词"), config) == ["harmful_terms"]
    assert (
        reasons("harmful", talk("acme 禁词", "x"), Harmful(lexicon=False, extra_terms=("acme", "禁词"), max_terms=2))
        == []
    )
    assert list(Harmful(lexicon=False).measure(talk("how to make a bomb", "x"))) == []


# ---- personal data and secrets -------------------------------------------------------------------------------------


def test_check_digits_by_hand() -> None:
    assert luhn("4539578763621486")
    assert not luhn("4539578763621487")
    assert luhn("79927398713")  # the example of the standard's literature
    assert iban_is_valid("GB82 WEST 1234 5698 7654 32")
    assert not iban_is_valid("GB83 WEST 1234 5698 7654 32")
    assert chinese_id_is_valid("11010519491231002X")
    assert not chinese_id_is_valid("110105194912310021")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe@university.edu now", "email"),
        ("邮箱是jane@company-x.cn联系我", "email"),
        ("我的手机号是13912345608。", "phone"),
        ("Call (415) 823-9147 today", "phone"),
        ("+44 20 7946 8134", "phone"),
        ("身份证11010519491231002X号", "id_card"),
        ("SSN 536-22-8145", "id_card"),
        ("IBAN DE89 3704 0044 0532 0130 00", "iban"),
        ("card 4539 5787 6362 1486", "credit_card"),
    ],
)
def test_personal_data_is_found(text: str, kind: str) -> None:
    assert dict(personal_data(text, KINDS)) == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com",
        "name@yourdomain.com",
        "(415) 555-0134",
        "123-45-6789",
        "1234 5678 9012 3456",
        "4111 1111 1111 1112",
        "2023-10-15 12:30:45",
        "3.14159265358979",
        "version 10.0.19041.1288",
        "0x1F4A9, 1600000000",
        "ISBN 978-3-16-148410-0",
        "@decorator def f(a, b)",
    ],
)
def test_what_is_no_personal_data(text: str) -> None:
    assert dict(personal_data(text, KINDS)) == {}


def test_only_the_kinds_asked_for() -> None:
    assert dict(personal_data("jane@university.edu 13912345608", ("phone",))) == {"phone": 1}


RANDOM = "k3Zq9Lw0Xy7Rt2Vb8NmP5Hs1Jd4Gf6Ua0CeKwTzB"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"token ghp_{RANDOM[:36]}", "github_token"),
        (f"sk-{RANDOM}", "openai_key"),
        ("AKIA" + "Q3EGRTX7LMBN5ZWP", "aws_key"),
        (f'api_key = "{RANDOM}"', "assigned_key"),
        ("postgres://admin:Xk92hsQ1@db.internal:5432/x", "address_with_password"),
        ("-----BEGIN RSA PRIVATE KEY-----\n" + RANDOM * 3 + "\n-----END RSA PRIVATE KEY-----", "private_key"),
    ],
)
def test_secrets_are_found(text: str, kind: str) -> None:
    assert dict(secrets(text, 3.0)) == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        'api_key = "YOUR_API_KEY_GOES_HERE_PLEASE"',
        "sk-xxxxxxxxxxxxxxxxxxxxxxxx",
        "AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "postgres://user:password@localhost/db",
        "sk-learn is a library; task-based-approach-to-everything",
    ],
)
def test_placeholders_are_no_secrets(text: str) -> None:
    assert dict(secrets(text, 3.0)) == {}


def test_entropy_by_hand() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2
