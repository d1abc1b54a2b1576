"""Huge pages, where the system has them, for the memory that every step reads: packed weights and the KV pool.

With pages of 4 KiB, address translation (TLB misses) would cost a decode step about as much as the reads themselves.
"""

import contextlib
import ctypes
import mmap

import torch
from torch import Tensor

_PIECE_BYTES = 64 << 20  # of address space; physical memory is allocated page by page, on first write
_ALIGNMENT = 64
_MADV_POPULATE_WRITE = 23  # madvise(2), since Linux 5.14


def huge_pages(num_bytes: int) -> Tensor:
    """Return [num_bytes] zeros, uint8; physical memory is allocated as they are written to."""
    if not num_bytes or not hasattr(mmap, "MADV_HUGEPAGE"):  # Linux only
        return torch.zeros(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a Linux kernel built without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def populate(memory: Tensor) -> None:
    """Allocate the physical memory behind `memory` now, where the system can; its contents do not change.

    On a virtual machine whose host has yet to allocate the pages, this takes milliseconds per MiB.
    """
    if hasattr(mmap, "MADV_HUGEPAGE") and len(memory):
        begin, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
        begin -= begin % mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_POPULATE_WRITE)


class Arena:
    """Allocates from large pieces of huge pages, as most weights are smaller than a page.

    A piece is freed with the last tensor allocated from it.
    """

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> Tensor:
        """Return [num_bytes] uint8, aligned to a cache line."""
        rounded = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        if rounded > len(self._rest):
            self._rest = huge_pages(max(rounded, _PIECE_BYTES))
        taken, self._rest = self._rest[:num_bytes], self._rest[rounded:]
        return taken
