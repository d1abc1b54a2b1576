"""A pool's blocks on a device, and the threads that copy them, each on its own stream.

A place is a row of the pool: `layer_group * num_blocks + block_id`. Blocks are read only once the host knows that they
are computed, and written only while a grant reserves them, so copies need not synchronize with the compute stream.
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

_NUM_COPIERS = 2  # so that one can launch while the other waits for its copy

_T = TypeVar("_T")


class DeviceBlocks:
    """The blocks of one pool. The device may also be the CPU, then staged like a GPU but without `fetch`, `digest`."""

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
        """The device address of the first block."""
        return self._blocks.data_ptr()

    def staging(self, num_blocks: int) -> Tensor:
        """Allocate host memory, [num_blocks, block_bytes] uint8. Raises TransferError if there is none.

        It is pinned if the pool is on a GPU; torch caches pinned memory, so this is cheap after the first time.
        """
        shape = num_blocks, self.block_bytes
        try:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        except RuntimeError as error:
            raise TransferError(f"no staging memory for {num_blocks} KV blocks: {error}") from error

    async def read(self, places: Sequence[int]) -> memoryview:
        """Copy these blocks to new staging memory and return their bytes. Raises TransferError if that fails."""
        staging = self.staging(len(places))
        await self._run(self._copy_out, places, staging)
        return staging.view(-1).numpy().data

    async def write(self, places: Sequence[int], staging: Tensor) -> None:
        """Copy staged bytes to these blocks; work launched after this returns sees them. Raises TransferError."""
        await self._run(self._copy_in, places, staging)

    async def digest(self, places: Sequence[int]) -> int:
        """Compute the digest of these blocks on the GPU (`kernels.triton.blocks`). Raises TransferError. GPU only."""
        return await self._run(self._digest, places)

    def fetch(self, source: int, source_places: Sequence[int], places: Sequence[int]) -> int:
        """Copy blocks of another pool, at device address `source`, to these; return the copy's digest. GPU only.

        Blocks until the copy is done, so call it in a thread. Raises RuntimeError if the device cannot do it.
        """
        with self._on_stream():
            arguments = self._on_device([*source_places, *places, 0])
            self._fetch(source, arguments, self._blocks)
            self._of_thread.number.copy_(arguments[-1:], non_blocking=True)
        return int(self._of_thread.number) % 2**64

    def close(self) -> None:
        """End the threads once they have finished the copies in hand."""
        self._copiers.shutdown(wait=True, cancel_futures=True)

    def _warm_up(self) -> None:
        """Copy blocks onto themselves, so that kernels are compiled before the first transfer.

        Synchronizes first: the pool's initialization runs on another stream, which these copies would not wait for.
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
        except RuntimeError as error:  # from the device, or because the threads were shut down
            raise TransferError(f"KV could not be copied between host and device: {error}") from error

    def _copy_out(self, places: Sequence[int], staging: Tensor) -> None:
        """Copy blocks to staging memory, in a copier thread. Returns when the bytes are there."""
        with self._on_stream():
            packed = self._run_of(places)
            if packed is None:
                packed = self._packed(staging)
                self._pack(self._blocks, self._on_device(places), packed)
            staging.copy_(packed, non_blocking=True)

    def _copy_in(self, places: Sequence[int], staging: Tensor) -> None:
        """Copy staging memory to blocks, in a copier thread. Returns when the bytes are there."""
        with self._on_stream():
            target = self._run_of(places)
            packed = self._packed(staging) if target is None else target
            packed.copy_(staging, non_blocking=True)
            if target is None:
                self._unpack(packed, self._blocks, self._on_device(places))

    def _digest(self, places: Sequence[int]) -> int:
        with self._on_stream():
            arguments = self._on_device([*places, 0])
            self._digest_of(arguments, self._blocks)
            self._of_thread.number.copy_(arguments[-1:], non_blocking=True)
        return int(self._of_thread.number) % 2**64

    def _run_of(self, places: Sequence[int]) -> Tensor | None:
        """Return a view of these blocks if they are contiguous in the pool, else None."""
        found = runs(places)
        return self._blocks[found[0][0] : sum(found[0])] if len(found) == 1 else None

    def _packed(self, staging: Tensor) -> Tensor:
        return torch.empty_like(staging, device=self.device)

    def _on_device(self, places: Sequence[int]) -> Tensor:
        """Copy `places` to the device. Not from pinned memory: CUDA passes so few bytes along with the launch."""
        return torch.tensor(places, dtype=torch.int64).to(self.device, non_blocking=True)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Run the body on this thread's stream, and wait on exit for what it launched. On a CPU, just run the body."""
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
