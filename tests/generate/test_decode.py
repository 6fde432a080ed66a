"""Decoding against transformers' own generate; rows that leave, stops, limits and sampling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from decoding import decode, replies
from posttrain.encode.collate import collate
from posttrain.encode.segments import Segments
from posttrain.generate import decode as decode_module
from posttrain.generate import ways
from posttrain.generate.decode import NewToken, without_stop
from posttrain.generate.engine import Sampling
from posttrain.model.adapters import attach_lora
from posttrain.model.config import LoraAdapter
from posttrain.model.fused import fuse
from posttrain.model.load import load_model
from posttrain.model.score import batch_logps
from posttrain.types import Tokens

CPU = torch.device("cpu")


def greedy(max_tokens: int) -> Sampling:
    return Sampling(max_tokens=max_tokens)


Prompt = NDArray[np.int32]


@pytest.fixture(scope="module")
def model(small_model: Path) -> nn.Module:
    return load_model(small_model, torch.float32, CPU)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    draw = np.random.default_rng(4)
    return [draw.integers(3, 199, n).astype(np.int32) for n in (5, 1, 17, 9, 2)]


def collected(tokens: Sequence[NewToken], count: int) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in range(count)]
    for new in tokens:
        out[new.prompt].append(new.token)
    return out


@functools.lru_cache(maxsize=1)
def eager(folder: Path) -> Any:
    """The model of a folder in transformers' eager code."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def hugging_face(folder: Path, prompt: Prompt, stop: int | None, max_new_tokens: int) -> list[int]:
    """Greedy generate of one prompt by transformers' eager code."""
    hf = eager(folder)
    ids = torch.from_numpy(prompt).long()[None]
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, "eos_token_id": stop, "pad_token_id": 0}
    out = hf.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return [int(i) for i in out[0, len(prompt) :]]


def test_greedy_is_hugging_faces_generate_for_a_ragged_batch(
    model: nn.Module, prompts: list[Prompt], small_model: Path
) -> None:
    free = collected(list(decode(model, prompts, [], greedy(24))), len(prompts))
    # Stop on a token that some replies contain and others do not, so that rows leave at different times.
    stop = next(t for t in free[0] if 0 < sum(t in ids for ids in free) < len(free))
    ours = collected(list(decode(model, prompts, [(stop,)], greedy(24))), len(prompts))
    assert ours == [hugging_face(small_model, p, stop, 24) for p in prompts]
    assert len({len(ids) for ids in ours}) > 1


