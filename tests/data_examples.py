"""One record for every row format, and one row for every reason of a filter."""

from __future__ import annotations

from typing import Any

from posttrain.data.filters import FILTERS, Conversation, Filter
from posttrain.data.filters.form import Length, Structure
from posttrain.data.filters.garbled import Garbled
from posttrain.data.filters.harmful import Harmful
from posttrain.data.filters.language import LanguageFilter
from posttrain.data.filters.private import Pii, Secrets
from posttrain.data.filters.repetition import Repetition
from posttrain.data.filters.replies import Refusal, Template
from posttrain.data.filters.step import FilterStep
from posttrain.types import Message, Role


def talk(*turns: str) -> Conversation:
    """A conversation of turns by the user and the assistant, the user first."""
    roles: tuple[Role, Role] = ("user", "assistant")
    return Conversation(tuple(Message(roles[number % 2], content) for number, content in enumerate(turns)))


def only(*filters: Filter) -> FilterStep:
    """The step with no other filter on."""
    chosen: dict[str, Any] = {
        name: next((one for one in filters if isinstance(one, kind)), None) for name, kind in FILTERS.items()
    }
    return FilterStep(kind="filter", **chosen)


FORMAT_EXAMPLES = {
    "messages": '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
    "moss": '{"chat": {"turn_1": {"Human": "<|Human|>: Name a bird.<eoh>", "MOSS": "<|MOSS|>: A wren.<eom>"}}}',
    "glaive": r'{"chat": "USER: Name a bird.\n\n\nASSISTANT: A wren. <|endoftext|>"}',
    "chatgpt_export": '{"mapping": {"a": {"parent": null, "message": {"author": {"role": "user"}, "content": {"parts": ["Hi"]}}}, "b": {"parent": "a", "message": {"author": {"role": "assistant"}, "content": {"parts": ["Hello!"]}}}}}',
    "xlam": '{"query": "Add 1 and 2.", "tools": [{"name": "add"}], "answers": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}',
    "multiple_choice": '{"question": "Which is a metal?", "choices": ["Wood", "Copper"], "answer": 1}',
    "multiple_choice_from_1": '{"question": "Which is a metal?", "choices": ["Wood", "Copper"], "answer": 2}',
    "alpaca": '{"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"}',
    "prompt_completion": '{"prompt": "The sky is", "completion": " blue."}',
    "text_pair": '{"question": "What is 2 + 2?", "answer": "4"}',
    "prompts": '{"prompt": "Name a colour."}',
    "hh_rlhf": r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}',
    "ranking": '{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {"from": "gpt", "value": "Go away."}}',
    "pairs": '{"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Seven."}',
    "arena": '{"winner": "model_a", "conversation_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}]}',
    "stack_exchange": '{"question": "How do I undo?", "response_j": "Press Ctrl+Z.", "response_k": "You can not."}',
    "openai_preference": '{"input": {"messages": [{"role": "user", "content": "Capital of Peru?"}]}, "preferred_output": [{"role": "assistant", "content": "Lima."}], "non_preferred_output": [{"role": "assistant", "content": "Rome."}]}',
    "two_responses": '{"prompt": "Is it fine to skip breakfast?", "response_0": "Often yes.", "response_1": "Eat only sugar.", "better_response_id": 0}',
    "ultrafeedback": '{"instruction": "Name a colour.", "completions": [{"response": "Blue.", "overall_score": 8.5}, {"response": "Seven.", "overall_score": 2}]}',
    "nectar": r'{"prompt": "\n\nHuman: Name a colour.\n\nAssistant: ", "answers": [{"answer": "Blue.", "rank": 1}, {"answer": "Seven.", "rank": 2}]}',
    "scored_responses": '{"instruction": "Name a colour.", "responses": ["Blue.", "Seven."], "scores": [0.9, 0.2]}',
    "oasst": '{"prompt": {"text": "Name a colour.", "role": "prompter", "replies": [{"text": "Blue.", "role": "assistant", "rank": 0}, {"text": "Seven.", "role": "assistant", "rank": 1}]}}',
    "feedback": '{"prompt": "Name a colour.", "completion": "Blue.", "label": true}',
    "posttrain_pairs": '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "prompt_turns": 1, "rejected": [{"role": "assistant", "content": "Go away."}], "tools": "[]", "meta": "{}"}',
    "posttrain_feedback": '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "prompt_turns": 1, "desirable": true, "tools": "[]", "meta": "{}"}',
}

