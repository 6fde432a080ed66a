"""A server as sampler: the same run as with the live weights, whatever becomes of the server, and nothing learned from a wrong answer."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_server import Answer, LoraServer
from own_replies import END, make_settings
from posttrain.artifacts import StageDir
from posttrain.errors import ConfigError, TrainingError
from posttrain.generate import openai
from posttrain.generate.openai import Endpoint
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.online import loop, server
from posttrain.online.config import ServerSampler, settings_problems
from posttrain.online.rollout import Drawing, OwnWeights, Reply
from servers import stored_keys

Run = Callable[..., dict[str, Any]]
OPTIONS: dict[str, Any] = {"steps": 2, "passes": 2, "checkpoint_every": 1, "temperature": 0.8}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that is gone is given up at once."""
    monkeypatch.setattr(openai, "Endpoint", partial(Endpoint, attempts=2, first_backoff=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def whole(online: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with the live weights as sampler."""
    out = tmp_path_factory.mktemp("whole")
    online(out, **OPTIONS)
    return out


def served(url: str, **changes: Any) -> ServerSampler:
    return ServerSampler(name="server", url=url, **changes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(out / "adapter" / "adapter_model.safetensors")
    return found


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def steps(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"]


# ---- the same run --------------------------------------------------------------------------------------------------


def test_it_is_the_run_with_the_live_weights(online: Run, whole: Path, small_model: Path, tmp_path: Path) -> None:
    with LoraServer(small_model) as http:
        online(tmp_path / "out", sampler=served(http.url, adapter_folder=str(tmp_path / "seen")), **OPTIONS)
    assert same(whole, tmp_path / "out")
    assert (whole / "samples.jsonl").read_bytes() == (tmp_path / "out" / "samples.jsonl").read_bytes()
    assert all(step["sampler/largest_gap"] < 1e-4 for step in steps(tmp_path / "out"))
    loaded = [name for what, name in http.log if what == "load_lora_adapter"]
    versions = [int(name.split("-")[2]) for name in loaded]
    assert versions == [0, 1, 2], "the start as well, and each once: a measurement is of the weights of the next step"
    assert [name for what, name in http.log if what == "unload_lora_adapter"] == loaded
    assert http.most_held == 1
    assert not list((tmp_path / "seen").iterdir())
    assert not (tmp_path / "out" / "replies.sqlite").exists()


def test_a_step_that_is_done_again_has_the_replies_it_had(
    online: Run, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the server draws anew whenever it is asked; what it has answered before the kill is not asked again."""
    options, seen, score = OPTIONS | {"checkpoint_every": 10}, [], loop.score
    deadly = True

    def watched(replies: list[Reply], *rest: Any) -> Any:
        seen.append([reply.ids_T.tolist() for reply in replies])
        if deadly and len(seen) == 3:  # held out, two steps: no checkpoint yet
            raise KeyboardInterrupt
        return score(replies, *rest)

    monkeypatch.setattr(loop, "score", watched)
    with LoraServer(small_model, honours_seeds=False) as http:
        with pytest.raises(KeyboardInterrupt):
            online(tmp_path, sampler=served(http.url), **options)
        asked = http.count("completions")
        deadly = False
        online(tmp_path, sampler=served(http.url), **options)
    assert seen[3:6] == seen[:3]
    assert http.count("completions") == asked + 2, "the last measurement"


# ---- a server that dies --------------------------------------------------------------------------------------------


def test_a_server_that_dies_in_the_middle_of_a_step(
    online: Run, whole: Path, small_model: Path, tmp_path: Path
) -> None:
    """The run ends with one error; with the server up again it goes on at that step, and ends in the same bits."""
    with LoraServer(small_model, dies_at=2 + 9 + 5) as http:
        options = OPTIONS | {"sampler": served(http.url, concurrency=1)}
        with pytest.raises(TrainingError, match="no answer"):
            online(tmp_path, **options)
    assert len(steps(tmp_path)) == 1
    assert len(stored_keys(tmp_path / "replies.sqlite")) == 4
    with LoraServer(small_model, port=http.port) as again:
        online(tmp_path, **options)
    assert again.count("completions") == 5 + 2, "what is kept is not asked again"
    assert same(whole, tmp_path)


def test_a_server_that_is_up_again_in_time_is_given_the_adapter_again(
    online: Run, whole: Path, small_model: Path, tmp_path: Path
) -> None:
    """It knows no adapter any more in the middle of a batch: those that it has refused are asked again."""
    http = LoraServer(small_model)

    def forget_once(answer: Answer) -> Answer:
        if http.count("completions") == 2 + 9 + 5:
            http.adapters.clear()
        return answer

    http.change = forget_once
    with http:
        online(tmp_path, sampler=served(http.url, concurrency=1), **OPTIONS)
    assert same(whole, tmp_path)
    assert http.count("load_lora_adapter") == 4


def test_nobody_there(online: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the server gives no answer"):
        online(tmp_path, sampler=served("http://127.0.0.1:9"))


def test_a_server_that_cannot_load_adapters(online: Run, small_model: Path, tmp_path: Path) -> None:
    with LoraServer(small_model) as http:
        http.answer = lambda path, body: (200, {"data": []}) if path == "/v1/models" else (404, {"detail": "Not Found"})
        with pytest.raises(TrainingError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            online(tmp_path, sampler=served(http.url))


# ---- wrong answers -------------------------------------------------------------------------------------------------


def test_another_base_on_the_server_is_found_before_anything_is_learned(
    online: Run, small_model: Path, tmp_path: Path
) -> None:
    tensors = load_file(small_model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] *= 1.5
    shutil.copytree(small_model, tmp_path / "other")
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with LoraServer(tmp_path / "other") as http, pytest.raises(TrainingError, match="different models"):
        online(tmp_path / "out", sampler=served(http.url), held_out=0)
    assert not steps(tmp_path / "out")


def test_an_answer_of_another_adapter_is_refused(online: Run, small_model: Path, tmp_path: Path) -> None:
    http = LoraServer(small_model, change=lambda answer: answer | {"model": "base"})
    with http, pytest.raises(TrainingError, match="the answer is of 'base'"):
        online(tmp_path, sampler=served(http.url), held_out=0)
    assert http.count("completions") == 9, "a wrong answer is final"


def test_replies_of_other_weights_are_refused(online: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnWeights.sample
    monkeypatch.setattr(
        OwnWeights, "sample", lambda self, *given: [replace(r, version=r.version + 1) for r in own(self, *given)]
    )
    with pytest.raises(TrainingError, match="weights after step 1, not 0"):
        online(tmp_path)


def test_stops_of_several_tokens_cannot_be_told_to_a_server(tmp_path: Path) -> None:
    drawing = Drawing([(END,), (7, 8)], str, 1.0, 8)
    with pytest.raises(ConfigError, match="several tokens"):
        server.ServedAdapters(
            served("http://127.0.0.1:9"), nn.Linear(1, 1), {}, drawing, StageDir(tmp_path), "d", print
        )


@pytest.mark.parametrize("adapter", [FullWeights(name="full"), LoraAdapter(dora=True)])
def test_what_a_server_cannot_be_given(adapter: Any) -> None:
    settings = make_settings(adapter=adapter, sampler=served("http://127.0.0.1:9"))
    assert [problem.path for problem in settings_problems(settings)] == [("sampler",)]
    assert not list(settings_problems(make_settings(adapter=adapter)))


@pytest.mark.parametrize(
    "wrong",
    [{"url": "ftp://here"}, {"url": "http://me:key@here/v1"}, {"url": "http://h", "api_key_env": "NOT_SET_AT_ALL"}],
)
def test_address_and_key_are_looked_at_before_anything_runs(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        ServerSampler(name="server", **wrong).check()
