"""One record for every row format, and one row for every reason of a filter."""

from __future__ import annotations

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
