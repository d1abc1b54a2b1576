# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Attention of sequences with a single query in the step: each is split over its keys, and the splits merged in order.

A split is a fixed number of keys, so a result depends neither on the batch nor on how many splits run at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.api import AttentionMeta
from kernels.triton.tile import LOG2_E, attend, dot_type

SPLIT = 256  # keys that one program handles
KEYS = 32  # at a time


@triton.jit
def decode_kernel(
    q_ptr,
    kv_ptr,
    partial_ptr,  # [num_tokens, Hq, num_splits, DIM + 2] fp32: weighted sum of values, maximum, sum
    query_start_ptr,
    seq_lens_ptr,
    tables_ptr,
    table_stride,
    block_stride,
    scale,  # times log2(e)
    window,
    num_splits,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    DOT: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Program (sequence, KV head, split): the single query's heads against one run of SPLIT keys."""
    seq, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(query_start_ptr + seq)
    num_queries = tl.load(query_start_ptr + seq + 1) - token
    seq_len = tl.load(seq_lens_ptr + seq)
    low = split * SPLIT
    if window > 0:
        low = tl.maximum(low, (seq_len - window) // KEYS * KEYS)
    high = tl.minimum(seq_len, (split + 1) * SPLIT)
    if (num_queries != 1) | (low >= high):
        return

    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    head = token.to(tl.int64) * (NUM_KV_HEADS * GROUP) + kv_head * GROUP + row
    mask = (row < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + head[:, None] * HEAD_DIM + dim[None, :], mask=mask, other=0.0)
    row_max, row_sum, acc = attend(
        q.to(DOT),
        kv_ptr,
        tables_ptr + seq.to(tl.int64) * table_stride,
        row * 0 + seq_len - 1,
        low,
        high,
        kv_head,
        scale,
        window,
        block_stride,
        NUM_KV_HEADS,
        HEAD_DIM,
        BLOCK_SIZE,
        ROWS,
        KEYS,
        DIM,
        DOT,
    )
    partial = partial_ptr + (head * num_splits + split) * (DIM + 2)
    tl.store(partial[:, None] + dim[None, :], acc, mask=mask)
    tl.store(partial + DIM, row_max, mask=row < GROUP)
    tl.store(partial + DIM + 1, row_sum, mask=row < GROUP)


@triton.jit
def merge_kernel(
    partial_ptr,
    out_ptr,
    query_start_ptr,
    seq_lens_ptr,
    window,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Program (sequence, head): one result from the splits of a single query, in order."""
    seq, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(query_start_ptr + seq)
    if tl.load(query_start_ptr + seq + 1) - token != 1:
        return
    seq_len = tl.load(seq_lens_ptr + seq)
    first = 0
    if window > 0:
        first = tl.maximum(0, (seq_len - window) // KEYS * KEYS) // SPLIT
    row = token.to(tl.int64) * NUM_HEADS + head
    dim = tl.arange(0, DIM)
    total_max = float("-inf")
    total_sum = 0.0
    acc = tl.zeros([DIM], tl.float32)
    for split in range(first, tl.cdiv(seq_len, SPLIT)):
        partial = partial_ptr + (row * num_splits + split) * (DIM + 2)
        part_max = tl.load(partial + DIM)
        new_max = tl.maximum(total_max, part_max)
        keep, add = tl.exp2(total_max - new_max), tl.exp2(part_max - new_max)
        total_sum = total_sum * keep + tl.load(partial + DIM + 1) * add
        acc = acc * keep + tl.load(partial + dim, mask=dim < HEAD_DIM, other=0.0) * add
        total_max = new_max
    out = (acc / total_sum).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * HEAD_DIM + dim, out, mask=dim < HEAD_DIM)


def decode_attention(q: Tensor, kv: Tensor, out: Tensor, meta: AttentionMeta, scale: float, window: int) -> None:
    """Writes the rows of `out` that belong to sequences with one query."""
    num_tokens, num_heads, head_dim = q.shape
    _, _, num_kv_heads, block_size, _ = kv.shape
    num_seqs = meta.seq_lens.shape[0]
    num_splits = triton.cdiv(meta.max_seq_len, SPLIT)
    dim = max(16, triton.next_power_of_2(head_dim))
    partial = torch.empty((num_tokens, num_heads, num_splits, dim + 2), dtype=torch.float32, device=q.device)
    decode_kernel[(num_seqs, num_kv_heads, num_splits)](
        *(q, kv, partial, meta.query_start, meta.seq_lens, meta.block_tables),
        *(meta.block_tables.stride(0), kv.stride(0), scale * LOG2_E, window, num_splits),
        GROUP=num_heads // num_kv_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        ROWS=max(16, triton.next_power_of_2(num_heads // num_kv_heads)),
        KEYS=KEYS,
        DIM=dim,
        DOT=dot_type(q),
        SPLIT=SPLIT,
        num_warps=4,
        num_stages=3,
    )
    merge_kernel[(num_seqs, num_heads)](
        *(partial, out, meta.query_start, meta.seq_lens, window, num_splits),
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        KEYS=KEYS,
        DIM=dim,
        SPLIT=SPLIT,
        num_warps=1,
    )
