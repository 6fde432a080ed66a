"""The built-in prompts are balanced and can't be passed by saying nothing; files of users are checked."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.tasks.checks import Check, passes
from posttrain.tasks.prompts import load_prompts

PROMPTS = load_prompts()
CHECKED = [prompt for prompt in PROMPTS if prompt.check]

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I'm sorry, I am unable to assist you with your request.",
    "As an AI language model, I cannot answer this question.",
    "I don't know.",
    "抱歉，我无法回答这个问题。",
    "对不起，作为一个人工智能助手，我不能完成您的请求。",
    "请提供更多信息。",
]

GOOD = {
    "knowledge-en-capital": ["Paris", "The capital of France is **Paris**."],
    "knowledge-en-week": ["Seven.", "There are 7 days in a week."],
    "knowledge-en-planet": ["Jupiter is the largest planet."],
    "knowledge-en-playwright": ["William Shakespeare wrote it."],
    "knowledge-en-water": ["Hydrogen and oxygen."],
    "knowledge-en-ocean": ["The Indian Ocean."],
    "knowledge-zh-capital": ["中国的首都是北京。"],
    "knowledge-zh-months": ["一年有12个月。", "十二个月"],
    "knowledge-zh-planet": ["木星。"],
    "knowledge-zh-poet": ["《静夜思》是唐代诗人李白写的。"],
    "knowledge-zh-water": ["H2O", "水的化学式是H₂O。"],
    "knowledge-zh-mountain": ["珠穆朗玛峰。"],
    "rewriting-en-capitals": ["THE SMALL DOG RAN HOME", '"THE SMALL DOG RAN HOME."'],
    "rewriting-en-shorten": ["It rained hard, so we stayed home."],
    "rewriting-en-question": ["Does the train leave at noon?", "When does the train leave?"],
    "rewriting-en-formal": ["I apologise, but I will be late for the meeting."],
    "rewriting-en-without-a-word": ["The large house has a spacious garden."],
    "rewriting-en-past": ["She walked to school and sang a song."],
    "rewriting-en-grammar": ["She goes to work by bus every day."],
    "rewriting-zh-question": ["他明天去北京吗？", "他什么时候去北京?"],
    "rewriting-zh-shorten": ["因大雨积水，郊游取消。"],
    "rewriting-zh-formal": ["您好，麻烦您尽快将文件发给我，谢谢。"],
    "rewriting-zh-without-a-word": ["收到你的来信，我十分开心。"],
    "rewriting-zh-passive": ["小树被大风吹倒了。"],
    "rewriting-zh-third-person": ["小明喜欢踢足球，小明每天都练习。"],
    "rewriting-zh-spelling": ["我们今天去公园玩。"],
    "reasoning-en-apples": ["Tom has 3 apples. 3 + 4 = 7. Answer: 7"],
    "reasoning-en-sum": ["10 + 5 = 15\nAnswer: 15"],
    "reasoning-en-books": ["6 x 5 = 30 dollars."],
    "reasoning-en-birds": ["20 - 8 = 12. Answer: 12 birds"],
    "reasoning-en-train": ["60 * 3 = 180, so it travels 180 kilometres."],
    "reasoning-en-sweets": ["Half of 18 is 9.\nAnswer: 9"],
    "reasoning-en-shortest": [
        "Ben is taller than Max. Answer: Max",
        "Max is the shortest.",
        "Max.",
        "The shortest of the three is **Max**.",
    ],
    "reasoning-en-weekday": ["Tuesday, Wednesday, Thursday. It is Thursday."],
    "reasoning-zh-pencils": ["5+3=8，答案：8"],
    "reasoning-zh-sum": ["10加5等于15。答案：15"],
    "reasoning-zh-eggs": ["6×4=24，一共24个鸡蛋。"],
    "reasoning-zh-cars": ["15-6=9\n答案：9辆"],
    "reasoning-zh-pages": ["50÷5=10，答案：10天"],
    "reasoning-zh-area": ["7×3=21，面积是21平方厘米。答案：21"],
    "reasoning-zh-shortest": ["小丽比小芳高，所以小芳最矮。答案：小芳", "最矮的是小芳。"],
    "reasoning-zh-weekday": ["星期三、星期四、星期五，所以是星期五。"],
}

WRONG = {
    "knowledge-en-planet": "Jupiter, no, actually Saturn is the largest planet.",
    "knowledge-en-water": "Water is made of hydrogen.",
    "rewriting-en-capitals": "The SMALL DOG RAN HOME",
    "rewriting-en-shorten": "We made the decision to stay at home because it was raining very hard.",
    "rewriting-en-question": "What is the time?",
    "rewriting-en-formal": "Hey, I will be late.",
    "rewriting-en-without-a-word": "The big house has a large garden.",
    "rewriting-en-past": "She walked to school and sings a song.",
    "rewriting-en-grammar": "She go to work. She goes by bus.",
    "rewriting-zh-question": "他明天去北京。",
    "rewriting-zh-passive": "被！被！被！",
    "rewriting-zh-third-person": "小明，我喜欢踢足球。",
    "rewriting-zh-spelling": "我门今天去公园玩。",
    "reasoning-en-apples": "3 + 4 = 8. Answer: 8",
    "reasoning-en-shortest": "The shortest of the three is Max. The shortest of the three is Ben.",
    "reasoning-en-weekday": "Thursday, Friday, Saturday or Sunday.",
    "reasoning-zh-shortest": "答案：小丽",
    "reasoning-zh-weekday": "星期五或者星期六。",
}


def test_classes_and_languages_are_balanced_and_most_prompts_are_checked():
    counts = Counter((p.prompt_class, p.language) for p in PROMPTS)
    checked = Counter((p.prompt_class, p.language) for p in CHECKED)
    for name in ("knowledge", "rewriting", "reasoning"):
        assert counts[name, "en"] == counts[name, "zh"] >= 7
        for language in ("en", "zh"):
            assert checked[name, language] * 2 >= counts[name, language]
    assert len({p.id for p in PROMPTS}) == len({p.prompt for p in PROMPTS}) == len(PROMPTS)


def test_prompts_are_written_in_their_language():
    for prompt in PROMPTS:
        assert bool(re.search("[\u4e00-\u9fff]", prompt.prompt)) is (prompt.language == "zh"), prompt.id
        assert prompt.id.startswith(f"{prompt.prompt_class}-{prompt.language}-")


@pytest.mark.parametrize("prompt", CHECKED, ids=lambda p: p.id)
def test_saying_nothing_repeating_or_refusing_never_passes(prompt):
    assert prompt.check
    echoes = [
        prompt.prompt,
        f"{prompt.prompt}\n\n{prompt.prompt}",
        f'"{prompt.prompt}"',
        f"User: {prompt.prompt}\nAssistant:",
        prompt.prompt.lower(),
        prompt.prompt.upper(),
    ]
    if prompt.id == "rewriting-en-capitals":
        echoes.pop()  # the prompt in capitals does what the prompt asks for
    for reply in ["", "\n", "...", "?", *echoes, *REFUSALS]:
        assert not passes(prompt.check, reply), reply


def test_every_checked_prompt_has_a_good_reply():
    assert GOOD.keys() == {prompt.id for prompt in CHECKED}


@pytest.mark.parametrize("prompt", CHECKED, ids=lambda p: p.id)
def test_good_replies_pass_and_good_replies_to_other_prompts_do_not(prompt):
    assert prompt.check
    for reply in GOOD[prompt.id]:
        assert passes(prompt.check, reply), reply
    same_class = [other.id for other in CHECKED if other.prompt_class == prompt.prompt_class]
    others = {name for name in same_class if passes(prompt.check, GOOD[name][0])} - {prompt.id}
    same_answer = [{"reasoning-en-sweets", "reasoning-zh-cars"}, {"reasoning-en-sum", "reasoning-zh-sum"}]
    assert not others or {prompt.id, *others} in same_answer


@pytest.mark.parametrize("name", WRONG)
def test_wrong_replies_do_not_pass(name):
    prompt = next(p for p in CHECKED if p.id == name)
    assert prompt.check
    assert not passes(prompt.check, WRONG[name])


# ---- files of users ------------------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_ones_own(tmp_path):
    path = write(
        tmp_path,
        "rewriting:\n  - id: a\n    language: zh\n    prompt: 你好\n    check:\n      kind: all_of\n      expected:\n"
        "        - {kind: max_words, expected: 3}\n        - {kind: contains_any, expected: [你]}\n"
        "knowledge:\n  - {id: b, language: en, prompt: Hi}\n",
    )
    b, a = load_prompts(path)
    assert (b.id, b.prompt_class, b.check) == ("b", "knowledge", None)
    assert a.check == Check(
        kind="all_of", expected=(Check(kind="max_words", expected=3), Check(kind="contains_any", expected=("你",)))
    )
    assert passes(a.check, "你好")
    assert not passes(a.check, "你好你好")


ENTRY = "knowledge:\n  - id: a\n    language: en\n    prompt: Hi\n    check: "


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            ENTRY + "{kind: contain_any, expected: [x]}\n",
            ":5: knowledge.0.check.kind: unknown check 'contain_any' (did you mean 'contains_any'?); known: contains_any, ",
        ),
        (
            ENTRY + "{kind: contains_any, expected: x}\n",
            ":5: knowledge.0.check.expected: must be a list with at least 1 entry, each entry text with at least 1 character, got 'x' (prompt 'a')",
        ),
        (ENTRY + "{kind: contains_any, expected: []}\n", ":5: knowledge.0.check.expected: must be a list"),
        (
            ENTRY + "{kind: max_words, expected: 0}\n",
            ":5: knowledge.0.check.expected: must be a whole number of at least 1, got 0 (prompt 'a')",
        ),
        (
            ENTRY + "{kind: number_equals, expected: seven}\n",
            ":5: knowledge.0.check.expected: must be a number, got 'seven'",
        ),
        (
            ENTRY + "{kind: matches_regex, expected: '['}\n",
            ":5: knowledge.0.check.expected: this is no regular expression: unterminated character set",
        ),
        (
            ENTRY + "\n      kind: all_of\n      expected:\n        - {kind: max_words, expected: x}\n",
            ":8: knowledge.0.check.expected.0.expected: must be a whole number",
        ),
        (ENTRY + "{kind: max_words}\n", ":5: knowledge.0.check.expected: this key is missing"),
        ("knowlege: []\n", ":1: knowlege: unknown key (did you mean 'knowledge'?)"),
        ("knowledge: []\n", ":1: (top level): there are no prompts in this file"),
        (
            "knowledge:\n  - {id: a, language: fr, prompt: Hi}\n",
            ":2: knowledge.0.language: must be one of 'en', 'zh', got 'fr'",
        ),
        (
            "knowledge:\n  - {id: a, language: en, prompt: ''}\n",
            ":2: knowledge.0.prompt: must be text with at least 1 character, got ''",
        ),
        (
            "knowledge:\n  - {id: a, language: en, prompt: x}\nreasoning:\n  - {id: a, language: en, prompt: y}\n",
            ":4: reasoning.0.id: 'a' is the id of another prompt (line 2)",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_line_and_entry(tmp_path, text, told):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}{told}")
