"""Another process's memory, read straight into ours: process_vm_readv(2). ctypes lets go of the GIL meanwhile.

The kernel decides who may read whom: the same user, in the same PID namespace, and where Yama guards ptrace, only whom
the other one has let. So whether it works is found out by trying.
"""

import ctypes
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

Runs = list[tuple[int, int]]  # (address, number of bytes), one after the other
_MAX_RUNS = 1024  # of one call: IOV_MAX
_PIECE_BYTES = 2**20  # of one call: a copy can be stopped in between, and is in cache when it is digested
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_PR_SET_PTRACER = 0x59616D61
_libc = ctypes.CDLL(None, use_errno=True)


def why_unavailable() -> str:
    """Empty where this system can do it at all, else the reason."""
    has_all = hasattr(_libc, "process_vm_readv") and hasattr(os, "pidfd_open")
    return "" if has_all else "this system has no process_vm_readv"


def allow_siblings() -> None:
    """Let the processes of this node's fleet read it, where Yama lets only a parent: descendants of its own parent."""
    if _YAMA.exists() and _YAMA.read_text().strip() == "1":
        _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(os.getppid()), 0, 0, 0)


def runs_of(views: Sequence[memoryview]) -> Runs:
    """Where views lie in this process."""
    return [(np.frombuffer(view, np.uint8).__array_interface__["data"][0], view.nbytes) for view in views]


def read(pid: int, source: Runs, target: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Copy the other process's `source` into `target`, piece by piece; yields the parts of `target` just filled.

    Both have the same length. Raises OSError where the kernel refuses, or the memory or process is not there.
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
    """The first piece of it."""
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
