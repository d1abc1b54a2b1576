"""The choice of a kernel backend, made once when a node starts."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.api import Kernels


def load(device: torch.device, dtype: torch.dtype, deterministic: bool | None = None) -> Kernels:
    """Fastest backend that `device` and `dtype` allow. On a CPU it compiles the C++ if need be (seconds, once).

    With `deterministic` a row has the same bits whatever the batch: on a CPU unless it is False, since there it costs
    nothing, on a GPU where it is True. Plain torch cannot promise it.
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


def unfiltered_draw(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The sampling kernel of that device, if it has one: `kernels.triton.sampling.draw`."""
    if device.type != "cuda":
        return None
    from kernels.triton.sampling import draw

    return draw


def log_total(logits: Tensor) -> Tensor:
    """[S] fp32: the logarithm of the sum of the exponentials of each row of [S, V] fp32.

    On a GPU a row's bits do not depend on the number of rows, as those of torch's sums do there.
    """
    if logits.device.type != "cuda":
        return logits.logsumexp(-1)
    from kernels.triton.sampling import log_total as by_row

    return by_row(logits)


BlockCopy = Callable[[Tensor, Tensor, Tensor], None]


def block_copies(device: torch.device) -> tuple[BlockCopy, BlockCopy]:
    """What gathers KV blocks into one run on that device, and scatters them: see `kernels.reference.blocks`."""
    if device.type == "cuda":
        from kernels.triton import blocks as backend
    else:
        from kernels.reference import blocks as backend  # type: ignore[no-redef]
    return backend.pack_blocks, backend.unpack_blocks


def block_fetches() -> tuple[Callable[[int, Tensor, Tensor], None], Callable[[Tensor, Tensor], None]]:
    """What fetches KV blocks from elsewhere on a GPU, and digests them there: see `kernels.triton.blocks`."""
    from kernels.triton import blocks as backend

    return backend.fetch_blocks, backend.digest_blocks
