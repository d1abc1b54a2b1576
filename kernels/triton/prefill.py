# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Attention of sequences with several queries in the step: tiles of queries, each over all the keys that it sees.

The heads that share a KV head are rows of one tile, so its keys and values are read once for all of them.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.api import AttentionMeta
from kernels.triton.tile import LOG2_E, attend, dot_type

KEYS = 64  # at a time


@triton.jit
def prefill_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    query_start_ptr,
    seq_lens_ptr,
    tables_ptr,
    table_stride,
    block_stride,
    scale,  # times log2(e)
    window,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    DOT: tl.constexpr,
):
    """Program (sequence, KV head, tile): row r of a sequence is query r // GROUP, head r % GROUP of the KV head's."""
    seq, kv_head = tl.program_id(0), tl.program_id(1)
    query_start = tl.load(query_start_ptr + seq)
    num_queries = tl.load(query_start_ptr + seq + 1) - query_start
    first_row = tl.program_id(2) * ROWS
    if (num_queries < 2) | (first_row >= num_queries * GROUP):
        return
    first_position = tl.load(seq_lens_ptr + seq) - num_queries

    row = first_row + tl.arange(0, ROWS)
    query = row // GROUP
    dim = tl.arange(0, DIM)
    head = kv_head * GROUP + row % GROUP
    at = ((query_start + query).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head)[:, None] * HEAD_DIM + dim[None, :]
    mask = (query < num_queries)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + at, mask=mask, other=0.0).to(DOT)

    last_query = tl.minimum((first_row + ROWS - 1) // GROUP, num_queries - 1)
    low = 0
    if window > 0:
        low = tl.maximum(0, first_position + first_row // GROUP + 1 - window) // KEYS * KEYS
    _, row_sum, acc = attend(
        q,
        kv_ptr,
        tables_ptr + seq.to(tl.int64) * table_stride,
        first_position + query,
        low,
        first_position + last_query + 1,
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
    row_sum = tl.where(query < num_queries, row_sum, 1.0)
    tl.store(out_ptr + at, (acc / row_sum[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


def prefill_attention(q: Tensor, kv: Tensor, out: Tensor, meta: AttentionMeta, scale: float, window: int) -> None:
    """Writes the rows of `out` that belong to sequences with more than one query."""
    _, num_heads, head_dim = q.shape
    _, _, num_kv_heads, block_size, _ = kv.shape
    group = num_heads // num_kv_heads
    rows = 64 if meta.max_query_len * group > 16 else 16
    grid = (meta.seq_lens.shape[0], num_kv_heads, triton.cdiv(meta.max_query_len * group, rows))
    prefill_kernel[grid](
        *(q, kv, out, meta.query_start, meta.seq_lens, meta.block_tables),
        *(meta.block_tables.stride(0), kv.stride(0), scale * LOG2_E, window),
        GROUP=group,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        ROWS=rows,
        KEYS=KEYS,
        DIM=max(16, triton.next_power_of_2(head_dim)),
        DOT=dot_type(q),
        num_warps=4,
        num_stages=2,
    )
