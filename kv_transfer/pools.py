"""Which kind of pool a node's KV lies in, by its device."""

from typing import TYPE_CHECKING

from baton.kv.layout import KVLayout
from kv_transfer.pool import KVPool, Pool
from kv_transfer.staged_pool import StagedPool

if TYPE_CHECKING:
    import torch


def pool_of(buffer: "torch.Tensor", layout: KVLayout, num_blocks: int) -> Pool:
    """The pool that lies in `buffer`: flat uint8, `layout.pool_bytes(num_blocks)` long, on whatever device."""
    kind = KVPool if buffer.device.type == "cpu" else StagedPool
    return kind(buffer, layout, num_blocks)
