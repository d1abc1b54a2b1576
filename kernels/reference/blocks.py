"""Gather KV blocks into one contiguous buffer and scatter them back: the specification of `kernels.triton.blocks`."""

import torch
from torch import Tensor


def pack_blocks(blocks: Tensor, block_ids: Tensor, packed: Tensor) -> None:
    """`packed[i] = blocks[block_ids[i]]`. blocks: [num_blocks, bytes], packed: [N, bytes], uint8; block_ids: [N]."""
    torch.index_select(blocks, 0, block_ids, out=packed)


def unpack_blocks(packed: Tensor, blocks: Tensor, block_ids: Tensor) -> None:
    """`blocks[block_ids[i]] = packed[i]`, with no id twice; arguments as in `pack_blocks`."""
    blocks.index_copy_(0, block_ids, packed)
