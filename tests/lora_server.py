"""A server in the form of vLLM's that answers with our own decoder: adapters loaded and unloaded by name, token ids in and out.

What it takes and tells follows vLLM's source (`entrypoints/openai/completion/protocol.py`, `serve/lora/api_router.py`): it shows that the
path is whole, not that vLLM is met.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from posttrain.generate.decode import decode
from posttrain.generate.engine import Sampling
from posttrain.model.adapters import frozen_model

KNOWN = {"model", "prompt", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"}
KNOWN |= {"logprobs", "ignore_eos", "stop_token_ids", "return_token_ids", "presence_penalty", "frequency_penalty"}
Answer = dict[str, Any]


class LoraServer:
    """Use it in a ``with`` block.

    honours_seeds: False = every reply is another draw, as from a server whose batches round differently. change: what becomes of an answer on
    its way. dies_at: when so many replies were asked for nobody is there any more, in the middle of that one.
    """

    def __init__(
        self,
        base: Path,
        port: int = 0,
        honours_seeds: bool = True,
        change: Callable[[Answer], Answer] = lambda answer: answer,
        dies_at: int | None = None,
    ) -> None:
        self.base, self.honours_seeds, self.change, self.dies_at = base, honours_seeds, change, dies_at
        self.adapters: dict[str, nn.Module] = {}
        self.log: list[tuple[str, str]] = []
        """(what, adapter) of everything that was done."""
        self.most_held = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"served": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=[0.01], daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> LoraServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._thread.join(10)

    def _end(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def count(self, what: str) -> int:
        return sum(done == what for done, _ in self.log)

    def answer(self, path: str, body: Answer) -> tuple[int, Any] | None:
        with self._lock:
            if path == "/v1/models":
                return 200, {"object": "list", "data": [{"id": name} for name in ("base", *self.adapters)]}
            name = str(body["model"] if path == "/v1/completions" else body["lora_name"])
            self.log.append((path.removeprefix("/v1/"), name))
            if path == "/v1/load_lora_adapter":
                return self._load(name, Path(body["lora_path"]))
            if name not in self.adapters:
                return 404, {"error": {"message": f"The model `{name}` does not exist.", "type": "NotFoundError"}}
            if path == "/v1/unload_lora_adapter":
                del self.adapters[name]
                return 200, f"Success: LoRA adapter '{name}' removed successfully."
            if self.count("completions") == self.dies_at:
                return self._end()
            return 200, self.change(self._complete(name, body))

    def _load(self, name: str, path: Path) -> tuple[int, Any]:
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        if not path.is_dir():
            return 404, {"error": {"message": f"No adapter found for {path}"}}
        self.adapters[name] = frozen_model(self.base, path, torch.float32, torch.device("cpu"))
        self.most_held = max(self.most_held, len(self.adapters))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _complete(self, name: str, body: Answer) -> Answer:
        assert set(body) <= KNOWN, set(body) - KNOWN
        assert body["return_token_ids"]
        assert body["ignore_eos"]
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
        assert body["presence_penalty"] == body["frequency_penalty"] == 0.0
        seed = body["seed"] if self.honours_seeds else len(self.log)
        sampling = Sampling(body["temperature"], 1.0, body["max_tokens"], seed, body.get("logprobs"))
        prompt, stops = np.array(body["prompt"], np.int32), [(stop,) for stop in body["stop_token_ids"]]
        said = list(decode(self.adapters[name], [prompt], stops, [sampling]))
        ids = [new.token for new in said]
        choice = {"index": 0, "text": " ".join(map(str, ids)), "finish_reason": said[-1].finish, "token_ids": ids}
        choice |= {"prompt_token_ids": body["prompt"], "logprobs": None}
        if "logprobs" in body:
            logprobs = [new.likely.logprob for new in said if new.likely is not None]
            choice["logprobs"] = {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": logprobs}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": len(prompt) + len(ids)}
        return {"id": "cmpl-0", "object": "text_completion", "model": name, "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    served: LoraServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(self.served.answer(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._send(self.served.answer(self.path, body))

    def _send(self, found: tuple[int, Any] | None) -> None:
        if found is None:
            self.close_connection = True
            return
        status, answer = found
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
