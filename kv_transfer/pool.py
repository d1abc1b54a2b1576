"""A node's KV pool as bytes: memoryviews of blocks, without a copy. Who owns a block is the node's business."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from baton.errors import ConfigError
from baton.kv_layout import KVLayout
from kv_transfer.plan import runs

if TYPE_CHECKING:
    import torch


class KVPool:
    """A view on a pool that lives as long as the node; neither copies nor clears it."""

    def __init__(self, buffer: "torch.Tensor", layout: KVLayout, num_blocks: int) -> None:
        """`buffer`: flat uint8 on the CPU, `layout.pool_bytes(num_blocks)` long."""
        if buffer.device.type != "cpu" or buffer.element_size() != 1 or not buffer.is_contiguous():
            raise ConfigError("KV transfers need the pool as contiguous bytes in host memory")
        if buffer.numel() != layout.pool_bytes(num_blocks):
            raise ConfigError(
                f"a KV pool of {num_blocks} blocks has {layout.pool_bytes(num_blocks)} bytes, not {buffer.numel()}"
            )
        self.layout = layout
        self.num_blocks = num_blocks
        self._bytes = buffer.numpy().data

    def view(self, layer_group: int, first_block: int, num_blocks: int) -> memoryview:
        """The bytes of neighbouring blocks of one layer group. Raises IndexError outside of the pool."""
        in_pool = first_block >= 0 and first_block + num_blocks <= self.num_blocks
        if not in_pool or not 0 <= layer_group < self.layout.num_layer_groups:
            raise IndexError(f"no blocks [{first_block}, {first_block + num_blocks}) of layer group {layer_group}")
        start = self.layout.offset(self.num_blocks, layer_group, first_block)
        return self._bytes[start : start + num_blocks * self.layout.block_group_bytes]

    def views(self, layer_group: int, block_ids: Iterable[int]) -> list[memoryview]:
        """The bytes of any blocks of one layer group in their order, neighbours as one view."""
        return [self.view(layer_group, first, count) for first, count in runs(block_ids)]
