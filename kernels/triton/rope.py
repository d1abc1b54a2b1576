# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Norm of q and k per head, RoPE, and the KV write in one kernel: a program handles some heads of one token."""

import triton
import triton.language as tl
from torch import Tensor

TILE = 1024  # pairs of dimensions that one program rotates


@triton.jit
def rope_and_cache_kernel(
    qkv_ptr,
    cos_sin_ptr,
    positions_ptr,
    slots_ptr,
    kv_ptr,
    q_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    block_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PLANES: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
):
    """Program (token, tile of heads). Heads come as q | k | v, or q | k; q goes to `q_ptr`, k and v to their slot.

    `HALF` is HEAD_DIM / 2, rounded up to a power of two.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    num_rows: tl.constexpr = NUM_HEADS + PLANES * NUM_KV_HEADS
    is_q, is_kv = head < NUM_HEADS, head >= NUM_HEADS
    is_v = head >= NUM_HEADS + NUM_KV_HEADS
    half: tl.constexpr = HEAD_DIM // 2
    column = tl.arange(0, HALF)
    inside = column < half
    present = (head < num_rows)[:, None] & inside[None, :]
    source = qkv_ptr + ((token * num_rows + head) * HEAD_DIM)[:, None] + column[None, :]
    first = tl.load(source, mask=present, other=0.0)
    second = tl.load(source + half, mask=present, other=0.0)
    if Q_NORM:
        first, second = norm_halves(first, second, is_q, q_norm_ptr, column, inside, half, eps)
    if K_NORM:
        is_k = is_kv & (head < NUM_HEADS + NUM_KV_HEADS)
        first, second = norm_halves(first, second, is_k, k_norm_ptr, column, inside, half, eps)

    angle = cos_sin_ptr + tl.load(positions_ptr + token) * HEAD_DIM + column
    cos = tl.load(angle, mask=inside, other=0.0)[None, :]
    sin = tl.load(angle + half, mask=inside, other=0.0)[None, :]
    a, b = first.to(tl.float32), second.to(tl.float32)
    first = tl.where(is_v[:, None], first, (a * cos - b * sin).to(first.dtype))
    second = tl.where(is_v[:, None], second, (b * cos + a * sin).to(second.dtype))

    target = q_ptr + ((token * NUM_HEADS + head) * HEAD_DIM)[:, None] + column[None, :]
    tl.store(target, first, mask=present & is_q[:, None])
    tl.store(target + half, second, mask=present & is_q[:, None])
    slot = tl.load(slots_ptr + token)
    plane: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    block = kv_ptr + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * HEAD_DIM
    target = block + ((head - NUM_HEADS) * plane)[:, None] + column[None, :]
    written = present & (is_kv & (head * 0 + slot >= 0))[:, None]
    tl.store(target, first, mask=written)
    tl.store(target + half, second, mask=written)


@triton.jit
def norm_halves(first, second, chosen, weight_ptr, column, inside, half, eps):
    """Apply RMSNorm to the `chosen` heads, given as two halves; leave the others. Weights are fp32."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    inverse = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * half) + eps)
    a *= inverse[:, None] * tl.load(weight_ptr + column, mask=inside, other=0.0)[None, :]
    b *= inverse[:, None] * tl.load(weight_ptr + half + column, mask=inside, other=0.0)[None, :]
    return tl.where(chosen[:, None], a.to(first.dtype), first), tl.where(chosen[:, None], b.to(second.dtype), second)


def rope_and_cache(
    qkv: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    kv: Tensor,
    num_heads: int,
    num_kv_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """See `Kernels`; qkv contiguous."""
    _, planes, _, block_size, head_dim = kv.shape
    num_tokens, half = qkv.shape[0], triton.next_power_of_2(head_dim // 2)
    q = qkv.new_empty((num_tokens, num_heads, head_dim))
    if num_tokens:
        num_rows = num_heads + planes * num_kv_heads
        heads = min(max(1, TILE // half), triton.next_power_of_2(num_rows))
        rope_and_cache_kernel[(num_tokens, triton.cdiv(num_rows, heads))](
            *(qkv, cos_sin, positions, slots, kv, q, q_norm, k_norm, eps, kv.stride(0)),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=block_size,
            PLANES=planes,
            HEADS=heads,
            HALF=half,
            Q_NORM=q_norm is not None,
            K_NORM=k_norm is not None,
            num_warps=max(1, heads * half // 256),
        )
    return q
