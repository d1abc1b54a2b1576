# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""KV blocks on their way between pools.

Gathered into one contiguous buffer and scattered back, for transfers that stage through host memory: one copy over the
bus instead of one per block. Or fetched from another pool that this GPU can read, and digested where they are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048  # words of a block that one program moves
# Of splitmix64, as signed words: the increment, which is 2^64 / golden ratio, and the two multipliers.
GAMMA = tl.constexpr(-0x61C8864680B583EB)
MIX_1 = tl.constexpr(-0x40A7B892E31B1A47)
MIX_2 = tl.constexpr(-0x6B2FB644ECCEEE15)


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


@triton.jit
def _mixed(x):
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of words."""
    x = (x ^ (x.to(tl.uint64, bitcast=True) >> 30).to(tl.int64, bitcast=True)) * MIX_1
    x = (x ^ (x.to(tl.uint64, bitcast=True) >> 27).to(tl.int64, bitcast=True)) * MIX_2
    return x ^ (x.to(tl.uint64, bitcast=True) >> 31).to(tl.int64, bitcast=True)


@triton.jit(do_not_specialize=["num_ids"])
def fetch_blocks_kernel(
    source,  # address of [num_source_blocks, words], maybe another process's memory; the blocks themselves unless STORE
    told_ptr,  # int64: num_ids of the source; where to STORE, as many of the blocks; the digest
    blocks_ptr,  # [num_blocks, words]
    words,
    num_ids,
    STORE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program (place, chunk)."""
    place = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    digest_ptr = told_ptr + num_ids
    if STORE:
        source_ptr = source.to(tl.pointer_type(blocks_ptr.dtype.element_ty))
        value = tl.load(source_ptr + tl.load(told_ptr + place) * words + word, mask=word < words)
        tl.store(blocks_ptr + tl.load(digest_ptr + place) * words + word, value, mask=word < words)
        digest_ptr += num_ids
    else:
        value = tl.load(blocks_ptr + tl.load(told_ptr + place) * words + word, mask=word < words)
    mixed = _mixed(value.to(tl.int64) + (place * words + word + 1) * GAMMA)
    tl.atomic_add(digest_ptr, tl.sum(tl.where(word < words, mixed, 0), axis=0))


def pack_blocks(blocks: Tensor, block_ids: Tensor, packed: Tensor) -> None:
    """`packed[i] = blocks[block_ids[i]]`.

    blocks: [num_blocks, bytes] uint8, of one or all layer groups of a pool (`baton.kv.layout`); block_ids: [N] int64;
    packed: [N, bytes] uint8, contiguous as `blocks` is. All on one device; ValueError where shapes do not fit.
    """
    _copy(blocks, block_ids, packed, pack=True)


def unpack_blocks(packed: Tensor, blocks: Tensor, block_ids: Tensor) -> None:
    """`blocks[block_ids[i]] = packed[i]`, ids each at most once; arguments as in `pack_blocks`."""
    _copy(blocks, block_ids, packed, pack=False)


def fetch_blocks(source: int, told: Tensor, blocks: Tensor) -> None:
    """`blocks[ids[i]] = source[source_ids[i]]`, ids each at most once; and the digest of what was fetched.

    source: address of blocks as long as those of `blocks`, in memory that its device can read, and at least as many as
    `source_ids` name: nothing checks that here; told: [2 N + 1] int64, source_ids, ids and zero, which becomes the
    digest; blocks: [num_blocks, bytes] uint8, contiguous. ValueError where they are not, or N is 0.
    """
    _fetch(source, told, blocks, (told.shape[0] - 1) // 2, store=True)


def digest_blocks(told: Tensor, blocks: Tensor) -> None:
    """The digest of `blocks[ids[i]]`, all i: that of `fetch_blocks`.

    told: [N + 1] int64, ids and zero, which becomes the digest; blocks, and errors: as above. Sum over all words w, in
    order, of mixed(w + (i + 1) gamma) mod 2^64; i: the word's number. `mixed` and gamma are splitmix64's (Steele, Lea,
    Flood 2014), so one changed word always shows.
    """
    _fetch(0, told, blocks, told.shape[0] - 1, store=False)


def _fetch(source: int, told: Tensor, blocks: Tensor, num_ids: int, *, store: bool) -> None:
    if not blocks.is_contiguous() or num_ids < 1 or told.shape[0] != num_ids * (1 + store) + 1:
        raise ValueError(f"{told.shape[0]} numbers do not tell what to fetch")
    blocks = _words(blocks)
    grid = num_ids, triton.cdiv(blocks.shape[1], CHUNK)
    fetch_blocks_kernel[grid](source, told, blocks, blocks.shape[1], num_ids, STORE=store, CHUNK=CHUNK, num_warps=4)


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
