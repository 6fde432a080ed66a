"""Log-probabilities under the reference model: computed once, before training, and kept on disk.

The reference never changes, so no second model is in memory while the policy trains. The file is keyed by the identity of the
reference (model, adapter and compute type) and by the tokens of every sequence; stages that share a reference share the file.
What is loaded is verified: a checksum over the content, the identity, and some sequences computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from posttrain.artifacts import atomic_path
from posttrain.errors import CheckpointError
from posttrain.types import Tokens

Compute = Callable[[Sequence[Sequence[Tokens]]], list[NDArray[np.float32]]]
"""Groups of sequences -> log p [S] of every sequence, in order."""
TOLERANCE = {torch.float32: 1e-4}
"""Largest mean difference a token between two computations of the same log-probabilities; elsewhere `COARSE_TOLERANCE`.

Of many tokens: in bf16 one alone may be 0.3 nats apart, as the products round by what stands beside them.
"""
COARSE_TOLERANCE = 0.05
SAVE_SECONDS = 30.0
GROUPS_AT_ONCE = 16
"""Groups computed between two looks at the clock."""
VERIFIED_TOKENS = 128
"""Supervised tokens that are computed again when a file is read, of the shortest groups."""


class ReferenceLogps:
    """log p [S] of the supervised tokens of sequences, found by their tokens."""

    def __init__(self, logps: Mapping[str, NDArray[np.float32]]) -> None:
        self._logps = dict(logps)

    def __contains__(self, sequence: Tokens) -> bool:
        return sequence_key(sequence) in self._logps

    def __getitem__(self, sequence: Tokens) -> NDArray[np.float32]:
        return self._logps[sequence_key(sequence)]

    def of(self, sequences: Sequence[Tokens]) -> NDArray[np.float32]:
        """The values of several sequences, one after the other."""
        return np.concatenate([self[sequence] for sequence in sequences])


NO_REFERENCE = ReferenceLogps({})


def sequence_key(sequence: Tokens) -> str:
    """xxh3 of what the log-probabilities of a sequence depend on: its tokens, and which of them are supervised."""
    state = xxhash.xxh3_128(sequence.ids_T.astype(np.int32).tobytes())
    state.update((sequence.weights_T != 0).tobytes())
    return state.hexdigest()


def tolerance(dtype: torch.dtype) -> float:
    """How far two computations of the same log-probability may be apart, in nats a token on average."""
    return TOLERANCE.get(dtype, COARSE_TOLERANCE)


def reference_logps(
    path: Path,
    identity: str,
    groups: Sequence[Sequence[Tokens]],
    compute: Compute,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    keeps: bool = True,
) -> ReferenceLogps:
    """The reference's log-probabilities of all groups, from ``path`` where they are there, else computed and added to it.

    What is new is written every half minute, so a killed run loses that much. ``progress(done, total)`` counts groups. ``keeps``: False
    where another process writes it.
    Raises CheckpointError where the file is damaged, belongs to another model, or disagrees with what is computed.
    """
    known = _read(path, identity) if path.exists() else {}
    kept: list[Sequence[Tokens]] = []
    missing: list[Sequence[Tokens]] = []
    for group in groups:
        (kept if all(sequence_key(s) in known for s in group) else missing).append(group)
    _verify(path, _some(kept), known, compute, dtype)
    done, written = len(kept), time.monotonic()
    progress(done, len(groups))
    for begin in range(0, len(missing), GROUPS_AT_ONCE):
        part = missing[begin : begin + GROUPS_AT_ONCE]
        sequences = [s for group in part for s in group]
        known |= dict(zip(map(sequence_key, sequences), compute(part), strict=True))
        done += len(part)
        progress(done, len(groups))
        if keeps and time.monotonic() - written > SAVE_SECONDS:
            _write(path, identity, known)
            written = time.monotonic()
    if missing and keeps:
        _write(path, identity, known)
    return ReferenceLogps(known)


def _some(groups: Sequence[Sequence[Tokens]]) -> list[Sequence[Tokens]]:
    """The shortest groups that together have `VERIFIED_TOKENS`, or all."""
    found: list[Sequence[Tokens]] = []
    tokens = 0
    for group in sorted(groups, key=lambda group: sum(map(len, group))):
        if tokens >= VERIFIED_TOKENS:
            break
        found.append(group)
        tokens += sum(sequence.supervised for sequence in group)
    return found


def mean_difference(first: Sequence[NDArray[np.float32]], second: Sequence[NDArray[np.float32]]) -> float:
    """How far two computations of the log-probabilities of the same sequences are apart: nats a token, over all tokens of all."""
    return float(np.mean(np.concatenate(first) - np.concatenate(second), dtype=np.float64)) if first else 0.0


def _verify(
    path: Path,
    groups: Sequence[Sequence[Tokens]],
    known: Mapping[str, NDArray[np.float32]],
    compute: Compute,
    dtype: torch.dtype,
) -> None:
    sequences = [sequence for group in groups for sequence in group]
    apart = mean_difference(compute(groups) if groups else [], [known[sequence_key(one)] for one in sequences])
    if not abs(apart) <= tolerance(dtype):
        problem = f"are not those of this model ({apart:.2g} nats a token apart, on {len(sequences)} sequences)"
        raise _refused(path, f"the kept reference log-probabilities {problem}")


def _refused(path: Path, problem: str, fix: str = "remove this file; it is computed again") -> CheckpointError:
    return CheckpointError(problem, where=str(path), fix=fix)


def _write(path: Path, identity: str, logps: Mapping[str, NDArray[np.float32]]) -> None:
    keys = sorted(logps)
    tensors: dict[str, NDArray[Any]] = {
        "keys": np.frombuffer(b"".join(map(bytes.fromhex, keys)), np.uint8).reshape(len(keys), -1),
        "counts": np.array([len(logps[key]) for key in keys], np.int64),
        "logps": np.concatenate([logps[key] for key in keys]).astype(np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"reference": identity, "content": _content(tensors)})


def _read(path: Path, identity: str) -> dict[str, NDArray[np.float32]]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("keys", "counts", "logps")}
    except (SafetensorError, OSError) as error:
        problem = f"the kept reference log-probabilities are damaged ({error})"
        raise _refused(path, problem, fix="remove this file") from error
    if metadata.get("content") != _content(tensors):
        problem = "are damaged (their content does not match their checksum)"
        raise _refused(path, f"the kept reference log-probabilities {problem}")
    if metadata.get("reference") != identity:
        problem = "these reference log-probabilities are those of another model, adapter or compute type"
        raise _refused(path, problem)
    parts = np.split(tensors["logps"], np.cumsum(tensors["counts"])[:-1])
    return {row.tobytes().hex(): part for row, part in zip(tensors["keys"], parts, strict=True)}


def _content(tensors: Mapping[str, NDArray[Any]]) -> str:
    state = xxhash.xxh3_128()
    for name in sorted(tensors):
        state.update(np.ascontiguousarray(tensors[name]).tobytes())
    return state.hexdigest()
