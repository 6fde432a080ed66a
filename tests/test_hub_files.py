"""Files of the hub by address, from a hub on 127.0.0.1: fetched once, kept, and clear errors."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from posttrain.assets import hub_file, is_hub_file
from posttrain.errors import AssetError

CONTENT = b'{"prompt": "Hello?"}\n'


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub with one file; the list holds the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            return None

        def _answer(self, body: bytes) -> None:
            asked.append(self.path)
            here = self.path == "/datasets/org/name/resolve/main/data/test.jsonl"
            self.send_response(200 if here else 404)
            if here:
                self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(CONTENT) if here else 0))
            self.end_headers()
            self.wfile.write(body if here else b"")

        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_GET(self) -> None:
            self._answer(CONTENT)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield asked
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once(hub: list[str]) -> None:
    address = "hf://datasets/org/name/data/test.jsonl"
    assert is_hub_file(address)
    assert not is_hub_file("data/test.jsonl")
    assert hub_file(address).read_bytes() == CONTENT
    downloads = len(hub)
    assert hub_file(address).read_bytes() == CONTENT
    assert len(hub) - downloads <= 1  # whether it changed is asked, the file is not


def test_a_file_that_is_not_there_is_told(hub: list[str]) -> None:
    with pytest.raises(AssetError, match="no such file") as caught:
        hub_file("hf://datasets/org/name/data/other.jsonl")
    assert "other.jsonl" in str(caught.value)


@pytest.mark.parametrize("address", ["hf://", "hf://datasets/org/name", "hf://org", "hf://datasets/org//x"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(AssetError, match="not the address"):
        hub_file(address)
