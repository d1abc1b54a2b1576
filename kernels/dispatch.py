"""The choice of a kernel backend, made once when a node starts."""

import warnings

import torch

from kernels.api import Kernels


def load(device: torch.device, dtype: torch.dtype) -> Kernels:
    """Fastest backend that `device` and `dtype` allow. On a CPU it compiles the C++ if need be (seconds, once)."""
    if device.type == "cuda":
        from kernels.triton import TritonKernels

        return TritonKernels()
    if device.type == "cpu":
        from kernels.cpu.kernels import CPUKernels, Unavailable

        try:
            return CPUKernels(dtype)
        except Unavailable as error:
            warnings.warn(f"compiled CPU kernels unavailable, using plain torch: {error}", stacklevel=2)
    from kernels.reference import ReferenceKernels

    return ReferenceKernels()
