"""Machines by name: their memory, and how fast they multiply. Also the machine at hand, without torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from posttrain.errors import ConfigError
from posttrain.table import did_you_mean

MIB = 2**20
BF16_GAIN = 3.0
"""How much faster than fp32 a CPU multiplies bf16 where it has instructions for it: 500 to 770 against 190 GFLOP/s, measured."""
CPU_SHARE = 0.8
"""Of the free memory of a computer: the rest is for the system and other programs."""


@dataclass(frozen=True, slots=True)
class Device:
    """A machine to train on."""

    name: str
    kind: Literal["cpu", "cuda"]
    memory: float
    """Bytes that a process can have."""
    flops: float | None = None
    """Dense products a second in the type it computes in, as published or measured; None: not known."""
    measured: bool = False
    multiplies_bf16: bool = True


def _gpu(name: str, mebibytes: int, teraflops: float, *, bf16: bool = True) -> Device:
    """A GPU by the memory that its driver reports and its dense bf16 rate with fp32 sums (fp16 where it has no bf16)."""
    return Device(name, "cuda", mebibytes * MIB, teraflops * 1e12, multiplies_bf16=bf16)


DEVICES: Mapping[str, Device] = {
    one.name: one
    for one in (
        _gpu("t4", 15_360, 65, bf16=False),
        _gpu("v100", 32_768, 125, bf16=False),
        _gpu("rtx3060", 12_288, 25.6),
        _gpu("rtx3090", 24_576, 71),
        _gpu("rtx4060ti", 16_380, 44),
        _gpu("rtx4070", 12_282, 58),
        _gpu("rtx4080", 16_376, 97.5),
        _gpu("rtx4090", 24_564, 165),
        _gpu("rtx5080", 16_303, 112),
        _gpu("rtx5090", 32_607, 209),
        _gpu("a6000", 49_140, 155),
        _gpu("l4", 23_034, 121),
        _gpu("l40s", 46_068, 362),
        _gpu("a10g", 23_028, 70),
        _gpu("a100-40gb", 40_960, 312),
        _gpu("a100", 81_920, 312),
        _gpu("h100", 81_559, 989),
        _gpu("h200", 143_771, 989),
        _gpu("b200", 183_359, 2_250),
        _gpu("mi300x", 196_592, 1_307),
    )
}
"""Name -> device; memory as the driver reports it, products as the maker's data sheet says (dense, without sparsity)."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(gb|gib|g)", re.IGNORECASE)


def device_of(name: str) -> Device:
    """The device of a name: one of `DEVICES`, a size of GPU memory (``24GB``), ``cpu`` or ``auto`` (this machine).

    Raises ConfigError, with the nearest name, for anything else.
    """
    plain = re.sub(r"^nvidia-?|[\s_]", "", name.lower().strip())
    if plain in ("auto", "cpu"):
        return (None if plain == "cpu" else _installed_gpu()) or this_cpu()
    if found := DEVICES.get(plain) or DEVICES.get(plain.replace("-", "")):
        return found
    if (size := _SIZE.fullmatch(plain)) and float(size[1]) > 0:
        unit = 2**30 if size[2].lower() == "gib" else 1e9
        return Device(f"a GPU with {name}", "cuda", float(size[1]) * unit)
    raise ConfigError(
        f"unknown device {name!r}{did_you_mean(plain, [*DEVICES, 'cpu', 'auto'])}",
        where="--device",
        fix=f"give a size of memory (24GB), cpu, auto, or one of {', '.join(DEVICES)}",
    )


def this_cpu() -> Device:
    """This computer: a share of its free memory, and a measured rate of fp32 products, higher where it multiplies bf16."""
    information = Path("/proc/cpuinfo")
    flags = information.read_text(encoding="utf-8", errors="replace") if information.is_file() else ""
    bf16 = re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) is not None
    rate = _numpy_flops() * (BF16_GAIN if bf16 else 1.0)
    return Device("this CPU", "cpu", CPU_SHARE * psutil.virtual_memory().available, rate, True, bf16)


def _numpy_flops(size: int = 768, seconds: float = 0.1) -> float:
    """Best rate of an fp32 product [size x size] @ [size x size] within some time."""
    a = np.ones((size, size), np.float32)
    best, start = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def _installed_gpu() -> Device | None:
    """The first GPU that its driver's own tool reports; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        title, mebibytes = done.stdout.splitlines()[0].rsplit(",", 1)
        memory = int(mebibytes) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    plain = re.sub(r"[^a-z0-9]", "", title.lower())
    known = [one for name, one in DEVICES.items() if name.replace("-", "") in plain]
    nearest = min(known, key=lambda one: abs(one.memory - memory), default=None)
    if nearest is None:
        return Device(title.strip(), "cuda", memory)
    return Device(title.strip(), "cuda", memory, nearest.flops, multiplies_bf16=nearest.multiplies_bf16)
