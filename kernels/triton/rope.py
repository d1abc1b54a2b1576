# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803, SIM102
"""Norm of the heads, rotation, and the write to the KV, in one kernel: one program per token and head."""

import triton
import triton.language as tl
from torch import Tensor


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
    HALF: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
):
    """Heads come as q | k | v, or q | k: q goes to `q_ptr`, k and v to their slot.

    `HALF` is HEAD_DIM / 2, to a power of two.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    num_rows: tl.constexpr = NUM_HEADS + PLANES * NUM_KV_HEADS
    is_q = head < NUM_HEADS
    is_v = head >= NUM_HEADS + NUM_KV_HEADS
    slot = tl.load(slots_ptr + token)
    if (slot < 0) & (head >= NUM_HEADS):
        return

    half: tl.constexpr = HEAD_DIM // 2
    column = tl.arange(0, HALF)
    inside = column < half
    source = qkv_ptr + (token * num_rows + head) * HEAD_DIM
    first = tl.load(source + column, mask=inside, other=0.0)
    second = tl.load(source + half + column, mask=inside, other=0.0)

    if is_q:
        target = q_ptr + (token * NUM_HEADS + head) * HEAD_DIM
        if Q_NORM:
            first, second = norm_halves(first, second, q_norm_ptr, column, inside, half, eps)
    else:
        plane: tl.constexpr = BLOCK_SIZE * HEAD_DIM
        target = kv_ptr + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * HEAD_DIM + (head - NUM_HEADS) * plane
        if K_NORM:
            if not is_v:
                first, second = norm_halves(first, second, k_norm_ptr, column, inside, half, eps)

    if not is_v:
        angle = cos_sin_ptr + tl.load(positions_ptr + token) * HEAD_DIM
        cos = tl.load(angle + column, mask=inside, other=0.0)
        sin = tl.load(angle + half + column, mask=inside, other=0.0)
        a, b = first.to(tl.float32), second.to(tl.float32)
        first = (a * cos - b * sin).to(q_ptr.dtype.element_ty)
        second = (b * cos + a * sin).to(q_ptr.dtype.element_ty)
    tl.store(target + column, first, mask=inside)
    tl.store(target + half + column, second, mask=inside)


@triton.jit
def norm_halves(first, second, weight_ptr, column, inside, half, eps):
    """RMSNorm of a head that comes as two halves; weights fp32."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    inverse = 1.0 / tl.sqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / (2 * half) + eps)
    a *= inverse * tl.load(weight_ptr + column, mask=inside, other=0.0)
    b *= inverse * tl.load(weight_ptr + half + column, mask=inside, other=0.0)
    return a.to(first.dtype), b.to(first.dtype)


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
        rope_and_cache_kernel[(num_tokens, num_heads + planes * num_kv_heads)](
            *(qkv, cos_sin, positions, slots, kv, q, q_norm, k_norm, eps, kv.stride(0)),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=block_size,
            PLANES=planes,
            HALF=half,
            Q_NORM=q_norm is not None,
            K_NORM=k_norm is not None,
            num_warps=max(1, half // 128),
        )
    return q