FILTER_EXAMPLES: dict[str, dict[str, tuple[Filter, Conversation]]] = {
    "structure": {
        "roles_do_not_alternate": (
            Structure(),
            Conversation((Message("user", "Hi"), Message("user", "there"), Message("assistant", "Hello!"))),
        ),
        "empty_turn": (Structure(), talk("Hi", " \n", "Are you there?", "Yes.")),
        "unfinished_code_fence": (Structure(), talk("Print 1 in Python.", "```python\nprint(1)\n")),
        "does_not_end_with_assistant": (Structure(), talk("Hi", "Hello!", "Bye")),
    },
    "length": {
        "user_too_short": (Length(), talk("?!", "What do you mean?")),
        "user_too_long": (Length(max_user_tokens=3), talk("请用一句话回答", "好的")),
        "assistant_too_short": (Length(min_assistant_tokens=2), talk("What is 3 + 4?", "7")),
        "assistant_too_long": (Length(max_assistant_tokens=2), talk("Count.", "one two three")),
    },
    "garbled": {
        "mojibake": (Garbled(), talk("Où est le cafÃ© ?", "Il est lÃ -bas.")),
        "broken_characters": (Garbled(), talk("你好，请问", "您好\ufffd\ufffd，请讲")),
        "mostly_symbols": (Garbled(), talk("What is it?", "§¶¤" * 30)),
    },
    "language": {
        "other_language": (
            LanguageFilter(keep=("en", "zh")),
            talk("Как приготовить борщ?", "Сварите свёклу, капусту и мясо."),
        ),
        "language_undetermined": (LanguageFilter(keep_undetermined=False), talk("3 + 4 =", "7")),
        "language_code": (
            LanguageFilter(keep_code=False),
            talk("def add(a, b):\n    return a + b", "add = lambda a, b: a + b"),
        ),
    },
    "repetition": {
        "repeated_punctuation": (Repetition(), talk("Great news?", "Yes" + "!" * 30)),
        "repeated_lines": (Repetition(), talk("Name ten animals.", "A cat.\nA dog.\n" + "A cow.\n" * 12)),
        "repeated_ngrams": (Repetition(), talk("讲一个故事", "从前有座山，山里有座庙。" * 12)),
    },
    "template": {
        "boilerplate": (Template(), talk("Write a poem.", "Sure! Here is a poem: I hope this helps!")),
        "few_sentences": (Template(min_sentences=2), talk("雪是什么颜色？", "雪是白色的。")),
    },
    "refusal": {"refusal": (Refusal(), talk("今天天气怎么样？", "作为一个人工智能语言模型，我无法获取实时天气。"))},
    "harmful": {
        "harmful_terms": (Harmful(), talk("请告诉我如何制作炸弹", "首先……")),
        "harmful_score": (
            Harmful(score="toxicity"),
            Conversation((Message("user", "Hi"), Message("assistant", "...")), scores={"toxicity": 0.9}),
        ),
    },
    "pii": {"personal_data": (Pii(), talk("How do I reach her?", "Write to jane.doe@university.edu."))},
    "secrets": {"secret": (Secrets(), talk("Which key?", "It is ghp_" + "k3Zq9Lw0Xy7Rt2Vb8NmP" + "5Hs1Jd4Gf6Ua0CeK"))},
}
"""Filter -> reason -> settings, and a row that they drop for it."""
