# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Weights as `kernels.triton.product` reads them: as they are, or packed in integers of 8 or 4 bits, with scales.

A run of 128 inputs is packed into words of 16 bits, of which two follow each other in a register: integer j of a run's
words belongs to part j of its inputs. With 4 bits a part is a group, whose inputs share a scale. Integers are stored
plus half of their range, so none is negative.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.quantize import GROUP, quantized
from kernels.triton.product import RUN, unpack

OUTPUTS_AT_ONCE = 64


class Weights:
    """Weights [experts, out, in]; a plain linear layer has one expert."""

    def __init__(self, weight: Tensor, bits: int = 16) -> None:
        """Raises ValueError if the weight cannot be quantised to `bits`."""
        self.num_experts, self.outputs, self.inputs = weight.shape
        self.bits = bits
        self.scales: Tensor | None = None  # [experts, groups, out] fp32; with 8 bits there is one group
        if bits == 16:
            self.values = weight.contiguous()
            return
        packed = [_packed(*quantized(of_expert, bits), bits) for of_expert in weight]
        self.values = torch.stack([words for words, _ in packed])
        self.scales = torch.stack([scales for _, scales in packed])

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The values that the integers stand for, [experts, out, in]."""
        out = self.values.new_empty((self.num_experts, self.outputs, self.inputs), dtype=dtype)
        grid = (triton.cdiv(self.outputs, OUTPUTS_AT_ONCE), triton.cdiv(self.inputs, RUN), self.num_experts)
        widen_kernel[grid](
            *(self.values, self.scales, out),
            INPUTS=self.inputs,
            OUTPUTS=self.outputs,
            ROWS=OUTPUTS_AT_ONCE,
            BITS=self.bits,
            RUN=RUN,
            num_warps=4,
        )
        return out


def _packed(integers: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Pack int8 [out, in] with scales [out, groups]: int16 [out, words] and fp32 [groups, out]."""
    outputs, inputs = integers.shape
    runs = triton.cdiv(inputs, RUN)
    padded = torch.zeros(outputs, runs * RUN, dtype=torch.uint8, device=integers.device)
    padded[:, :inputs] = integers + 2 ** (bits - 1)
    parts = padded.view(outputs, runs, 16 // bits, -1)
    if bits == 4:
        parts = parts[:, :, 0::2] | parts[:, :, 1::2] << 4  # two bytes of each word
        scales = torch.nn.functional.pad(scales, (0, RUN // GROUP * runs - scales.shape[1]))
    return parts.transpose(2, 3).contiguous().view(torch.int16).flatten(1), scales.T.contiguous()


@triton.jit
def widen_kernel(
    words_ptr,
    scales_ptr,
    out_ptr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BITS: tl.constexpr,
    RUN: tl.constexpr,
):
    """Program (tile of outputs, run, expert)."""
    parts: tl.constexpr = 16 // BITS
    part: tl.constexpr = RUN // parts
    run, num_runs, expert = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    output = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = output < OUTPUTS
    row = expert * OUTPUTS + output
    place = tl.arange(0, part)
    words_at = (row * num_runs + run) * part
    words = tl.load(words_ptr + words_at[:, None] + place[None, :], mask=inside[:, None], other=0)
    for index in tl.static_range(parts):
        group = expert * num_runs * parts + run * parts + index if BITS == 4 else expert
        scale = tl.load(scales_ptr + group * OUTPUTS + output, mask=inside, other=0.0)
        values = unpack(words, index, BITS, tl.float32, False) * scale[:, None]
        column = run * RUN + index * part + place
        mask = inside[:, None] & (column < INPUTS)[None, :]
        tl.store(out_ptr + (row * INPUTS)[:, None] + column[None, :], values.to(out_ptr.dtype.element_ty), mask=mask)
