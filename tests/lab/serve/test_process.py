"""The process of an endpoint: its address, its readiness, its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from posttrain.lab.serve.process import bound

pytestmark = pytest.mark.demo_model
Cli = Callable[..., Any]
PATIENCE = 300
"""Seconds: a busy machine must not fail a test."""


def started(model: Path, *more: str, **environment: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "posttrain", "serve", str(model), "--port", "0", "--with-parent", *more]
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment}
    )


@pytest.mark.slow
def test_a_child_tells_when_it_is_ready_and_ends_with_its_parent(tiny_model: Path) -> None:
    with started(tiny_model, POSTTRAIN_SERVE_KEY="from-the-environment") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["model"] == str(tiny_model)
        assert httpx.get(ready["url"] + "/models", timeout=PATIENCE).status_code == 401
        bearer = {"Authorization": "Bearer from-the-environment"}
        assert (
            httpx.get(ready["url"] + "/models", headers=bearer, timeout=PATIENCE).json()["data"][0]["id"]
            == ready["model"]
        )
        body = {"model": ready["model"], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        found = httpx.post(ready["url"] + "/chat/completions", json=body, headers=bearer, timeout=PATIENCE)
        assert found.json()["usage"]["completion_tokens"] == 2
        process.stdin.close()
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
        assert process.stdout.read() == b""
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_a_child_whose_parent_is_gone_before_it_is_ready_ends(tiny_model: Path) -> None:
    with started(tiny_model) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)


WITHOUT_MODEL = """
import signal, sys
from types import SimpleNamespace
from posttrain.cli import main
from posttrain.lab import chat
chat.open_voice = lambda *arguments, **named: SimpleNamespace(close=lambda: None)
sys.argv[1:] = ["serve", "nothing", "--port", "0"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run behind a shell
main()
"""


def test_ctrl_c_is_the_way_to_end_it() -> None:
    words = [sys.executable, "-c", WITHOUT_MODEL]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b"ended\n"


def test_what_is_written_is_sent_at_once() -> None:
    """asyncio asks a socket for its protocol; where it is not told TCP, the body of every answer on a kept connection is 40 ms late."""
    with contextlib.closing(bound("127.0.0.1", 0)) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), contextlib.closing(listener.accept()[0]) as accepted:
            assert accepted.proto == socket.IPPROTO_TCP


def test_addresses_that_can_not_be_had(cli: Cli, tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = cli("serve", tiny_model, "--port", port).refused()
    assert f"127.0.0.1:{port}: this port is in use" in message
    assert "give an address of this machine" in cli("serve", tiny_model, "--host", "192.0.2.1", "--key", "x").refused()
    assert "give a --key" in cli("serve", tiny_model, "--host", "0.0.0.0").refused()
    assert "no header may have" in cli("serve", tiny_model, "--key", "two words\n").refused()


def test_what_can_not_be_served(cli: Cli, tmp_path: Path) -> None:
    assert "no such model" in cli("serve", tmp_path / "none", "--port", 0).refused()


def test_without_the_packages_the_error_names_the_extra(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'posttrain[board]'" in cli("serve", tiny_model).refused()
