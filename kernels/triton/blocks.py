# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""KV blocks, gathered from a pool into one contiguous buffer, and scattered back.

For transfers that stage through host memory: one copy of the buffer over the bus instead of one per block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048  # words of a block that one program moves


@triton.jit
def copy_blocks_kernel(
    blocks_ptr,  # [num_blocks, words]
    ids_ptr,  # [N] int64
    packed_ptr,  # [N, words]
    words,
    PACK: tl.constexpr,  # from the blocks to the buffer, or back
    CHUNK: tl.constexpr,
):
    """Program (place, chunk)."""
    place = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    block = blocks_ptr + tl.load(ids_ptr + place) * words + word
    packed = packed_ptr + place * words + word
    if PACK:
        tl.store(packed, tl.load(block, mask=word < words), mask=word < words)
    else:
        tl.store(block, tl.load(packed, mask=word < words), mask=word < words)


def pack_blocks(blocks: Tensor, block_ids: Tensor, packed: Tensor) -> None:
    """`packed[i] = blocks[block_ids[i]]`.

    blocks: [num_blocks, bytes] uint8, of one or all layer groups of a pool (`baton.kv.layout`); block_ids: [N] int64;
    packed: [N, bytes] uint8, contiguous as `blocks` is. All on one device; ValueError where shapes do not fit.
    """
    _copy(blocks, block_ids, packed, pack=True)


def unpack_blocks(packed: Tensor, blocks: Tensor, block_ids: Tensor) -> None:
    """`blocks[block_ids[i]] = packed[i]`, ids each at most once; arguments as in `pack_blocks`."""
    _copy(blocks, block_ids, packed, pack=False)


def _copy(blocks: Tensor, block_ids: Tensor, packed: Tensor, *, pack: bool) -> None:
    if packed.shape != (block_ids.shape[0], blocks.shape[1]) or not (blocks.is_contiguous() and packed.is_contiguous()):
        raise ValueError(f"{list(packed.shape)} cannot hold {block_ids.shape[0]} blocks of {blocks.shape[1]} bytes")
    if not block_ids.shape[0]:
        return
    word = torch.int64 if blocks.shape[1] % 8 == 0 else torch.uint8
    blocks, packed = blocks.view(word), packed.view(word)
    words = blocks.shape[1]
    copy_blocks_kernel[(block_ids.shape[0], triton.cdiv(words, CHUNK))](
        blocks, block_ids, packed, words, PACK=pack, CHUNK=CHUNK, num_warps=4
    )
