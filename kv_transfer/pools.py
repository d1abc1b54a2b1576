"""Makes the kind of pool that fits the device on which a node keeps its KV."""

from typing import TYPE_CHECKING

from baton.kv.layout import KVLayout
from kv_transfer.pool import KVPool, Pool
from kv_transfer.staged_pool import StagedPool

if TYPE_CHECKING:
    import torch


def pool_of(buffer: "torch.Tensor", layout: KVLayout, num_blocks: int) -> Pool:
    """Return the pool in `buffer`: flat uint8, `layout.pool_bytes(num_blocks)` long, on any device."""
    kind = KVPool if buffer.device.type == "cpu" else StagedPool
    return kind(buffer, layout, num_blocks)
