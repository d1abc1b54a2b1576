"""The kernels for GPUs, in Triton. Without a GPU they run in Triton's interpreter (`TRITON_INTERPRET=1`), slowly."""

import os

# Triton warns where this is unset, since a later version will compile without fused multiply-add.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from kernels.triton.kernels import TritonKernels

__all__ = ["TritonKernels"]
