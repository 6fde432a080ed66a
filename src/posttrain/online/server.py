"""A server as sampler: the live adapter of every step under a name of its own, ids out, ids and log-probabilities in.

    name of the live weights -> does the server hold it? else unload the last one, write and load this one -> replies by token ids

The form is vLLM's (docs/online.md). A name is made of the step and the digest of the weights: an equal name means equal weights, whoever
loaded them, and an answer of another name is refused. Replies are kept until the next checkpoint, so that a step that is done again
after a kill has the same ones, whether the server honours seeds or not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from posttrain.artifacts import StageDir, atomic_path
from posttrain.errors import ConfigError, TrainingError
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.engine import Completion, Failure, Ids, Outcome, Request, complete
from posttrain.generate.openai import OpenAIEngine, command
from posttrain.generate.wire import excerpt, read_models
from posttrain.model import adapters
from posttrain.model.forward import causal_lm
from posttrain.model.lengths import limits_of
from posttrain.online.config import ServerSampler
from posttrain.online.prompts import Prompt
from posttrain.online.rollout import Drawing, Reply, Report, draws, reply_of
from posttrain.train.checkpoint import content_digest

REPLIES_FILE = "replies.sqlite"
"""In the folder of the stage: the replies since the last checkpoint."""
ADAPTERS_FOLDER = "served"
"""There as well: the adapter that the server reads, where no other folder is given."""
FIX = "see that the server runs, then the same command again: it goes on at this step (docs/online.md)"


@dataclass(frozen=True)
class ServedAdapters:
    """Samples from a server that holds the weights under the policy's adapter."""

    settings: ServerSampler
    model: nn.Module
    trained: Mapping[str, Tensor]
    """The live weights of the adapter, by name."""
    drawing: Drawing
    out: StageDir
    digest: str
    """Identity of the stage: names of other stages at the same server are other ones."""
    report: Report

    def __post_init__(self) -> None:
        self.settings.check()
        if several := [stop for stop in self.drawing.stops if len(stop) != 1]:
            raise ConfigError(
                f"replies are ended by several tokens together here ({several[0]}), which a server can't be told",
                where="sampler",
                fix="sampler: {name: local}",
            )

    def sample(self, prompts: Sequence[Prompt], replies: int, seed: int, step: int, version: int) -> list[Reply]:
        """See `posttrain.online.rollout.Sampler`."""
        drawn = draws(self.model, prompts, replies, self.drawing, seed, step)
        stops = tuple(stop for (stop,) in self.drawing.stops)
        requests = [Request((), how, tokens=Ids(tuple(prompt.ids_T.tolist()), stops)) for prompt, how in drawn]
        name = f"{self._prefix}{version}-{self._weights()[:16]}"
        with RequestCache(self.out.file(REPLIES_FILE)) as kept:
            outcomes = self._asked(name, requests, kept)
            if any(isinstance(one, Failure) and one.reason != "bad_response" for one in outcomes):
                outcomes = self._asked(name, requests, kept)  # it may be up again, and know no adapter any more
        found, limits = [], limits_of(causal_lm(self.model))
        for (prompt, _), outcome in zip(drawn, outcomes, strict=True):
            if not isinstance(outcome, Completion):
                failed = sum(isinstance(one, Failure) for one in outcomes)
                what = f"{failed} of {len(outcomes)} replies did not come from the server; the first: {outcome.detail}"
                raise TrainingError(what, where=self.settings.url, fix=FIX)
            assert outcome.ids is not None, "ids were asked for"
            if problem := limits.problem(np.array(outcome.ids)):
                raise TrainingError(f"a reply of another vocabulary: {problem}", where=self.settings.url, fix=FIX)
            logprobs = [token.logprob for token in outcome.logprobs or ()]
            reply = reply_of(prompt, list(outcome.ids), outcome.finish == "stop", logprobs, self.drawing)
            found.append(replace(reply, version=version))
        return found

    def checkpointed(self) -> None:
        """See `posttrain.online.rollout.Sampler`."""
        for ending in ("", "-wal", "-shm"):
            self.out.file(REPLIES_FILE + ending).unlink(missing_ok=True)

    def close(self) -> None:
        """Take the last adapter from the server and the disk."""
        held = self._held()
        self._forget(() if isinstance(held, Failure) else held)

    def _asked(self, name: str, requests: Sequence[Request], kept: RequestCache) -> list[Outcome]:
        self._serve(name)
        engine = OpenAIEngine(self.settings.endpoint(name))
        return complete(CachedEngine(engine, kept), requests, self.report)

    @property
    def _prefix(self) -> str:
        return f"posttrain-{self.digest[:8]}-"

    @property
    def _folder(self) -> Path:
        given = self.settings.adapter_folder
        return (self.out.file(ADAPTERS_FOLDER) if given is None else Path(given).expanduser()).absolute()

    def _weights(self) -> str:
        return content_digest({name: one.detach().cpu() for name, one in self.trained.items()}, {})

    def _serve(self, name: str) -> None:
        """See that the server holds the live weights under their name. Raises TrainingError where it can't."""
        held = self._held()
        if isinstance(held, Failure):
            raise TrainingError(f"the server gives no answer: {held.detail}", where=self.settings.url, fix=FIX)
        if name in held:
            return
        self._forget(held)
        folder = self._folder / name
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            adapters.save_adapter(self.model, temporary)
        loaded = command(
            self.settings.endpoint(name), "load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}
        )
        if isinstance(loaded, Failure):
            raise TrainingError(
                f"the server did not load the adapter {folder}: {loaded.detail}",
                where=self.settings.url,
                fix="vLLM needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and --max-lora-rank of the adapter's rank, and must "
                "see that path (adapter_folder)",
            )

    def _held(self) -> tuple[str, ...] | Failure:
        """The models and adapters that the server knows."""
        found = command(self.settings.endpoint(""), "models")
        if isinstance(found, Failure):
            return found
        held = read_models(found)
        return Failure("bad_response", f"this is no list of models: {excerpt(found)}") if held is None else held

    def _forget(self, held: Sequence[str]) -> None:
        """Take earlier adapters of this stage from the server and the disk; one that stays in the server's memory does no harm."""
        for name in held:
            if name.startswith(self._prefix):
                command(self.settings.endpoint(name), "unload_lora_adapter", {"lora_name": name})
        for folder in self._folder.glob(f"{self._prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)
