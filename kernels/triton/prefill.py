# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Prefill attention, for sequences with several queries in the step: tiles of queries, each over all keys it sees.

Query heads that share a KV head are rows of one tile, so their keys and values are read once for all of them.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.api import Attention, AttentionMeta
from kernels.triton.tile import attend, dot_type, find, has_wgmma, head_tiles, load_rows, score_factors, store_rows


@triton.jit
def prefill_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    sinks_ptr,  # [Hq] fp32
    query_start_ptr,
    seq_lens_ptr,
    tables_ptr,
    table_stride,
    block_stride,
    scale,
    cap,
    window,
    num_seqs,
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
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    DOT: tl.constexpr,
):
    """Program (tile, KV head). Row r of a sequence is query r // GROUP, head r % GROUP of those with this KV head."""
    place = tl.arange(0, SEQS)
    starts = tl.load(query_start_ptr + place, mask=place < num_seqs, other=0)
    ends = tl.load(query_start_ptr + place + 1, mask=place < num_seqs, other=0)
    lengths = ends - starts
    if not DETERMINISTIC:
        lengths = tl.where(lengths > 1, lengths, 0)
    counts = tl.cdiv(lengths * GROUP, ROWS)
    tile = tl.sum(counts, 0) - 1 - tl.program_id(0)  # last tiles first, as they have the most keys
    if tile < 0:
        return
    seq, index = find(counts, place, tile)
    kv_head = tl.program_id(1)
    query_start = tl.load(query_start_ptr + seq)
    num_queries = tl.load(query_start_ptr + seq + 1) - query_start
    first_position = tl.load(seq_lens_ptr + seq) - num_queries
    first_row = index * ROWS
    row = first_row + tl.arange(0, ROWS)
    query = row // GROUP
    head = kv_head * GROUP + row % GROUP
    present = query < num_queries
    at = ((query_start + query).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head) * HEAD_DIM
    q = load_rows(q_ptr + at, present, 0, DIM, HEAD_DIM, True).to(DOT)
    q_rest = q
    if REST > 0:
        q_rest = load_rows(q_ptr + at, present, DIM, REST, HEAD_DIM, True).to(DOT)

    first_query = first_row // GROUP
    last_query = tl.minimum((first_row + ROWS - 1) // GROUP, num_queries - 1)
    low = 0
    if WINDOW:
        low = tl.maximum(0, first_position + first_query + 1 - window) // KEYS * KEYS
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    if SINKS:  # a sink is like a first key with a value of zero
        row_max = tl.load(sinks_ptr + head) * 1.4426950408889634  # log2(e)
        row_sum = row_sum + 1.0
    plane: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    _, row_sum, acc, acc_rest = attend(
        q,
        q_rest,
        row_max,
        row_sum,
        kv_ptr + kv_head * plane,
        tables_ptr + seq.to(tl.int64) * table_stride,
        first_position + query,
        low,
        (first_position + first_query + 1) // KEYS * KEYS,
        first_position + last_query + 1,
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
        ONE_QUERY=False,
        DETERMINISTIC=DETERMINISTIC,
        DOT=DOT,
    )
    # Output addresses are recomputed from a volatile load, which the compiler cannot merge with the first: kept, they
    # would take registers from the loops over keys.
    again = tl.load(query_start_ptr + seq, volatile=True)
    row = first_row + again - query_start + tl.arange(0, ROWS)
    query = row // GROUP
    present = query < num_queries
    at = ((again + query).to(tl.int64) * (NUM_KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP) * HEAD_DIM
    row_sum = tl.where(present & (row_sum != 0.0), row_sum, 1.0)  # a padding sequence has no keys, and gets zeros
    store_rows(out_ptr + at, acc / row_sum[:, None], present, 0, DIM, HEAD_DIM)
    if REST > 0:
        store_rows(out_ptr + at, acc_rest / row_sum[:, None], present, DIM, REST, HEAD_DIM)


def prefill_attention(
    q: Tensor, kv: Tensor, out: Tensor, meta: AttentionMeta, attention: Attention, *, deterministic: bool = False
) -> None:
    """Write the rows of `out` that belong to sequences with more than one query, or if `deterministic` all rows.

    In the latter case a row's bits depend neither on the other rows nor on which of them share its tile.
    """
    num_tokens, num_heads, head_dim = q.shape
    _, planes, num_kv_heads, block_size, _ = kv.shape
    num_seqs, group = meta.seq_lens.shape[0], num_heads // num_kv_heads
    dim, rest = head_tiles(head_dim)
    rows, keys, num_warps, num_stages = _shape(
        dim, rest, 0 if deterministic else meta.max_query_len * group, q.element_size()
    )
    scale, cap = score_factors(attention.scale, attention.softcap)
    num_tiles = num_seqs + num_tokens * group // rows  # an upper bound
    prefill_kernel[(num_tiles, num_kv_heads)](
        *(q, kv, out, attention.sinks, meta.query_start, meta.seq_lens, meta.block_tables),
        *(meta.block_tables.stride(0), kv.stride(0), scale, cap, attention.window, num_seqs),
        GROUP=group,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        PLANES=planes,
        SEQS=max(32, triton.next_power_of_2(num_seqs)),
        ROWS=rows,
        KEYS=keys,
        DIM=dim,
        REST=rest,
        SOFTCAP=attention.softcap > 0,
        WINDOW=attention.window > 0,
        SINKS=attention.sinks is not None,
        DETERMINISTIC=deterministic,
        DOT=dot_type(q),
        num_warps=num_warps,
        num_stages=num_stages,
    )


def _shape(dim: int, rest: int, num_rows: int, itemsize: int) -> tuple[int, int, int, int]:
    """(ROWS, KEYS, num_warps, num_stages) for sequences of up to `num_rows` rows, or of any number if that is 0.

    With 16-bit types no register spills.
    """
    width = dim + rest
    if itemsize == 4:
        return (16, 16, 4, 1) if width > 256 else (16, 32, 4, 2)
    if 0 < num_rows <= 16:
        return 16, 32, 8 if width > 128 else 4, 2
    if width > 256:
        return 32, 32, 8, 2
    if width > 128:
        return (128, 32 if rest else 64, 8, 2) if has_wgmma() else (64, 16 if rest else 32, 8, 2)
    if width == 128 and has_wgmma():
        return 64, 64, 4, 3  # two programs to a multiprocessor: one multiplies while the other takes exponentials
    return 128, 64 if has_wgmma() or width <= 64 else 32, 8, 3
