"""Reads another process's memory with process_vm_readv(2). ctypes releases the GIL during the call.

The kernel decides who may read whom: the user and the PID namespace must be the same and, where Yama restricts ptrace,
the process that is read must have allowed it. Whether it works can only be found out by trying.
"""

import ctypes
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

Runs = list[tuple[int, int]]  # (address, number of bytes) each
_MAX_RUNS = 1024  # per call: IOV_MAX
_PIECE_BYTES = 2**20  # per call: a copy can be stopped between pieces, and a piece is in cache when it is digested
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_PR_SET_PTRACER = 0x59616D61
_libc = ctypes.CDLL(None, use_errno=True)


def why_unavailable() -> str:
    """Return the reason if this system cannot do it at all, else ""."""
    has_all = hasattr(_libc, "process_vm_readv") and hasattr(os, "pidfd_open")
    return "" if has_all else "this system has no process_vm_readv"


def allow_siblings() -> None:
    """Under Yama's restricted ptrace, let all descendants of this process's parent read it: its fleet on this host."""
    if _YAMA.exists() and _YAMA.read_text().strip() == "1":
        _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(os.getppid()), 0, 0, 0)


def runs_of(views: Sequence[memoryview]) -> Runs:
    """Return the addresses of the views in this process."""
    return [(np.frombuffer(view, np.uint8).__array_interface__["data"][0], view.nbytes) for view in views]


def read(pid: int, source: Runs, target: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Copy the other process's `source` into `target`, piece by piece; yield the parts of `target` just filled.

    Both have the same length in bytes. Raises OSError if the kernel refuses, or the memory or process does not exist.
    """
    left, room, parts = deque(source), deque(runs_of(target)), deque(target)
    while room:
        num_bytes = _read_some(pid, _head(left), _head(room))
        _advance(left, num_bytes)
        _advance(room, num_bytes)
        yield _take(parts, num_bytes)


def _read_some(pid: int, source: Runs, target: Runs) -> int:
    local, remote = _iovecs(target), _iovecs(source)
    args = (ctypes.byref(local), ctypes.c_ulong(len(target)), ctypes.byref(remote), ctypes.c_ulong(len(source)))
    num_bytes: int = _read_memory(ctypes.c_int(pid), *args, ctypes.c_ulong(0))
    if num_bytes <= 0:
        number = ctypes.get_errno()
        raise OSError(number, f"process_vm_readv: {os.strerror(number)}")
    return num_bytes


def _iovecs(runs: Runs) -> ctypes.Array[ctypes.c_uint64]:
    flat = list(itertools.chain.from_iterable(runs))
    return (ctypes.c_uint64 * len(flat))(*flat)


def _head(runs: deque[tuple[int, int]]) -> Runs:
    """Return the first piece: up to _PIECE_BYTES, in up to _MAX_RUNS runs."""
    head: Runs = []
    left = _PIECE_BYTES
    for address, num_bytes in itertools.islice(runs, _MAX_RUNS):
        head.append((address, min(num_bytes, left)))
        left -= head[-1][1]
        if left == 0:
            break
    return head


def _advance(runs: deque[tuple[int, int]], num_bytes: int) -> None:
    while num_bytes:
        address, length = runs.popleft()
        if length > num_bytes:
            runs.appendleft((address + num_bytes, length - num_bytes))
            return
        num_bytes -= length


def _take(parts: deque[memoryview], num_bytes: int) -> list[memoryview]:
    taken: list[memoryview] = []
    while num_bytes:
        part = parts.popleft()
        if part.nbytes > num_bytes:
            parts.appendleft(part[num_bytes:])
            part = part[:num_bytes]
        taken.append(part)
        num_bytes -= part.nbytes
    return taken


if not why_unavailable():
    _read_memory = _libc.process_vm_readv
    _read_memory.restype = ctypes.c_ssize_t
