# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""RMSNorm, alone and fused with the addition of the residual: one program per row."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(x_ptr, weight_ptr, out_ptr, size, eps, BLOCK: tl.constexpr):
    """`out = x / sqrt(mean(x²) + eps) * weight` in fp32, cast once."""
    row = tl.program_id(0).to(tl.int64) * size
    column = tl.arange(0, BLOCK)
    inside = column < size
    x = tl.load(x_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 0) / size + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    tl.store(out_ptr + row + column, (x * inverse * weight).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_rms_norm_kernel(x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, size, eps, BLOCK: tl.constexpr):
    """`total = x + residual`, rounded to their type; `out = rms_norm(total)`."""
    row = tl.program_id(0).to(tl.int64) * size
    column = tl.arange(0, BLOCK)
    inside = column < size
    x = tl.load(x_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    total = (x + residual).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + row + column, total, mask=inside)
    wide = total.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / size + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    tl.store(out_ptr + row + column, (wide * inverse * weight).to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Kernels.rms_norm`; x: [T, H], contiguous."""
    out = torch.empty_like(x)
    rows, size = x.shape
    if rows:
        block = triton.next_power_of_2(size)
        rms_norm_kernel[(rows,)](x, weight, out, size, eps, BLOCK=block, num_warps=_num_warps(block))
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `Kernels.add_rms_norm`; x, residual: [T, H], contiguous."""
    out, total = torch.empty_like(x), torch.empty_like(x)
    rows, size = x.shape
    if rows:
        block = triton.next_power_of_2(size)
        add_rms_norm_kernel[(rows,)](
            x, residual, weight, out, total, size, eps, BLOCK=block, num_warps=_num_warps(block)
        )
    return out, total


def _num_warps(block: int) -> int:
    return min(16, max(1, block // 512))
