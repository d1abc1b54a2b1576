"""Memory that a node shares with its UCX process: messages are copied through it, so UCX never touches the KV pool.

The allocator takes the lowest free area that fits, so that little more of the region is ever touched, and so backed by
memory, than was in use at once. Requests that have to wait are served in order.
"""

import asyncio
import fcntl
import os
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from baton.errors import TransferError
from baton.process.threads import started_pool
from kv_transfer.digest import known
from kv_transfer.ucx_child.region import mapped

REGION_BYTES = 256 * 2**20
_PAGE_BYTES = 4096
_INLINE_BYTES = 2**20  # up to this size a thread costs more than it saves, as in `kv_transfer.digest`
_PIECE_BYTES = 512 * 1024
_NUM_THREADS = 2

_Bytes = npt.NDArray[np.uint8]


class Area(NamedTuple):
    """A part of the region, as an offset and a length in bytes."""

    start: int
    num_bytes: int


class Staging:
    """One region, for the life of one UCX process. All but the copying runs in the event loop."""

    def __init__(self, num_bytes: int = REGION_BYTES) -> None:
        self.num_bytes = num_bytes
        self.descriptor = os.memfd_create("baton-kv-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, num_bytes)
            # neither process can shrink the region under the other one
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._bytes = mapped(self.descriptor, num_bytes)
            self._threads = started_pool(_NUM_THREADS, "kv-staging")
        except OSError:
            os.close(self.descriptor)
            raise
        self._free = [Area(0, num_bytes)]  # in order, adjacent ones merged
        self._waiting: deque[tuple[int, asyncio.Future[Area]]] = deque()

    def take(self, num_bytes: int) -> asyncio.Future[Area]:
        """Allocate an area, once there is room. Cancelling the future gives the request up.

        The future raises TransferError for more bytes than the region has, and after `close`.
        """
        future: asyncio.Future[Area] = asyncio.get_running_loop().create_future()
        if self.descriptor < 0 or num_bytes > self.num_bytes:
            reason = "is closed" if self.descriptor < 0 else f"holds no message of {num_bytes} bytes"
            future.set_exception(TransferError(f"the staging memory {reason}"))
        else:
            self._waiting.append((num_bytes, future))
            self._serve()
        return future

    def give_back(self, area: Area) -> None:
        """Free an area, which nobody reads or writes any more."""
        start, end = area.start, area.start + _rounded(area.num_bytes)
        first = last = bisect(self._free, area)
        if first and sum(self._free[first - 1]) == start:
            first -= 1
            start = self._free[first].start
        if last < len(self._free) and self._free[last].start == end:
            end = sum(self._free[last])
            last += 1
        self._free[first:last] = [Area(start, end - start)]
        self._serve()

    def fill(self, area: Area, views: Sequence[memoryview]) -> asyncio.Future[int]:
        """Copy the views, one after the other, into the area; return the digest. TransferError after `close`."""
        return self._run(area.num_bytes, _gather, self._view(area), views)

    def empty(self, area: Area, views: Sequence[memoryview]) -> asyncio.Future[int]:
        """Copy the area into the views, one after the other; return the digest. TransferError after `close`."""
        return self._run(area.num_bytes, _spread, self._view(area), views)

    def close(self) -> None:
        """Allocate no more. Idempotent. Copies in progress complete; the last of them frees the region."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._threads.shutdown(wait=False)
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(TransferError("the staging memory is closed"))

    def _serve(self) -> None:
        while self._waiting:
            num_bytes, future = self._waiting[0]
            if not future.done():
                area = self._cut(num_bytes)
                if area is None:
                    return
                future.set_result(area)
            self._waiting.popleft()

    def _cut(self, num_bytes: int) -> Area | None:
        needed = _rounded(num_bytes)
        for index, (start, available) in enumerate(self._free):
            if available >= needed:
                rest = Area(start + needed, available - needed)
                self._free[index : index + 1] = [rest] if rest.num_bytes else []
                return Area(start, num_bytes)
        return None

    def _view(self, area: Area) -> memoryview:
        return self._bytes[area.start : area.start + area.num_bytes]

    def _run(
        self, num_bytes: int, copy: Callable[[memoryview, Sequence[memoryview]], int],
        run: memoryview, views: Sequence[memoryview],
    ) -> asyncio.Future[int]:  # fmt: skip
        if self.descriptor < 0:  # possible: UCX's last report and its end may arrive in the same turn of the loop
            raise TransferError("the staging memory is closed")
        if num_bytes > _INLINE_BYTES:
            return asyncio.get_running_loop().run_in_executor(self._threads, copy, run, views)
        return known(copy(run, views))


def _gather(target: memoryview, views: Sequence[memoryview]) -> int:
    return _digest((part, piece) for piece, part in _pieces(target, views))


def _spread(source: memoryview, views: Sequence[memoryview]) -> int:
    return _digest(_pieces(source, views))


def _pieces(run: memoryview, views: Sequence[memoryview]) -> Iterator[tuple[_Bytes, _Bytes]]:
    """Split the views into cache-sized pieces; yield each with the part of `run` that corresponds to it."""
    rest = np.frombuffer(run, np.uint8)
    for view in views:
        left = np.frombuffer(view, np.uint8)
        while left.size:
            piece, left = left[:_PIECE_BYTES], left[_PIECE_BYTES:]
            yield piece, rest[: piece.size]
            rest = rest[piece.size :]


def _digest(copies: Iterator[tuple[_Bytes, _Bytes]]) -> int:
    """Copy each piece (target, source), and digest it while it is in the processor's cache.

    Both numpy and xxhash release the GIL while they work.
    """
    state = xxhash.xxh3_64()
    for target, source in copies:
        np.copyto(target, source)
        state.update(target.data)
    return state.intdigest()


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
