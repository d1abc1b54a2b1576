"""A KV pool on a device, staged through pinned host memory: what travels is always host bytes.

Out: a message's blocks are packed into one run on the device and copied to the host, on a stream of their own; the
message is digested and sent from there. Senders share MAX_LENT_BYTES of staging memory; where it is used up, a message
waits in its transfer, so a peer that is slow costs the others nothing but room.

In: a message lands in staging memory; it is digested there, and meanwhile copied to the device, and to its blocks. A
landing has settled when both are over, the copy as seen by the host: whoever launches work on the device after that
finds the blocks as they were sent. What may be on its way in is bounded by the senders' outboxes, and by
MAX_LANDING_BYTES at last.

Blocks are read only when the host knows that they are computed (`OutgoingTransfer.ready`), and written only while a
grant holds them: so no stream has to wait for another.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from baton.process.threads import started_pool
from kernels.dispatch import block_copies
from kv_transfer.digest import Digester, known
from kv_transfer.plan import runs
from kv_transfer.pool import check_buffer

MAX_LENT_BYTES = 64 * 2**20
MAX_LANDING_BYTES = 2**30
_NUM_COPIERS = 2  # one launches while the other waits for its copy

_log = logging.getLogger(__name__)


class StagedPool:
    """See `kv_transfer.pool.Pool`. The device may also be a CPU, whose memory is then treated like another's."""

    def __init__(
        self, buffer: Tensor, layout: KVLayout, num_blocks: int,
        max_lent_bytes: int = MAX_LENT_BYTES, max_landing_bytes: int = MAX_LANDING_BYTES,
    ) -> None:  # fmt: skip
        """`buffer`: flat uint8 on any device, `layout.pool_bytes(num_blocks)` long."""
        check_buffer(buffer, layout, num_blocks)
        self.layout = layout
        self.num_blocks = num_blocks
        self._device = buffer.device
        self._blocks = buffer.view(layout.num_layer_groups * num_blocks, layout.block_group_bytes)
        self._pack, self._unpack = block_copies(buffer.device)
        self._max_lent_bytes, self._max_landing_bytes = max_lent_bytes, max_landing_bytes
        self._lent_bytes = self._landing_bytes = 0
        self._waiting: list[Callable[[], None]] = []
        self._copiers = started_pool(_NUM_COPIERS, "kv-copy")
        self._of_thread = threading.local()
        self._warm_up()

    def lend(self, layer_groups: range, block_ids: Sequence[int]) -> "_StagedLoan | None":
        """See `Pool`. A message larger than all of the staging memory is lent alone."""
        places = self._places(layer_groups, block_ids)
        num_bytes = len(places) * self.layout.block_group_bytes
        if self._lent_bytes and self._lent_bytes + num_bytes > self._max_lent_bytes:
            return None
        self._lent_bytes += num_bytes
        return _StagedLoan(self, places, num_bytes)

    def when_room(self, callback: Callable[[], None]) -> None:
        """See `Pool`."""
        self._waiting.append(callback)

    def land(self, layer_groups: range, block_ids: Sequence[int]) -> "_StagedLanding | None":
        """See `Pool`."""
        places = self._places(layer_groups, block_ids)
        num_bytes = len(places) * self.layout.block_group_bytes
        if self._landing_bytes + num_bytes > self._max_landing_bytes:
            _log.warning("%d bytes of KV are landing: no room for more", self._landing_bytes)
            return None
        try:
            staging = self._staging(len(places))
        except TransferError as error:
            _log.warning("%s", error.message)
            return None
        self._landing_bytes += num_bytes
        return _StagedLanding(self, places, staging)

    def close(self) -> None:
        """Ends the threads after what they have begun."""
        self._copiers.shutdown(wait=True, cancel_futures=True)

    async def read(self, places: list[int]) -> memoryview:
        """For a loan: the blocks' bytes in staging memory."""
        staging = self._staging(len(places))
        await self._run(self._copy_out, places, staging)
        return staging.view(-1).numpy().data

    async def write(self, places: list[int], staging: Tensor) -> None:
        """For a landing: copy it to its blocks."""
        await self._run(self._copy_in, places, staging)

    def lent(self, num_bytes: int) -> None:
        """For a loan: its end."""
        self._lent_bytes -= num_bytes
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def landed(self, num_bytes: int) -> None:
        """For a landing: its end."""
        self._landing_bytes -= num_bytes

    def _places(self, layer_groups: range, block_ids: Sequence[int]) -> list[int]:
        """Of a message's blocks in the pool. Raises IndexError outside of it."""
        if not all(0 <= block_id < self.num_blocks for block_id in block_ids) or not all(
            0 <= group < self.layout.num_layer_groups for group in layer_groups
        ):
            raise IndexError(f"no blocks {block_ids} of layer groups {layer_groups}")
        return [group * self.num_blocks + block_id for group in layer_groups for block_id in block_ids]

    def _staging(self, num_blocks: int) -> Tensor:
        """Pinned where there is a GPU: torch keeps such memory, and hands it out again. TransferError where none is."""
        shape = num_blocks, self.layout.block_group_bytes
        try:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        except RuntimeError as error:
            raise TransferError(f"no staging memory for {num_blocks} KV blocks: {error}") from error

    def _warm_up(self) -> None:
        """What is compiled on first use is so before the first transfer. Changes nothing.

        What fills the buffer is over before: a copy engine does not wait for kernels of another stream.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self.num_blocks > 2:
            staging = self._staging(2)
            self._copy_out([0, 2], staging)
            self._copy_in([0, 2], staging)

    async def _run(self, copy: Callable[..., None], *args: object) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._copiers, copy, *args)
        except RuntimeError as error:  # of the device, or there are no copiers any more
            raise TransferError(f"KV could not be copied between host and device: {error}") from error

    def _copy_out(self, places: list[int], staging: Tensor) -> None:
        """On a copier's thread; the bytes are there when it returns."""
        with self._on_stream():
            packed = self._run_of(places)
            if packed is None:
                packed = self._packed(staging)
                self._pack(self._blocks, self._on_device(places), packed)
            staging.copy_(packed, non_blocking=True)

    def _copy_in(self, places: list[int], staging: Tensor) -> None:
        """On a copier's thread; the bytes are there when it returns."""
        with self._on_stream():
            target = self._run_of(places)
            packed = self._packed(staging) if target is None else target
            packed.copy_(staging, non_blocking=True)
            if target is None:
                self._unpack(packed, self._blocks, self._on_device(places))

    def _run_of(self, places: list[int]) -> Tensor | None:
        """Those blocks where they lie, if they are neighbours."""
        found = runs(places)
        return self._blocks[found[0][0] : sum(found[0])] if len(found) == 1 else None

    def _packed(self, staging: Tensor) -> Tensor:
        return torch.empty_like(staging, device=self._device)

    def _on_device(self, places: list[int]) -> Tensor:
        ids = torch.tensor(places, dtype=torch.int64)
        return ids.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else ids

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """What is launched within is over when it is left. On a CPU nothing is launched."""
        if self._device.type != "cuda":
            yield
            return
        stream = getattr(self._of_thread, "stream", None)
        if stream is None:
            stream = self._of_thread.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        done.synchronize()


class _StagedLoan:
    def __init__(self, pool: StagedPool, places: list[int], num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._pool, self._places = pool, places

    async def views(self) -> list[memoryview]:
        return [await self._pool.read(self._places)]

    def end(self) -> None:
        self._pool.lent(self.num_bytes)


class _StagedLanding:
    def __init__(self, pool: StagedPool, places: list[int], staging: Tensor) -> None:
        self.views = [staging.view(-1).numpy().data]
        self._pool, self._places, self._staging = pool, places, staging

    def settle(self, digester: Digester, digest: int | None) -> "asyncio.Future[int]":
        digesting = digester.start(self.views) if digest is None else known(digest)
        return asyncio.ensure_future(self._settle(digesting))

    def drop(self) -> None:
        self._pool.landed(self.views[0].nbytes)

    async def _settle(self, digesting: "asyncio.Future[int]") -> int:
        copying = asyncio.ensure_future(self._pool.write(self._places, self._staging))
        both: list[asyncio.Future[Any]] = [copying, digesting]
        await asyncio.wait(both)
        self.drop()  # neither reads it any more
        await copying
        return await digesting
