"""The kernels for GPUs, in Triton. Without a GPU they run in Triton's interpreter (`TRITON_INTERPRET=1`), slowly."""

from kernels.triton.kernels import TritonKernels

__all__ = ["TritonKernels"]