@pytest.mark.parametrize("family", ["mistral", "gemma2", "qwen3"])
def test_other_caches_and_windows(family: str, prompts: list[Prompt], tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        family, vocab_size=199, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=6, initializer_range=0.3, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    ours = collected(list(decode(load_model(tmp_path, torch.float32, CPU), prompts, [], greedy(20))), len(prompts))
    assert ours == [hugging_face(tmp_path, p, None, 20) for p in prompts]


def test_a_row_that_leaves_changes_no_other(model: nn.Module, prompts: list[Prompt]) -> None:
    free = collected(list(decode(model, prompts, [], greedy(20))), len(prompts))
    for token in {ids[place] for ids, place in product(free, (0, 3, 9))}:
        stopped = collected(list(decode(model, prompts, [(token,)], greedy(20))), len(prompts))
        for ids, whole in zip(stopped, free, strict=True):
            expected = whole[: whole.index(token) + 1] if token in whole else whole
            assert ids == expected


def test_the_order_of_prompts_is_kept_and_every_row_finishes_once(model: nn.Module, prompts: list[Prompt]) -> None:
    tokens = list(decode(model, prompts, [], greedy(3)))
    assert [t.prompt for t in tokens] == [0, 1, 2, 3, 4] * 3
    assert [t.finish for t in tokens] == [None] * 10 + ["length"] * 5


def test_stops_of_one_and_of_several_tokens(model: nn.Module, prompts: list[Prompt]) -> None:
    (free,) = collected(list(decode(model, prompts[:1], [], greedy(12))), 1)
    pair, triple = tuple(free[4:6]), tuple(free[2:5])
    first_pair = next(i for i in range(11) if tuple(free[i : i + 2]) == pair)
    (reply,) = replies(model, prompts[:1], [pair], greedy(12))
    assert (reply.ids, reply.finish) == (free[:first_pair], "stop")
    (reply,) = replies(model, prompts[:1], [triple, (198, 198)], greedy(12))
    assert reply.finish == "stop"
    assert tuple(free[len(reply.ids) : len(reply.ids) + 3]) == triple
    # Half a stop at the end is text.
    (reply,) = replies(model, prompts[:1], [(free[11], 5)], greedy(12))
    assert (reply.ids, reply.finish) == (free, "length")
    # Of two stops that both fit, the longer one is cut off.
    assert without_stop([7, 8, 9], [(9,), (8, 9)]) == [7]
    assert without_stop([7, 8, 9], [(8,)]) == [7, 8, 9]


def test_limits(model: nn.Module, prompts: list[Prompt]) -> None:
    assert [len(r.ids) for r in replies(model, prompts, [], greedy(1))] == [1] * 5
    assert replies(model, [], [], greedy(5)) == []


def test_an_adapted_model_decodes_with_its_adapter(small_model: Path, prompts: list[Prompt]) -> None:
    def adapted() -> nn.Module:
        model = attach_lora(load_model(small_model, torch.float32, CPU), LoraAdapter(rank=4), seed=0)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        return model

    hot = adapted()
    assert fuse(hot)["mlp"] == 2
    ours = collected(list(decode(hot, prompts, [], greedy(12))), len(prompts))
    merged = adapted().merge_and_unload()  # type: ignore[operator]
    assert ours == collected(list(decode(merged, prompts, [], greedy(12))), len(prompts))
    assert ours != collected(
        list(decode(load_model(small_model, torch.float32, CPU), prompts, [], greedy(12))), len(prompts)
    )


def test_the_caller_is_left_alone_between_tokens(
    model: nn.Module, prompts: list[Prompt], random_examples: Callable[..., list[Tokens]]
) -> None:
    """Gradients stay on, and packed passes give what they always give and change nothing of the decoding."""
    batch = collate(random_examples([5, 6]))
    before = batch_logps(model, batch, torch.float32).logps_S
    whole = list(decode(model, prompts, [], greedy(5)))
    running = decode(model, prompts, [], greedy(5))
    seen = [next(running) for _ in range(7)]
    assert torch.is_grad_enabled()
    between = batch_logps(model, batch, torch.float32).logps_S
    assert between.requires_grad
    assert torch.equal(between, before)
    assert [*seen, *running] == whole


def test_a_pass_that_does_not_say_where_sequences_begin_is_refused(model: nn.Module) -> None:
    with pytest.raises(TypeError, match="packed passes"):
        model(input_ids=torch.ones(1, 4, dtype=torch.int64))


# ---- continuous batching -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_replies_do_not_depend_on_the_number_of_slots(small_model: Path) -> None:
    """Long and short prompts and limits, so that slots grow, move and are taken again; each reply is that of generate."""
    model, draw = load_model(small_model, torch.float32, CPU), np.random.default_rng(5)
    prompts = [draw.integers(3, 199, n).astype(np.int32) for n in (70, 3, 150, 1, 63, 64, 65, 20, 9, 130)]
    limits = [5, 90, 1, 30, 4, 70, 2, 40, 12, 33]
    expected = []
    for prompt, limit in zip(prompts, limits, strict=True):
        whole = hugging_face(small_model, prompt, None, limit)
        ends = [i for i in range(len(whole)) if whole[i] == 17 or whole[i - 1 : i + 1] == [4, 9]]
        cut = whole[: ends[0] + 1] if ends else whole
        expected.append((without_stop(cut, [(17,), (4, 9)]), "stop") if ends else (cut, "length"))
    for slots in (1, 2, 3, 17, 64):
        found = replies(model, prompts, [(17,), (4, 9)], [greedy(limit) for limit in limits], slots=slots)
        assert [(reply.ids, reply.finish) for reply in found] == expected, slots


def test_a_place_is_taken_as_soon_as_it_is_free(model: nn.Module, prompts: list[Prompt]) -> None:
    tokens = list(decode(model, prompts, [], [greedy(n) for n in (4, 2, 4, 1, 1)], slots=2))
    # The longest prompts begin: 2 and 3. When 3 ends at once, 0 follows, then 4, then 1.
    assert [t.prompt for t in tokens] == [2, 3, 0, 0, 2, 0, 2, 0, 2, 1, 4, 1]
    assert [(t.prompt, t.finish) for t in tokens if t.finish] == [
        (3, "length"),
        (0, "length"),
        (2, "length"),
        (4, "length"),
        (1, "length"),
    ]


def test_every_prompt_has_its_own_sampling(model: nn.Module, prompts: list[Prompt]) -> None:
    each = [
        greedy(6),
        Sampling(1.0, 0.9, 7, seed=4),
        greedy(3),
        Sampling(2.0, max_tokens=5),
        Sampling(0.5, 0.8, 6, seed=1),
    ]
    together = replies(model, prompts, [], each)
    for prompt, sampling, reply in zip(prompts, each, together, strict=True):
        assert replies(model, [prompt], [], [sampling]) == [reply]


def test_log_probabilities_are_those_of_the_packed_pass(model: nn.Module, prompts: list[Prompt]) -> None:
    sampling = Sampling(1.5, 0.9, 6, seed=2, logprobs=3)
    each = [sampling, greedy(6), sampling, replace(greedy(6), logprobs=0), sampling]
    tokens = list(decode(model, prompts, [], each))
    for i, prompt in enumerate(prompts):
        mine = [t for t in tokens if t.prompt == i]
        if each[i].logprobs is None:
            assert [t.likely for t in mine] == [None] * 6
            continue
        ids = np.concatenate([prompt, [t.token for t in mine]]).astype(np.int32)
        weights = np.arange(len(ids)) >= len(prompt)
        batch = collate([Tokens(ids, weights.astype(np.float32), "x")])
        with torch.no_grad():
            exact = batch_logps(model, batch, torch.float32).logps_S.tolist()
        assert [t.likely.logprob for t in mine if t.likely] == pytest.approx(exact, abs=1e-5)
        for token in mine:
            assert token.likely is not None
            assert len(token.likely.top) == each[i].logprobs
            best = [lp for _, lp in token.likely.top]
            assert best == sorted(best, reverse=True)
            assert all(lp == token.likely.logprob for t, lp in token.likely.top if t == token.token)


def test_a_prefill_is_bounded(model: nn.Module, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replies(model, prompts, [], greedy(6))
    passes: list[int] = []
    run = ways.next_logits

    def counted(model: nn.Module, ids_T: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(ids_T))
        return run(model, ids_T, *rest)

    monkeypatch.setattr(ways, "next_logits", counted)
    monkeypatch.setattr(decode_module, "PREFILL_TOKENS", 10)
    assert replies(model, prompts, [], greedy(6)) == whole
    assert passes[:3] == [17, 9, 8]  # 17 alone is over the bound and still goes; 5, 2 and 1 together


def test_equal_prompts_are_read_once(model: nn.Module, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several replies to a prompt: each is what it is alone."""
    several = [prompt for prompt in prompts for _ in range(3)]
    samplings = [Sampling(1.0, 1.0, 4 + n % 5, seed=n) for n in range(len(several))]
    alone = [replies(model, [p], [], [s])[0].ids for p, s in zip(several, samplings, strict=True)]
    passes: list[int] = []
    run = ways.next_logits

    def counted(model: nn.Module, ids_T: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(ids_T))
        return run(model, ids_T, *rest)

    monkeypatch.setattr(ways, "next_logits", counted)
    found = collected(list(decode_module.decode(model, several, [], samplings)), len(several))
    assert found == alone
    assert passes[:2] == [5 + 1 + 17 + 9 + 2, 15]
    passes.clear()
    few = collected(list(decode_module.decode(model, several, [], samplings, 4)), len(several))
    assert few == alone, "where slots part a prompt's replies, it is read again"


# ---- sampling ------------------------------------------------------------------------------------------------------


def drawn(model: nn.Module, prompt: Prompt, sampling: Sampling, count: int) -> NDArray[np.int64]:
    """The first token of ``count`` replies to one prompt."""
    return np.array([t.token for t in decode(model, [prompt] * count, [], sampling)])


@torch.no_grad()
def probabilities(model: nn.Module, prompt: Prompt, temperature: float) -> NDArray[np.float64]:
    logits = model(input_ids=torch.from_numpy(prompt).long()[None], segments=Segments([len(prompt)])).logits[0, -1]
    return (logits.double() / temperature).softmax(-1).numpy()


def test_what_is_drawn_does_not_depend_on_neighbours(model: nn.Module, prompts: list[Prompt]) -> None:
    for sampling in (Sampling(1.0, 0.9, 15, seed=3), Sampling(1.3, max_tokens=15, seed=5)):
        together = replies(model, prompts, [], sampling)
        few = replies(model, prompts, [], sampling, slots=2)
        assert together == few
        alone = replies(model, prompts[2:3], [], replace(sampling, seed=(sampling.seed or 0) + 2))
        assert alone == together[2:3]


@pytest.mark.parametrize(("top_p", "looked_at"), [(1.0, "BLOCK"), (0.9, "LIKELY")])
def test_looking_at_a_part_of_the_vocabulary_first_changes_nothing(
    top_p: float, looked_at: str, model: nn.Module, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(1.7, top_p, 20, seed=9)
    whole = replies(model, prompts, [], sampling)  # the vocabulary is smaller than both
    monkeypatch.setattr(decode_module, looked_at, 6)
    assert replies(model, prompts, [], sampling) == whole


def test_sampling_is_seeded(model: nn.Module, prompts: list[Prompt]) -> None:
    runs = [list(decode(model, prompts, [], Sampling(1.0, 0.9, 10, seed=seed))) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_frequencies_are_the_softmax(temperature: float, model: nn.Module, prompts: list[Prompt]) -> None:
    count = 8_000
    p = probabilities(model, prompts[0], temperature)
    seen = np.bincount(drawn(model, prompts[0], Sampling(temperature, max_tokens=1, seed=3), count), minlength=len(p))
    often = p * count >= 5
    observed, expected = np.append(seen[often], seen[~often].sum()), np.append(p[often], p[~often].sum()) * count
    assert chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("top_p", [0.3, 0.7, 0.95])
def test_top_p_draws_from_the_smallest_set_that_reaches_it(
    top_p: float, model: nn.Module, prompts: list[Prompt]
) -> None:
    p = probabilities(model, prompts[2], 1.0)
    order = np.argsort(-p)
    size = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    kept = order[:size]
    tokens = drawn(model, prompts[2], Sampling(1.0, top_p, 1, seed=1), 6000)
    assert set(tokens) <= set(kept)
    expected = p[kept] / p[kept].sum() * len(tokens)
    often = expected >= 5
    observed = np.array([(tokens == t).sum() for t in kept])
    observed, expected = (
        np.append(observed[often], observed[~often].sum()),
        np.append(expected[often], expected[~often].sum()),
    )
    if (expected > 0).sum() > 1:
        assert chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, 1e-12, 8), Sampling(1e-38, 1.0, 8), Sampling(1e-4, 1.0, 8), Sampling(0.5, 1e-9, 8)]
)
def test_extremes_are_greedy(sampling: Sampling, model: nn.Module, prompts: list[Prompt]) -> None:
    likeliest = collected(list(decode(model, prompts, [], greedy(8))), len(prompts))
    assert collected(list(decode(model, prompts, [], sampling)), len(prompts)) == likeliest


@pytest.mark.slow
@pytest.mark.demo_model
def test_greedy_is_hugging_faces_generate_on_smollm2(demo_model: Path) -> None:
    from posttrain.encode.template import load_template, load_tokenizer
    from posttrain.encode.tokens import encode_prompt
    from posttrain.types import Message

    template = load_template(load_tokenizer(demo_model), None)
    questions = [
        "What is the capital of France?",
        "Count from one to five.",
        "Write one sentence about the sea, please.",
    ]
    prompts = [encode_prompt([Message("user", q)], template) for q in questions]
    ours = collected(
        list(decode(load_model(demo_model, torch.float32, CPU), prompts, [(2,)], greedy(16))), len(prompts)
    )
    assert ours == [hugging_face(demo_model, np.asarray(p, np.int32), 2, 16) for p in prompts]
    eager.cache_clear()
