"""What this machine is and what it is good at: device, compute type, memory, matrix-product peak."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import time
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from posttrain.errors import ConfigError

MATMUL_SIZES = (1024, 2048, 4096, 8192)
"""Sides of the matrices whose product is timed on an accelerator, as long as a larger one is faster."""
WORTH_DOUBLING = 1.05
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
# oneDNN keeps a program for every shape that it ever multiplied, 1,024 of them by default, and every number of live sequences or packed tokens is
# a shape of its own: 0.35 GB in the end. The shapes at work are some dozens. Read once, at the first product of the process.
_STATUS = Path("/proc/self/status")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def resolve_device(name: str) -> torch.device:
    """``auto`` = cuda, else mps, else cpu; anything else is a torch device name that must exist here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {name!r} can't be used here: {str(error).splitlines()[0]}", fix="device: auto"
        ) from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``bf16`` or ``fp32`` as named; ``auto`` = bf16 where a bf16 matrix product is at least 1.3x as fast as fp32."""
    if name != "auto":
        return DTYPES[name]
    return (
        torch.bfloat16
        if matmul_flops(torch.bfloat16, device) > 1.3 * matmul_flops(torch.float32, device)
        else torch.float32
    )


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor: the same memory on a CPU; elsewhere copied from pinned memory, and nothing waits for the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return (tensor if device.type == "mps" else tensor.pin_memory()).to(device, non_blocking=True)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all it was given: a clock is read before and after."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@cache
def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Measured peak of a matrix product in FLOP/s: [1024 x 1024] by the same on a CPU, elsewhere the size that fills the device."""
    sizes = (1024,) if device.type == "cpu" else MATMUL_SIZES
    best = 0.0
    for size in sizes:
        found = _matmul_flops(size, dtype, device)
        if found < WORTH_DOUBLING * best:
            return max(found, best)
        best = found
    return best


def _matmul_flops(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """The best of a tenth of a second."""
    a = torch.randn(size, size, device=device).to(dtype)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < 0.1 or best == float("inf"):
        begin = time.perf_counter()
        a @ a
        wait_for(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """The compute type as a record names it, with what torch makes of fp32 products on CUDA: that is torch's setting, never ours."""
    name = str(dtype).removeprefix("torch.")
    rounds = dtype == torch.float32 and device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return f"{name} (products in TF32)" if rounds else name


def thread_speeds(most: int) -> dict[int, float]:
    """Seconds that a small stack of layers takes with 1, 2, 4, ... and ``most`` threads: the median of 3, a fraction of a second in all.

    On an idle machine more threads are faster. Beside another busy process they wait for each other at the end of every operation, and
    two may be an eighth as fast as one (docs/log.md).
    """
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(256, 512, generator=generator)
    up_DF, down_FD = (torch.randn(shape, generator=generator) / 32 for shape in ((512, 1024), (1024, 512)))
    before, found = torch.get_num_threads(), {}
    for threads in sorted({min(1 << power, most) for power in range(most.bit_length())} | {most}):
        torch.set_num_threads(threads)
        times = []
        for _ in range(4):  # the first one starts the threads
            begin, y_TD = time.perf_counter(), x_TD
            for _ in range(4):
                y_TD = F.rms_norm(y_TD + F.silu(y_TD @ up_DF) @ down_FD, (512,))
            times.append(time.perf_counter() - begin)
        found[threads] = median(times[1:])
    torch.set_num_threads(before)
    return found


def peak_memory(device: torch.device) -> int:
    """Highest memory in bytes since `reset_peak_memory`: allocated on a CUDA device, otherwise resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        line = next(text for text in _STATUS.read_text().splitlines() if text.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes and can't be reset


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak, so that a stage does not report the memory of the stage before it. Linux and CUDA only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def current_memory(device: torch.device) -> int:
    """Memory in use now in bytes (see peak_memory)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had: of a CUDA device, otherwise of the computer without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def return_freed_memory() -> None:
    """Give the freed blocks that `keep_freed_memory` holds back to the kernel (glibc's malloc_trim)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Tell glibc to reuse large freed blocks instead of returning them to the kernel.

    A training step allocates and frees the same large tensors again and again. With the default thresholds each of
    them is mapped and unmapped, and every page of it faults in anew (docs/log.md). No effect outside glibc.
    ``POSTTRAIN_KEEP_FREED_MEMORY=0`` switches it off.
    """
    if not sys.platform.startswith("linux") or os.environ.get("POSTTRAIN_KEEP_FREED_MEMORY") == "0":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return
    # Older versions of glibc take at most 32 MB; trimming is only switched off where large blocks stay in the heap.
    if mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25):
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
