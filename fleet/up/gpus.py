"""Assigns GPUs to the nodes of a local fleet, and divides the memory for KV pools where nodes share a GPU.

A node takes the free memory of its GPU, but two that start at once would both see all of it as free. The GPUs are read
from the driver, because the supervisor does not load torch.
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
    """A GPU, with the driver's index."""

    index: str
    free_bytes: int


@functools.cache
def available() -> tuple[Gpu, ...]:
    """Return the GPUs that nodes will see; none if torch is built for CPUs only."""
    program = shutil.which("nvidia-smi")
    if program is None or not _torch_has_cuda():
        return ()
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(listing: str, allowed: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs in nvidia-smi's listing that CUDA_VISIBLE_DEVICES allows."""
    rows = (line.split(", ") for line in listing.strip().splitlines())
    gpus = {row[0]: Gpu(row[0], int(row[1]) * 2**20) for row in rows if len(row) == 2 and row[1].isdecimal()}
    if allowed is None:
        return tuple(gpus.values())
    return tuple(gpus[index] for index in allowed.split(",") if index in gpus)


def of_node(gpus: tuple[Gpu, ...], number: int) -> Gpu:
    """Return the GPU of the fleet's node of that number; GPUs are assigned round robin."""
    return gpus[number % len(gpus)]


def kv_memory(gpu: Gpu, num_sharing: int, model: Path) -> str:
    """Return `--kv-memory` for each of several nodes on one GPU, or "auto" for a single one."""
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
