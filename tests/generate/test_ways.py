"""Every model is continued by its own computation: a fast way where it is proven, else its own code; and what it can't continue is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForCausalLM

from decoding import decode, replies
from families import FAMILIES, micro_folder, micro_model
from posttrain.errors import ModelError
from posttrain.generate import ways
from posttrain.generate.engine import Sampling
from posttrain.generate.ways import BATCHED, OWN_CACHE, RECOMPUTED, Kind, Way, way_of
from posttrain.model import kv_cache
from posttrain.model.forward import path_of
from posttrain.model.lengths import context_of, lengths_of, limits_of
from posttrain.model.load import load_model

CPU = torch.device("cpu")
Prompt = NDArray[np.int32]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    draw = np.random.default_rng(4)
    return [draw.integers(3, 199, n).astype(np.int32) for n in (5, 1, 17, 9, 2)]


def loaded(family: str, folder: Path) -> nn.Module:
    return load_model(micro_folder(family, folder), torch.float32, CPU).requires_grad_(False)


def own(family: str) -> nn.Module:
    """A model with nothing of ours in it."""
    return micro_model(family).requires_grad_(False)


def ids_of(model: nn.Module, prompts: Sequence[Prompt], count: int, **options: Any) -> list[list[int]]:
    return [reply.ids for reply in replies(model, prompts, [], Sampling(max_tokens=count), **options)]


@pytest.mark.filterwarnings("ignore")
def test_draws_stops_and_log_probabilities_are_those_of_the_fast_way(prompts: list[Prompt], small_model: Path) -> None:
    fast, slow = load_model(small_model, torch.float32, CPU), AutoModelForCausalLM.from_pretrained(small_model).eval()
    each = [Sampling(1.3, 0.9, 12, seed=i, logprobs=2) for i in range(len(prompts))]
    for stops in ([], [(17,), (4, 9)]):
        found = [sorted(decode(model, prompts, stops, each), key=lambda new: new.prompt) for model in (fast, slow)]
        assert [new[:3] for new in found[0]] == [new[:3] for new in found[1]]
        for one, other in zip(*found, strict=True):
            assert one.likely is not None
            assert other.likely is not None
            assert one.likely.logprob == pytest.approx(other.likely.logprob, abs=1e-4)
    assert (way_of(fast), way_of(slow)) == (BATCHED, OWN_CACHE)


# ---- the proof -----------------------------------------------------------------------------------------------------


def broken(kind: Kind) -> Kind:
    """A way whose steps are off by a little, as a wrong mask makes them."""

    def opened(model: nn.Module, room: int) -> Way:
        way = kind.open(model, room)
        step = way.step
        way.step = lambda tokens: step(tokens) + 1e-2 * torch.linspace(-1, 1, 199)  # type: ignore[method-assign]
        return way

    return kind._replace(open=opened)


def test_a_way_that_is_off_is_not_taken(
    prompts: list[Prompt], small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ids_of(load_model(small_model, torch.float32, CPU), prompts, 9)
    for off, right in enumerate((OWN_CACHE, RECOMPUTED), 1):
        monkeypatch.setattr(ways, "WAYS", (*map(broken, ways.WAYS[:off]), *ways.WAYS[off:]))
        model = load_model(small_model, torch.float32, CPU)
        assert ids_of(model, prompts, 9) == expected
        assert way_of(model) is right


def windowed(folder: Path, window: int, dtype: torch.dtype) -> nn.Module:
    folder = micro_folder("mistral", folder, sliding_window=window, max_position_embeddings=2048)
    return load_model(folder, dtype, CPU).requires_grad_(False)


def test_the_proof_is_made_once_and_only_for_lengths_that_are_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passes = windowed(tmp_path, 200, torch.float32), list[int]()
    run = ways.own_logits

    def counted(model: nn.Module, ids: Sequence[int], last: int = 1) -> torch.Tensor:
        passes.append(len(ids))
        return run(model, ids, last)

    monkeypatch.setattr(ways, "own_logits", counted)

    def proven(prompt: int, new: int) -> int:
        """The longest sequence of a proof that was made for this reply; 0 = none was made."""
        passes.clear()
        ids_of(model, [np.full(prompt, 9, np.int32)], new)
        return max(passes, default=0)

    assert 17 < proven(5, 4) < 50  # the window made short
    assert proven(100, 90) == 0
    assert proven(190, 20) == 202  # the tokens before, on and behind its edge
    assert proven(190, 20) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [12, 100, 900])
def test_a_window_that_is_not_kept_is_found_in_any_type(
    window: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = windowed(tmp_path, window, dtype)
    assert way_of(model) is BATCHED
    attend = kv_cache.Step.attend
    monkeypatch.setattr(kv_cache.Step, "attend", lambda step, *rest: attend(step, *rest[:5], None, *rest[6:]))
    assert way_of(windowed(tmp_path, window, dtype)) is OWN_CACHE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["mistral", "gemma2", "granite", "gpt-oss", "recurrent-gemma", "mamba", "lfm2"])
def test_what_is_proven_does_not_depend_on_the_type_of_the_weights(family: str, tmp_path: Path) -> None:
    """In bf16 the rounding of all layers would hide an attention that is 8% off (RecurrentGemma)."""
    folder = micro_folder(family, tmp_path)
    exact, narrow = (load_model(folder, dtype, CPU) for dtype in (torch.float32, torch.bfloat16))
    before = [parameter.clone() for parameter in narrow.parameters()]
    assert path_of(narrow) == path_of(exact)
    assert way_of(narrow, 40) is way_of(exact, 40)
    assert all(torch.equal(one, other) for one, other in zip(before, narrow.parameters(), strict=True))
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}


def test_a_model_that_can_not_compute_is_one_error(prompts: list[Prompt]) -> None:
    model = own("llama")

    def forward(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel")

    model.forward = forward  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"LlamaForCausalLM\) can't compute a sequence: no kernel"):
        ids_of(model, prompts, 3)


def test_lengths_are_read_from_configurations() -> None:
    found = {name: lengths_of(family.config()) for name, family in FAMILIES.items()}
    for name, family in FAMILIES.items():
        if name not in ("llama-yarn", "llama-llama3"):  # factors of their own, but the same at every length
            assert set(family.switches) <= set(found[name].switches), name
    assert found["llama"].switches == ()
    assert [found["phi3-longrope"].factors(n) for n in (1, 12, 13, 40)] == [(0,), (0,), (1,), (1,)]
    assert [found["llama-dynamic"].factors(n) for n in (1, 12, 13, 40)] == [(12,), (12,), (13,), (40,)]
    assert context_of(FAMILIES["llama-dynamic"].config()) == 48
    assert context_of(FAMILIES["bloom"].config()) is None


# ---- what can't be continued ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 3, 64])
@pytest.mark.parametrize("build", [loaded, lambda family, _: own(family)], ids=["batched", "own code"])
def test_nan_ends_its_own_sequence_and_no_other(
    build: Callable[[str, Path], nn.Module], slots: int, prompts: list[Prompt], tmp_path: Path
) -> None:
    model = build("llama", tmp_path)
    healthy = ids_of(model, prompts, 30)
    poison = healthy[0][4]
    model.get_input_embeddings().weight[poison] = torch.nan  # type: ignore[operator]
    bad = [np.append(prompts[2], poison).astype(np.int32), prompts[3]]
    found = replies(model, [*prompts, *bad], [], Sampling(max_tokens=30), slots=slots)
    for reply, whole in zip(found, [*healthy, [], healthy[3]], strict=True):
        cut = whole.index(poison) + 1 if poison in whole else 0 if not whole else 30
        assert (reply.ids, reply.finish) == (whole[:cut], "length" if cut == 30 else "not_finite")
    assert found[5].ids == []
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = 0.0  # type: ignore[operator]


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "llama"])
@pytest.mark.filterwarnings("ignore")
def test_limits_are_told_before_anything_is_generated(family: str, prompts: list[Prompt]) -> None:
    model = own(family)
    for ids in ([5, 199], [-1, 4]):
        with pytest.raises(ModelError, match=r"prompt 2: .*the model knows 0 to 198"):
            next(decode(model, [prompts[0], np.array(ids, np.int32)], [], Sampling(max_tokens=2)))
    with pytest.raises(ModelError, match="no tokens"):
        ids_of(model, [np.array([], np.int32)], 2)
    last = limits_of(model).positions  # type: ignore[arg-type]
    if family == "llama":
        assert last is None
        return
    assert last is not None
    (whole,) = replies(model, [np.full(last - 3, 7, np.int32)], [], Sampling(max_tokens=9))
    assert (len(whole.ids), whole.finish) == (3, "length")
    with pytest.raises(ModelError, match=f"{last} tokens, the model positions for {last}"):
        ids_of(model, [np.full(last, 7, np.int32)], 1)
