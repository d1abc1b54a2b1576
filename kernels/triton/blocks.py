# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Move KV blocks between pools.

`pack_blocks` and `unpack_blocks` gather blocks into one contiguous buffer and scatter them back, for transfers that
stage through host memory: one copy over the bus instead of one per block. `fetch_blocks` copies blocks from another
pool that this GPU can read, and computes their digest; `digest_blocks` computes the digest alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048  # words of a block that one program moves
# splitmix64's constants as signed words: the increment, which is 2^64 / golden ratio, and the two multipliers.
GAMMA = tl.constexpr(-0x61C8864680B583EB)
MIX_1 = tl.constexpr(-0x40A7B892E31B1A47)
MIX_2 = tl.constexpr(-0x6B2FB644ECCEEE15)


@triton.jit
def copy_blocks_kernel(
    blocks_ptr,  # [num_blocks, words]
    ids_ptr,  # [N] int64
    packed_ptr,  # [N, words]
    words,
    PACK: tl.constexpr,  # copy from the blocks to the buffer, else back
    CHUNK: tl.constexpr,
):
    """Program (index of a block id, chunk of the block)."""
    place = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    block = blocks_ptr + tl.load(ids_ptr + place) * words + word
    packed = packed_ptr + place * words + word
    if PACK:
        tl.store(packed, tl.load(block, mask=word < words), mask=word < words)
    else:
        tl.store(block, tl.load(packed, mask=word < words), mask=word < words)


@triton.jit
def _mixed(x):
    """splitmix64's finalizer (Steele, Lea, Flood 2014), a bijection of 64-bit words."""
    x = (x ^ (x.to(tl.uint64, bitcast=True) >> 30).to(tl.int64, bitcast=True)) * MIX_1
    x = (x ^ (x.to(tl.uint64, bitcast=True) >> 27).to(tl.int64, bitcast=True)) * MIX_2
    return x ^ (x.to(tl.uint64, bitcast=True) >> 31).to(tl.int64, bitcast=True)


@triton.jit(do_not_specialize=["num_ids"])
def fetch_blocks_kernel(
    source,  # address of [num_source_blocks, words], possibly another process's memory; unused unless STORE
    ids_ptr,  # int64: num_ids ids of source blocks; if STORE, num_ids ids of blocks to write; the digest
    blocks_ptr,  # [num_blocks, words]
    words,
    num_ids,
    STORE: tl.constexpr,  # copy from `source` to the blocks, else only digest the blocks
    CHUNK: tl.constexpr,
):
    """Program (index of a block id, chunk of the block): copy the chunk and add its part of the digest."""
    place = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    digest_ptr = ids_ptr + num_ids
    if STORE:
        source_ptr = source.to(tl.pointer_type(blocks_ptr.dtype.element_ty))
        value = tl.load(source_ptr + tl.load(ids_ptr + place) * words + word, mask=word < words)
        tl.store(blocks_ptr + tl.load(digest_ptr + place) * words + word, value, mask=word < words)
        digest_ptr += num_ids
    else:
        value = tl.load(blocks_ptr + tl.load(ids_ptr + place) * words + word, mask=word < words)
    mixed = _mixed(value.to(tl.int64) + (place * words + word + 1) * GAMMA)
    tl.atomic_add(digest_ptr, tl.sum(tl.where(word < words, mixed, 0), axis=0))


def pack_blocks(blocks: Tensor, block_ids: Tensor, packed: Tensor) -> None:
    """`packed[i] = blocks[block_ids[i]]`.

    blocks: [num_blocks, bytes] uint8, of one or all layer groups of a pool (`baton.kv.layout`); block_ids: [N] int64;
    packed: [N, bytes] uint8. All on one device, blocks and packed contiguous; raises ValueError if shapes do not fit.
    """
    _copy(blocks, block_ids, packed, pack=True)


def unpack_blocks(packed: Tensor, blocks: Tensor, block_ids: Tensor) -> None:
    """`blocks[block_ids[i]] = packed[i]`, with no id twice; arguments as in `pack_blocks`."""
    _copy(blocks, block_ids, packed, pack=False)


def fetch_blocks(source: int, ids: Tensor, blocks: Tensor) -> None:
    """Copy source block `ids[i]` to `blocks[ids[N + i]]`, i < N, and compute the digest of what was copied.

    source: address of blocks of the same size, in memory that the device of `blocks` can read. Nothing checks here that
    the source has as many blocks as the ids require. ids: [2 N + 1] int64, N source ids, N ids of `blocks` (none
    twice), and a zero, which is replaced by the digest (see `digest_blocks`). blocks: [num_blocks, bytes] uint8. Raises
    ValueError if `blocks` is not contiguous, N is 0, or the length of `ids` is even.
    """
    _fetch(source, ids, blocks, (ids.shape[0] - 1) // 2, store=True)


def digest_blocks(ids: Tensor, blocks: Tensor) -> None:
    """Compute the digest of `blocks[ids[i]]`, i < N, the one that `fetch_blocks` computes.

    ids: [N + 1] int64, N ids and a zero, which is replaced by the digest. `blocks` and errors as in `fetch_blocks`. The
    digest is the sum over all words w, in order, of mixed(w + (i + 1) * gamma) mod 2^64, where i is the word's number;
    `mixed` and gamma are splitmix64's. `mixed` is a bijection, so a change of one word always changes the digest.
    """
    _fetch(0, ids, blocks, ids.shape[0] - 1, store=False)


def _fetch(source: int, ids: Tensor, blocks: Tensor, num_ids: int, *, store: bool) -> None:
    if not blocks.is_contiguous() or num_ids < 1 or ids.shape[0] != num_ids * (1 + store) + 1:
        raise ValueError(f"needs contiguous blocks, one or more ids and room for a digest, not {ids.shape[0]} numbers")
    blocks = _words(blocks)
    grid = num_ids, triton.cdiv(blocks.shape[1], CHUNK)
    fetch_blocks_kernel[grid](source, ids, blocks, blocks.shape[1], num_ids, STORE=store, CHUNK=CHUNK, num_warps=4)


def _words(blocks: Tensor) -> Tensor:
    return blocks.view(torch.int64) if blocks.shape[1] % 8 == 0 else blocks


def _copy(blocks: Tensor, block_ids: Tensor, packed: Tensor, *, pack: bool) -> None:
    if packed.shape != (block_ids.shape[0], blocks.shape[1]) or not (blocks.is_contiguous() and packed.is_contiguous()):
        raise ValueError(f"{list(packed.shape)} cannot hold {block_ids.shape[0]} blocks of {blocks.shape[1]} bytes")
    if not block_ids.shape[0]:
        return
    blocks, packed = _words(blocks), _words(packed)
    words = blocks.shape[1]
    copy_blocks_kernel[(block_ids.shape[0], triton.cdiv(words, CHUNK))](
        blocks, block_ids, packed, words, PACK=pack, CHUNK=CHUNK, num_warps=4
    )
