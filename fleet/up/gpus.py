"""Which GPU a node of a local fleet computes on, and how much of its memory is KV pool where nodes share one.

A node by itself takes what is free; two that start at once on one GPU would both see all of it as free. What GPUs there
are is asked of the driver, for the supervisor loads no torch.
"""

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_QUERY = ("--query-gpu=index,memory.free", "--format=csv,noheader,nounits")
_TIMEOUT_S = 10.0
_SHARE = 0.85
_ACTIVATIONS_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Gpu:
    """As the driver numbers it."""

    index: str
    free_bytes: int


@functools.cache
def available() -> tuple[Gpu, ...]:
    """The GPUs that nodes will find; none where torch is built for CPUs alone."""
    program = shutil.which("nvidia-smi")
    if program is None or not _torch_has_cuda():
        return ()
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(listing: str, allowed: str | None) -> tuple[Gpu, ...]:
    """The GPUs in nvidia-smi's listing that CUDA_VISIBLE_DEVICES allows."""
    rows = (line.split(", ") for line in listing.strip().splitlines())
    gpus = {row[0]: Gpu(row[0], int(row[1]) * 2**20) for row in rows if len(row) == 2 and row[1].isdecimal()}
    if allowed is None:
        return tuple(gpus.values())
    return tuple(gpus[index] for index in allowed.split(",") if index in gpus)


def of_node(gpus: tuple[Gpu, ...], number: int) -> Gpu:
    """The GPU of the fleet's node of that number: one after the other."""
    return gpus[number % len(gpus)]


def kv_memory(gpu: Gpu, num_sharing: int, model: Path) -> str:
    """`--kv-memory` of each of several nodes on one GPU; auto for one alone."""
    if num_sharing < 2:
        return "auto"
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    part = int(_SHARE * gpu.free_bytes) // num_sharing - weights - _ACTIVATIONS_BYTES
    return f"{max(1, part // 2**20)}MiB"


def _torch_has_cuda() -> bool:
    try:
        return "+cpu" not in version("torch")
    except PackageNotFoundError:
        return False
