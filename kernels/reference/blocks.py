"""KV blocks gathered into one contiguous buffer, and back: what `kernels.triton.blocks` is held against."""

import torch
from torch import Tensor


def pack_blocks(blocks: Tensor, block_ids: Tensor, packed: Tensor) -> None:
    """`packed[i] = blocks[block_ids[i]]`. blocks: [num_blocks, bytes], packed: [N, bytes], uint8; block_ids: [N]."""
    torch.index_select(blocks, 0, block_ids, out=packed)


def unpack_blocks(packed: Tensor, blocks: Tensor, block_ids: Tensor) -> None:
    """`blocks[block_ids[i]] = packed[i]`, ids each at most once; arguments as in `pack_blocks`."""
    blocks.index_copy_(0, block_ids, packed)
