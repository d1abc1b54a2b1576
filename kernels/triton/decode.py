# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Decode attention, for sequences with a single query in the step: split-KV, with a second kernel to merge the splits.

How a sequence is split depends on its own length alone, and so do the bits of its result. The grid has a fixed size,
and its programs find out on the device which splits are theirs, so a captured CUDA graph serves every step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.api import Attention, AttentionMeta
from kernels.triton.tile import attend, dot_type, find, has_wgmma, head_tiles, load_rows, score_factors, store_rows

NUM_PROGRAMS = 528  # four for each of an H100's 132 multiprocessors
MAX_SPLITS = 32  # per sequence: a longer sequence has longer splits


@triton.jit
def split(seq_len, window, KEYS: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr):
    """(first key, keys per split, number of splits) for sequences of these lengths."""
    first = seq_len * 0
    if WINDOW:
        first = tl.maximum(seq_len - window, 0) // KEYS * KEYS
    length = tl.maximum(tl.cdiv(seq_len - first, SPLIT * SPLITS), 1) * SPLIT
    return first, length, tl.cdiv(seq_len - first, length)


@triton.jit
def decode_kernel(
    q_ptr,
    kv_ptr,
    partial_ptr,  # [num_tokens, Hq, num_splits, HEAD_DIM + 2] fp32: weighted sum of values, maximum, sum
    query_start_ptr,
    seq_lens_ptr,
    tables_ptr,
    table_stride,
    block_stride,
    scale,
    cap,
    window,
    num_seqs,
    num_splits,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PLANES: tl.constexpr,
    SEQS: tl.constexpr,  # num_seqs, rounded up to a power of two
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    REST: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    DOT: tl.constexpr,
):
    """An item of work is (sequence, split, KV head, tile of its query heads), of which the last varies fastest."""
    plane: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    row_tiles: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    per_split: tl.constexpr = NUM_KV_HEADS * row_tiles
    place = tl.arange(0, SEQS)
    starts = tl.load(query_start_ptr + place, mask=place < num_seqs, other=0)
    ends = tl.load(query_start_ptr + place + 1, mask=place < num_seqs, other=0)
    lengths = tl.load(seq_lens_ptr + place, mask=(place < num_seqs) & (ends - starts == 1), other=0)
    counts = split(lengths, window, KEYS, SPLIT, SPLITS, WINDOW)[2]
    # Loop invariants are recomputed for each item: if hoisted, they would take registers from the loop over keys.
    for item in tl.range(tl.program_id(0), tl.sum(counts, 0) * per_split, tl.num_programs(0), disable_licm=True):
        seq, index = find(counts, place, item // per_split)
        kv_head = item % per_split // row_tiles
        row = item % row_tiles * ROWS + tl.arange(0, ROWS)
        seq_len = tl.load(seq_lens_ptr + seq)
        first, length, _ = split(seq_len, window, KEYS, SPLIT, SPLITS, WINDOW)
        low = first + index * length
        high = tl.minimum(low + length, seq_len)
        token = tl.load(query_start_ptr + seq).to(tl.int64)
        head = token * (NUM_KV_HEADS * GROUP) + kv_head * GROUP + row
        q = load_rows(q_ptr + head * HEAD_DIM, row < GROUP, 0, DIM, HEAD_DIM, True).to(DOT)
        q_rest = q
        if REST > 0:
            q_rest = load_rows(q_ptr + head * HEAD_DIM, row < GROUP, DIM, REST, HEAD_DIM, True).to(DOT)

        row_max, row_sum, acc, acc_rest = attend(
            q,
            q_rest,
            tl.full([ROWS], float("-inf"), tl.float32),
            tl.zeros([ROWS], tl.float32),
            kv_ptr + kv_head * plane,
            tables_ptr + seq.to(tl.int64) * table_stride,
            seq_len - 1,
            low,
            high // KEYS * KEYS,
            high,
            scale,
            cap,
            window,
            block_stride,
            NUM_KV_HEADS * plane,
            HEAD_DIM,
            BLOCK_SIZE,
            PLANES,
            ROWS,
            KEYS,
            DIM,
            REST,
            SOFTCAP,
            WINDOW,
            ONE_QUERY=True,
            DETERMINISTIC=False,
            DOT=DOT,
        )
        # Output addresses are recomputed from a volatile load, which the compiler cannot merge with the first: kept,
        # they would take registers from the loop over keys.
        again = tl.load(query_start_ptr + seq, volatile=True)
        row = again - token.to(tl.int32) + item % row_tiles * ROWS + tl.arange(0, ROWS)
        head = again.to(tl.int64) * (NUM_KV_HEADS * GROUP) + item % per_split // row_tiles * GROUP + row
        partial = (head * num_splits + index) * (HEAD_DIM + 2)
        present = tl.full([ROWS], 1, tl.int1) if GROUP % ROWS == 0 else row < GROUP
        store_rows(partial_ptr + partial, acc, present, 0, DIM, HEAD_DIM)
        if REST > 0:
            store_rows(partial_ptr + partial, acc_rest, present, DIM, REST, HEAD_DIM)
        tl.store(partial_ptr + partial + HEAD_DIM, row_max, mask=present)
        tl.store(partial_ptr + partial + HEAD_DIM + 1, row_sum, mask=present)


@triton.jit
def merge_kernel(
    partial_ptr,
    out_ptr,
    sinks_ptr,  # [Hq] fp32
    query_start_ptr,
    seq_lens_ptr,
    window,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Program (sequence, head, columns): merge the splits of a single query; a sequence without keys gets zeros."""
    seq, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(query_start_ptr + seq)
    if tl.load(query_start_ptr + seq + 1) - token != 1:
        return
    count = split(tl.load(seq_lens_ptr + seq), window, KEYS, SPLIT, SPLITS, WINDOW)[2]
    row = token.to(tl.int64) * NUM_HEADS + head
    index = tl.arange(0, SPLITS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    partial = (row * num_splits + index) * (HEAD_DIM + 2)
    maxima = tl.load(partial_ptr + partial + HEAD_DIM, mask=index < count, other=float("-inf"))
    sums = tl.load(partial_ptr + partial + HEAD_DIM + 1, mask=index < count, other=0.0)
    mask = (index < count)[:, None] & (column < HEAD_DIM)[None, :]
    values = tl.load(partial_ptr + partial[:, None] + column[None, :], mask=mask, other=0.0)

    largest = tl.max(maxima, 0)
    if SINKS:
        sink = tl.load(sinks_ptr + head) * 1.4426950408889634  # log2(e)
        largest = tl.maximum(largest, sink)
    weights = tl.exp2(maxima - tl.where(count > 0, largest, 0.0))
    total = tl.sum(sums * weights, 0)
    if SINKS:
        total += tl.exp2(sink - largest)
    out = tl.sum(values * weights[:, None], 0) / tl.where(count > 0, total, 1.0)
    tl.store(out_ptr + row * HEAD_DIM + column, out.to(out_ptr.dtype.element_ty), mask=column < HEAD_DIM)


def decode_attention(q: Tensor, kv: Tensor, out: Tensor, meta: AttentionMeta, attention: Attention) -> None:
    """Write the rows of `out` that belong to sequences with a single query."""
    num_tokens, num_heads, head_dim = q.shape
    _, planes, num_kv_heads, block_size, _ = kv.shape
    num_seqs, group = meta.seq_lens.shape[0], num_heads // num_kv_heads
    num_splits = min(MAX_SPLITS, triton.cdiv(meta.max_seq_len, min_split(head_dim)))
    dim, rest = head_tiles(head_dim)
    rows, keys, num_warps, num_stages = _shape(head_dim, group, q.element_size())
    scale, cap = score_factors(attention.scale, attention.softcap)
    items = num_seqs * num_splits * num_kv_heads * triton.cdiv(group, rows)
    partial = torch.empty((num_tokens, num_heads, num_splits, head_dim + 2), dtype=torch.float32, device=q.device)
    cut = {"KEYS": keys, "SPLIT": min_split(head_dim), "SPLITS": MAX_SPLITS, "WINDOW": attention.window > 0}
    decode_kernel[(min(NUM_PROGRAMS, items),)](
        *(q, kv, partial, meta.query_start, meta.seq_lens, meta.block_tables),
        *(meta.block_tables.stride(0), kv.stride(0), scale, cap, attention.window, num_seqs, num_splits),
        GROUP=group,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        PLANES=planes,
        SEQS=max(32, triton.next_power_of_2(num_seqs)),
        ROWS=rows,
        DIM=dim,
        REST=rest,
        SOFTCAP=attention.softcap > 0,
        DOT=dot_type(q),
        num_warps=num_warps,
        num_stages=num_stages,
        **cut,
    )
    columns = min(128, triton.next_power_of_2(head_dim))
    merge_kernel[(num_seqs, num_heads, triton.cdiv(head_dim, columns))](
        *(partial, out, attention.sinks, meta.query_start, meta.seq_lens, attention.window, num_splits),
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        COLUMNS=columns,
        SINKS=attention.sinks is not None,
        num_warps=4,
        **cut,
    )


def min_split(head_dim: int) -> int:
    """The least number of keys in a split (except a sequence's last): enough for their loads to overlap."""
    return 256 if 64 < head_dim <= 256 else 512


def _shape(head_dim: int, group: int, itemsize: int) -> tuple[int, int, int, int]:
    """(ROWS, KEYS, num_warps, num_stages): a multiprocessor holds several programs; 16-bit types spill no registers."""
    rows = min(64, max(16, triton.next_power_of_2(group)))
    if itemsize == 4:
        return 16, 16 if head_dim > 256 else 32, 4, 2
    if head_dim > 256:
        return (rows, 32, 4 if rows == 16 else 8, 3) if has_wgmma() else (min(rows, 32), 32, 8, 3)
    if head_dim <= 64 and rows == 64:  # eight warps would spill on sm_80
        return rows, 32, 4, 3
    if 96 < head_dim <= 128 and rows == 16:
        return rows, 64, 2, 2
    if rows == 64 or head_dim > 128 or 64 < head_dim < 96:
        return rows, 32, 8, 3
    return rows, 64 if head_dim in (64, 128) else 32, 4, 3
