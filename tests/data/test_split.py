"""The split is a function of content and seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.split import held_out_prompts, prompt_key
from posttrain.errors import DataError
from posttrain.types import Message, ToolCall

PROMPTS = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=2).filter(lambda prompts: len(set(prompts)) > 1)


def test_the_prompt_is_everything_before_the_first_reply() -> None:
    system, user = Message("system", "be brief"), Message("user", "hi")
    key = prompt_key([system, user, Message("assistant", "hello")])
    assert key == prompt_key([system, user, Message("assistant", "good day"), Message("user", "and?")])
    assert key == prompt_key([system, user, Message("assistant", "", tool_calls=(ToolCall("f", "{}"),), weight=0.5)])
    assert key == prompt_key([system, user])
    assert key != prompt_key([user, Message("assistant", "hello")])
    assert key != prompt_key([Message("user", "be brief"), user])
    assert key != prompt_key([system, Message("user", "Hi")])


@given(prompts=PROMPTS, share=st.floats(0.001, 0.6), seed=st.integers(0, 5), random=st.randoms())
def test_order_does_not_matter_and_the_size_is_kept(
    prompts: list[str], share: float, seed: int, random: object
) -> None:
    chosen = held_out_prompts(prompts, share, seed)
    shuffled = list(prompts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert held_out_prompts(shuffled, share, seed) == chosen
    sizes = Counter(prompts)
    held_out = sum(sizes[prompt] for prompt in chosen)
    wanted = max(1, round(share * len(prompts)))
    assert 0 < held_out < len(prompts)
    assert held_out <= max(wanted, min(sizes.values()))
    assert all(sizes[prompt] > wanted - held_out for prompt in sizes if prompt not in chosen)


def test_unequal_prompts_give_the_number_exactly() -> None:
    prompts = [str(n) for n in range(1000)]
    assert len(held_out_prompts(prompts, 0.05, 0)) == 50
    assert len(held_out_prompts(prompts, 37, 0)) == 37
    assert held_out_prompts(prompts, 0, 0) == frozenset()


def test_another_seed_holds_out_other_rows() -> None:
    prompts = [str(n) for n in range(1000)]
    assert len(held_out_prompts(prompts, 0.1, 0) & held_out_prompts(prompts, 0.1, 1)) < 30


def test_the_chosen_rows_stay_when_the_set_grows() -> None:
    few, many = [str(n) for n in range(1000)], [str(n) for n in range(1100)]
    assert len(held_out_prompts(few, 0.1, 0) & held_out_prompts(many, 0.1, 0)) > 80


@pytest.mark.parametrize(
    ("prompts", "held_out", "words"),
    [
        (["a"], 0.05, "can't hold out 1 of 1 row:"),
        (["a", "b"], 2, "can't hold out 2 of 2 rows"),
        (["a", "b"], 300, "can't hold out 300 of 2 rows"),
        (["a", "b"], 0.99, "can't hold out 2 of 2 rows"),
        (["a", "a", "a"], 1, "all 3 rows have the same prompt"),
        (["a", "b", "c"], 1.5, "neither a share"),
    ],
)
def test_what_can_not_be_split(prompts: list[str], held_out: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        held_out_prompts(prompts, held_out, 0)
