"""A pool's blocks on a device, and the threads that copy them, on streams of their own.

Places are rows of the pool: layer group times number of blocks, plus block. Blocks are read only when the host knows
that they are computed, and written only while a grant holds them: so no stream has to wait for another.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from baton.process.threads import started_pool
from kernels.dispatch import block_copies, block_fetches
from kv_transfer.plan import runs

_NUM_COPIERS = 2  # one launches while the other waits for its copy

_T = TypeVar("_T")


class DeviceBlocks:
    """The device may also be a CPU, whose memory is then treated like another's; nothing is fetched there."""

    def __init__(self, buffer: Tensor, layout: KVLayout, num_blocks: int) -> None:
        """`buffer`: flat uint8 on any device, `layout.pool_bytes(num_blocks)` long."""
        self.device = buffer.device
        self.block_bytes = layout.block_group_bytes
        self.num_places = layout.num_layer_groups * num_blocks
        self._blocks = buffer.view(self.num_places, self.block_bytes)
        self._pack, self._unpack = block_copies(buffer.device)
        if buffer.device.type == "cuda":
            self._fetch, self._digest_of = block_fetches()
        self._copiers = started_pool(_NUM_COPIERS, "kv-copy")
        self._of_thread = threading.local()
        self._warm_up()

    @property
    def address(self) -> int:
        """Of the first block."""
        return self._blocks.data_ptr()

    def staging(self, num_blocks: int) -> Tensor:
        """Pinned where there is a GPU: torch keeps such memory, and hands it out again. TransferError where none is."""
        shape = num_blocks, self.block_bytes
        try:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        except RuntimeError as error:
            raise TransferError(f"no staging memory for {num_blocks} KV blocks: {error}") from error

    async def read(self, places: Sequence[int]) -> memoryview:
        """The blocks' bytes, in staging memory. TransferError where they cannot be had."""
        staging = self.staging(len(places))
        await self._run(self._copy_out, places, staging)
        return staging.view(-1).numpy().data

    async def write(self, places: Sequence[int], staging: Tensor) -> None:
        """Copy what is staged to its blocks; whoever launches work then finds it there. TransferError as above."""
        await self._run(self._copy_in, places, staging)

    async def digest(self, places: Sequence[int]) -> int:
        """Of the blocks' bytes, on a GPU (`kernels.triton.blocks`). TransferError as above."""
        return await self._run(self._digest, places)

    def fetch(self, source: int, source_places: Sequence[int], places: Sequence[int]) -> int:
        """Copy blocks from another pool, at address `source`, to these; the digest of what was copied. GPU only.

        For threads; the blocks are there when it returns. RuntimeError where the device cannot.
        """
        with self._on_stream():
            told = self._on_device([*source_places, *places, 0])
            self._fetch(source, told, self._blocks)
            self._of_thread.number.copy_(told[-1:], non_blocking=True)
        return int(self._of_thread.number) % 2**64

    def close(self) -> None:
        """Ends the threads after what they have begun."""
        self._copiers.shutdown(wait=True, cancel_futures=True)

    def _warm_up(self) -> None:
        """What is compiled on first use is so before the first transfer. Changes nothing.

        What fills the buffer is over before: a copy engine does not wait for kernels of another stream.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.num_places > 2:
            staging = self.staging(2)
            self._copy_out([0, 2], staging)
            self._copy_in([0, 2], staging)
            if self.device.type == "cuda":
                self.fetch(self.address, [0, 2], [0, 2])
                self._digest([0, 2])

    async def _run(self, copy: Callable[..., _T], *args: object) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._copiers, copy, *args)
        except RuntimeError as error:  # of the device, or there are no copiers any more
            raise TransferError(f"KV could not be copied between host and device: {error}") from error

    def _copy_out(self, places: Sequence[int], staging: Tensor) -> None:
        """On a copier's thread; the bytes are there when it returns."""
        with self._on_stream():
            packed = self._run_of(places)
            if packed is None:
                packed = self._packed(staging)
                self._pack(self._blocks, self._on_device(places), packed)
            staging.copy_(packed, non_blocking=True)

    def _copy_in(self, places: Sequence[int], staging: Tensor) -> None:
        """On a copier's thread; the bytes are there when it returns."""
        with self._on_stream():
            target = self._run_of(places)
            packed = self._packed(staging) if target is None else target
            packed.copy_(staging, non_blocking=True)
            if target is None:
                self._unpack(packed, self._blocks, self._on_device(places))

    def _digest(self, places: Sequence[int]) -> int:
        with self._on_stream():
            told = self._on_device([*places, 0])
            self._digest_of(told, self._blocks)
            self._of_thread.number.copy_(told[-1:], non_blocking=True)
        return int(self._of_thread.number) % 2**64

    def _run_of(self, places: Sequence[int]) -> Tensor | None:
        """Those blocks where they lie, if they are neighbours."""
        found = runs(places)
        return self._blocks[found[0][0] : sum(found[0])] if len(found) == 1 else None

    def _packed(self, staging: Tensor) -> Tensor:
        return torch.empty_like(staging, device=self.device)

    def _on_device(self, places: Sequence[int]) -> Tensor:
        """So few bytes that CUDA takes them along with the launch: pinned, they would only cost more."""
        return torch.tensor(places, dtype=torch.int64).to(self.device, non_blocking=True)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """What is launched within is over when it is left. On a CPU nothing is launched."""
        if self.device.type != "cuda":
            yield
            return
        mine = self._of_thread
        if not hasattr(mine, "stream"):
            mine.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            mine.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            mine.number = torch.empty(1, dtype=torch.int64, pin_memory=True)
        with torch.cuda.stream(mine.stream):
            yield
            mine.done.record()
        mine.done.synchronize()
