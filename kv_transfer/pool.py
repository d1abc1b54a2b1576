"""A node's KV pool as bytes in host memory that messages are read from and written to.

A pool in host memory (`KVPool`) is read and written in place; one on a device is staged (`kv_transfer.staged_pool`).
Which request owns a block is the node's concern.
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
    """The bytes of one message, lent to a sender."""

    num_bytes: int

    async def views(self) -> list[memoryview]:
        """All of the bytes, in order, valid until `end`. Raises TransferError if they cannot be copied to the host."""
        ...

    def end(self) -> None:
        """End the loan. Called exactly once, when the views are no longer read, even if `views` was never called."""
        ...


class Landing(Protocol):
    """The memory that one message is received into. Ends with one call of `settle` or `drop`, after the last write."""

    views: list[memoryview]  # to be filled one after the other

    def settle(self, digester: Digester, digest: int | None) -> "asyncio.Future[int]":
        """Move what has arrived into the pool. The future is its digest, done once all of it is there.

        `digest`: if it is known already. The future raises TransferError if the copy fails.
        """
        ...

    def drop(self) -> None:
        """Discard what has arrived."""
        ...


class Pool(Protocol):
    """What senders and receivers need of a pool. Its methods are called in the event loop only."""

    layout: KVLayout
    num_blocks: int

    @property
    def gpu_blocks(self) -> "DeviceBlocks | None":
        """The pool's blocks if they are on a GPU, else None."""
        ...

    def lend(self, layer_groups: range, block_ids: Sequence[int]) -> Loan | None:
        """Lend the bytes of these blocks, ordered by layer group; None if there is no room to stage them.

        The blocks must not change until the loan ends.
        """
        ...

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when `lend` may have room again."""
        ...

    def land(self, layer_groups: range, block_ids: Sequence[int]) -> Landing | None:
        """Provide memory for a message that goes to these blocks; None if there is too little."""
        ...

    def close(self) -> None:
        """Release the pool's threads. No loan or landing may be open."""
        ...


def check_buffer(buffer: "torch.Tensor", layout: KVLayout, num_blocks: int) -> None:
    """Raise ConfigError unless `buffer` can hold a pool of this layout and size."""
    if buffer.element_size() != 1 or not buffer.is_contiguous():
        raise ConfigError("KV transfers need the pool's buffer as contiguous bytes")
    if buffer.numel() != layout.pool_bytes(num_blocks):
        raise ConfigError(
            f"a KV pool of {num_blocks} blocks needs {layout.pool_bytes(num_blocks)} bytes, not {buffer.numel()}"
        )


def places_of(pool: Pool, layer_groups: range, block_ids: Sequence[int]) -> list[int]:
    """Return the places of a message's blocks: `layer_group * pool.num_blocks + block_id` for each, in message order.

    Raises IndexError if one lies outside the pool.
    """
    if not all(0 <= block_id < pool.num_blocks for block_id in block_ids) or not all(
        0 <= group < pool.layout.num_layer_groups for group in layer_groups
    ):
        raise IndexError(f"no blocks {block_ids} of layer groups {layer_groups}")
    return [group * pool.num_blocks + block_id for group in layer_groups for block_id in block_ids]


class InPlace:
    """The `Landing` of a message whose transport, one of `transport.IN_PLACE`, writes the blocks in the pool itself."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def settle(self, digester: Digester, digest: int | None) -> "asyncio.Future[int]":
        """Return the digest, which such a transport always computes. Raises TypeError without one."""
        if digest is None:
            raise TypeError("a transport that writes blocks in place must report their digest")
        return known(digest)

    def drop(self) -> None:
        """See `Landing`: there is nothing to discard."""


class KVPool:
    """A pool in host memory: a view of `buffer`, which it neither copies nor clears."""

    def __init__(self, buffer: "torch.Tensor", layout: KVLayout, num_blocks: int) -> None:
        """`buffer`: flat uint8 on the CPU, `layout.pool_bytes(num_blocks)` long."""
        if buffer.device.type != "cpu":
            raise ConfigError(f"KVPool needs a buffer in host memory, not on {buffer.device}")
        check_buffer(buffer, layout, num_blocks)
        self.layout = layout
        self.num_blocks = num_blocks
        self.gpu_blocks = None
        self._bytes = buffer.numpy().data

    def view(self, layer_group: int, first_block: int, num_blocks: int) -> memoryview:
        """Return the bytes of consecutive blocks of one layer group. Raises IndexError outside the pool."""
        in_pool = first_block >= 0 and first_block + num_blocks <= self.num_blocks
        if not in_pool or not 0 <= layer_group < self.layout.num_layer_groups:
            raise IndexError(f"no blocks [{first_block}, {first_block + num_blocks}) of layer group {layer_group}")
        start = self.layout.offset(self.num_blocks, layer_group, first_block)
        return self._bytes[start : start + num_blocks * self.layout.block_group_bytes]

    def views(self, layer_group: int, block_ids: Sequence[int]) -> list[memoryview]:
        """Return the bytes of any blocks of one layer group, in order, with consecutive blocks as one view."""
        return [self.view(layer_group, first, count) for first, count in runs(block_ids)]

    def lend(self, layer_groups: range, block_ids: Sequence[int]) -> "_HostLoan":
        """See `Pool`: lends the blocks themselves, so there is always room."""
        return _HostLoan(self._views(layer_groups, block_ids))

    def when_room(self, callback: Callable[[], None]) -> None:
        """See `Pool`: there is always room."""
        callback()

    def land(self, layer_groups: range, block_ids: Sequence[int]) -> "_HostLanding":
        """See `Pool`: messages land in the blocks themselves."""
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
