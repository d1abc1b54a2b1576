"""Memory in huge pages, where the system has them, for what every step reads: packed weights and the KV pool.

With pages of 4 KiB, looking addresses up would cost a decode step about as much as reading does.
"""

import contextlib
import ctypes
import mmap

import torch
from torch import Tensor

_PIECE_BYTES = 64 << 20  # only what is written to becomes real memory
_ALIGNMENT = 64
_MADV_POPULATE_WRITE = 23  # madvise(2), since Linux 5.14


def huge_pages(num_bytes: int) -> Tensor:
    """[num_bytes] uint8, all zero, that becomes real memory as it is written to."""
    if not num_bytes or not hasattr(mmap, "MADV_HUGEPAGE"):  # Linux only
        return torch.zeros(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def populate(memory: Tensor) -> None:
    """Make memory real before it is written to, where the system can; contents stay as they are.

    On virtual machines whose host has yet to find the pages that takes milliseconds per MiB.
    """
    if hasattr(mmap, "MADV_HUGEPAGE") and len(memory):
        begin, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
        begin -= begin % mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_POPULATE_WRITE)


class Arena:
    """Hands out parts of huge pages: most weights are smaller than one. A piece is freed with its last tensor."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> Tensor:
        """[num_bytes] uint8, aligned to cache lines."""
        rounded = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        if rounded > len(self._rest):
            self._rest = huge_pages(max(rounded, _PIECE_BYTES))
        taken, self._rest = self._rest[:num_bytes], self._rest[rounded:]
        return taken
