"""A node's KV pool as bytes in host memory, for messages to be read from and written to. Who owns a block is the
node's business.

A pool in host memory is read and written where it lies. One on a device is staged (`kv_transfer.staged_pool`).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from baton.errors import ConfigError
from baton.kv.layout import KVLayout
from kv_transfer.digest import Digester, known
from kv_transfer.plan import runs

if TYPE_CHECKING:
    import torch

    from kv_transfer.device_blocks import DeviceBlocks


class Loan(Protocol):
    """A message's bytes, lent to a sender."""

    num_bytes: int

    async def views(self) -> list[memoryview]:
        """All of the bytes, in order, until `end`. Raises TransferError where they cannot be had."""
        ...

    def end(self) -> None:
        """The views are no longer being read. Called once, whether or not there were any."""
        ...


class Landing(Protocol):
    """Where one message is received. `settle` or `drop` is called once, when nothing writes to it any more."""

    views: list[memoryview]  # to be filled one after the other

    def settle(self, digester: Digester, digest: int | None) -> "asyncio.Future[int]":
        """The digest of what has arrived, as soon as all of it is in the pool; TransferError where it cannot be.

        `digest`, where it is known already.
        """
        ...

    def drop(self) -> None:
        """What has arrived is of no use."""
        ...


class Pool(Protocol):
    """What senders and receivers need of a pool. All of it belongs to the event loop."""

    layout: KVLayout
    num_blocks: int

    @property
    def gpu_blocks(self) -> "DeviceBlocks | None":
        """Its blocks, where these are on a GPU."""
        ...

    def lend(self, layer_groups: range, block_ids: Sequence[int]) -> Loan | None:
        """The bytes of blocks that do not change meanwhile, layer group by layer group; None where there is no room."""
        ...

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call it once, when there is room again."""
        ...

    def land(self, layer_groups: range, block_ids: Sequence[int]) -> Landing | None:
        """Memory for a message that goes to these blocks; None where there is too little."""
        ...

    def close(self) -> None:
        """Nothing is lent any more, and nothing lands."""
        ...


def check_buffer(buffer: "torch.Tensor", layout: KVLayout, num_blocks: int) -> None:
    """Raise ConfigError unless it can be such a pool."""
    if buffer.element_size() != 1 or not buffer.is_contiguous():
        raise ConfigError("KV transfers need the pool as contiguous bytes")
    if buffer.numel() != layout.pool_bytes(num_blocks):
        raise ConfigError(
            f"a KV pool of {num_blocks} blocks has {layout.pool_bytes(num_blocks)} bytes, not {buffer.numel()}"
        )


def places_of(pool: Pool, layer_groups: range, block_ids: Sequence[int]) -> list[int]:
    """Where a message's blocks are in the pool: layer group times number of blocks, plus block.

    Raises IndexError outside of it.
    """
    if not all(0 <= block_id < pool.num_blocks for block_id in block_ids) or not all(
        0 <= group < pool.layout.num_layer_groups for group in layer_groups
    ):
        raise IndexError(f"no blocks {block_ids} of layer groups {layer_groups}")
    return [group * pool.num_blocks + block_id for group in layer_groups for block_id in block_ids]


class InPlace:
    """A `Landing` of blocks that their transport writes itself: of those in `transport.IN_PLACE`."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def settle(self, digester: Digester, digest: int | None) -> "asyncio.Future[int]":
        """Such a transport says the digest."""
        if digest is None:
            raise TypeError("nobody knows the digest of blocks that were written in place")
        return known(digest)

    def drop(self) -> None:
        """There is nothing to drop."""


class KVPool:
    """A view on a pool in host memory that lives as long as the node; neither copies nor clears it."""

    def __init__(self, buffer: "torch.Tensor", layout: KVLayout, num_blocks: int) -> None:
        """`buffer`: flat uint8 on the CPU, `layout.pool_bytes(num_blocks)` long."""
        if buffer.device.type != "cpu":
            raise ConfigError("this pool is not in host memory")
        check_buffer(buffer, layout, num_blocks)
        self.layout = layout
        self.num_blocks = num_blocks
        self.gpu_blocks = None
        self._bytes = buffer.numpy().data

    def view(self, layer_group: int, first_block: int, num_blocks: int) -> memoryview:
        """The bytes of neighbouring blocks of one layer group. Raises IndexError outside of the pool."""
        in_pool = first_block >= 0 and first_block + num_blocks <= self.num_blocks
        if not in_pool or not 0 <= layer_group < self.layout.num_layer_groups:
            raise IndexError(f"no blocks [{first_block}, {first_block + num_blocks}) of layer group {layer_group}")
        start = self.layout.offset(self.num_blocks, layer_group, first_block)
        return self._bytes[start : start + num_blocks * self.layout.block_group_bytes]

    def views(self, layer_group: int, block_ids: Sequence[int]) -> list[memoryview]:
        """The bytes of any blocks of one layer group in their order, neighbours as one view."""
        return [self.view(layer_group, first, count) for first, count in runs(block_ids)]

    def lend(self, layer_groups: range, block_ids: Sequence[int]) -> "_HostLoan":
        """See `Pool`: the blocks themselves, always."""
        return _HostLoan(self._views(layer_groups, block_ids))

    def when_room(self, callback: Callable[[], None]) -> None:
        """See `Pool`: there always is."""
        callback()

    def land(self, layer_groups: range, block_ids: Sequence[int]) -> "_HostLanding":
        """See `Pool`: the blocks themselves."""
        return _HostLanding(self._views(layer_groups, block_ids))

    def close(self) -> None:
        """See `Pool`."""

    def _views(self, layer_groups: range, block_ids: Sequence[int]) -> list[memoryview]:
        return [view for group in layer_groups for view in self.views(group, block_ids)]


class _HostLoan:
    def __init__(self, views: list[memoryview]) -> None:
        self._views = views
        self.num_bytes = sum(view.nbytes for view in views)

    async def views(self) -> list[memoryview]:
        return self._views

    def end(self) -> None:
        pass


class _HostLanding:
    def __init__(self, views: list[memoryview]) -> None:
        self.views = views

    def settle(self, digester: Digester, digest: int | None) -> "asyncio.Future[int]":
        return digester.start(self.views) if digest is None else known(digest)

    def drop(self) -> None:
        pass
