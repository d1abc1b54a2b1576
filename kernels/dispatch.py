"""The choice of a kernel backend, made once when a node starts."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.api import Kernels, SamplingKernels
from kernels.reference.ends import masked


def load(device: torch.device, dtype: torch.dtype, deterministic: bool | None = None) -> Kernels:
    """Return the fastest backend for `device` and `dtype`. On a CPU this compiles the C++ if needed (seconds, once).

    `deterministic` asks that a row's bits not depend on the rest of the batch. On a CPU that costs nothing and is the
    default; on a GPU only True enables it. The fallback to plain torch cannot promise it.
    """
    if device.type == "cuda":
        from kernels.triton import TritonKernels

        return TritonKernels(deterministic=deterministic is True)
    if device.type == "cpu":
        from kernels.cpu.kernels import CPUKernels, Unavailable

        try:
            return CPUKernels(dtype, deterministic=deterministic is not False)
        except Unavailable as error:
            warnings.warn(f"compiled CPU kernels unavailable, using plain torch: {error}", stacklevel=2)
    from kernels.reference import ReferenceKernels

    return ReferenceKernels()


def sampling_kernels(device: torch.device) -> SamplingKernels:
    """Return what the device has."""
    if device.type == "cuda":
        from kernels.triton.sampling import draw

        return SamplingKernels(masked, draw)
    from kernels.cpu.kernels import Unavailable, fastest, library
    from kernels.cpu.sampling import kernels

    try:
        return kernels(library(fastest()))
    except Unavailable:  # `load` has warned of it
        return SamplingKernels(masked)


def log_total(logits: Tensor) -> Tensor:
    """Log-sum-exp of each row of [S, V] fp32; returns [S] fp32.

    On a GPU a row's bits do not depend on the number of rows, as they would with torch's own reduction.
    """
    if logits.device.type != "cuda":
        return logits.logsumexp(-1)
    from kernels.triton.sampling import log_total as by_row

    return by_row(logits)


BlockCopy = Callable[[Tensor, Tensor, Tensor], None]


def block_copies(device: torch.device) -> tuple[BlockCopy, BlockCopy]:
    """Return (pack, unpack), which gather KV blocks into one buffer and scatter them: `kernels.reference.blocks`."""
    if device.type == "cuda":
        from kernels.triton import blocks as backend
    else:
        from kernels.reference import blocks as backend  # type: ignore[no-redef]
    return backend.pack_blocks, backend.unpack_blocks


def block_fetches() -> tuple[Callable[[int, Tensor, Tensor], None], Callable[[Tensor, Tensor], None]]:
    """Return (fetch, digest), which copy KV blocks between pools on a GPU and digest them: `kernels.triton.blocks`."""
    from kernels.triton import blocks as backend

    return backend.fetch_blocks, backend.digest_blocks
