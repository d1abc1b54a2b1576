"""The specification: every kernel in plain torch, to read and to test the fast backends against."""

from kernels.reference.blocks import pack_blocks, unpack_blocks
from kernels.reference.kernels import ReferenceKernels

__all__ = ["ReferenceKernels", "pack_blocks", "unpack_blocks"]
