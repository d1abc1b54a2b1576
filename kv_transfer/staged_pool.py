"""A KV pool on a device, staged through pinned host memory. Only the transports of IN_PLACE go without staging.

Sending: a message's blocks are packed into one contiguous run on the device and copied to the host, on a separate
stream; the message is digested and sent from there. All senders share MAX_LENT_BYTES of staging memory. When it is used
up, a message waits in its transfer, so a slow peer costs the others nothing but staging memory.

Receiving: a message lands in staging memory. It is digested there while it is copied to the device and scattered to its
blocks. The landing settles when both are done, the copy as seen by the host, so device work launched after that reads
the blocks as they were sent. The senders' outboxes bound the bytes in flight, MAX_LANDING_BYTES is a hard limit.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from kv_transfer.device_blocks import DeviceBlocks
from kv_transfer.digest import Digester, known
from kv_transfer.pool import check_buffer, places_of

MAX_LENT_BYTES = 64 * 2**20
MAX_LANDING_BYTES = 2**30

_log = logging.getLogger(__name__)


class StagedPool:
    """See `kv_transfer.pool.Pool`. The device may also be the CPU, which is then staged like any other device."""

    def __init__(
        self, buffer: Tensor, layout: KVLayout, num_blocks: int,
        max_lent_bytes: int = MAX_LENT_BYTES, max_landing_bytes: int = MAX_LANDING_BYTES,
    ) -> None:  # fmt: skip
        """`buffer`: flat uint8 on any device, `layout.pool_bytes(num_blocks)` long."""
        check_buffer(buffer, layout, num_blocks)
        self.layout = layout
        self.num_blocks = num_blocks
        self.blocks = DeviceBlocks(buffer, layout, num_blocks)
        self.gpu_blocks = self.blocks if buffer.device.type == "cuda" else None
        self._max_lent_bytes, self._max_landing_bytes = max_lent_bytes, max_landing_bytes
        self._lent_bytes = self._landing_bytes = 0
        self._waiting: list[Callable[[], None]] = []

    def lend(self, layer_groups: range, block_ids: Sequence[int]) -> "_StagedLoan | None":
        """See `Pool`. A message larger than the whole limit is lent when nothing else is."""
        places = places_of(self, layer_groups, block_ids)
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
        places = places_of(self, layer_groups, block_ids)
        num_bytes = len(places) * self.layout.block_group_bytes
        if self._landing_bytes + num_bytes > self._max_landing_bytes:
            _log.warning("%d bytes of KV are being received: no staging memory for more", self._landing_bytes)
            return None
        try:
            staging = self.blocks.staging(len(places))
        except TransferError as error:
            _log.warning("%s", error.message)
            return None
        self._landing_bytes += num_bytes
        return _StagedLanding(self, places, staging)

    def close(self) -> None:
        """End the threads once they have finished the copies in hand."""
        self.blocks.close()

    def loan_ended(self, num_bytes: int) -> None:
        """Called by a loan when it ends: its staging memory is free again."""
        self._lent_bytes -= num_bytes
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def landing_ended(self, num_bytes: int) -> None:
        """Called by a landing when it ends: its staging memory is free again."""
        self._landing_bytes -= num_bytes


class _StagedLoan:
    def __init__(self, pool: StagedPool, places: list[int], num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._pool, self._places = pool, places

    async def views(self) -> list[memoryview]:
        return [await self._pool.blocks.read(self._places)]

    def end(self) -> None:
        self._pool.loan_ended(self.num_bytes)


class _StagedLanding:
    def __init__(self, pool: StagedPool, places: list[int], staging: Tensor) -> None:
        self.views = [staging.view(-1).numpy().data]
        self._pool, self._places, self._staging = pool, places, staging

    def settle(self, digester: Digester, digest: int | None) -> "asyncio.Future[int]":
        digesting = digester.start(self.views) if digest is None else known(digest)
        return asyncio.ensure_future(self._settle(digesting))

    def drop(self) -> None:
        self._pool.landing_ended(self.views[0].nbytes)

    async def _settle(self, digesting: "asyncio.Future[int]") -> int:
        copying = asyncio.ensure_future(self._pool.blocks.write(self._places, self._staging))
        both: list[asyncio.Future[Any]] = [copying, digesting]
        await asyncio.wait(both)
        self.drop()  # neither of them reads the staging memory any more
        await copying
        return await digesting
