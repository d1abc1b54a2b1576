"""A linear layer per head, each over its own part of the row."""

import torch
from torch import Tensor

from kernels.api import Kernels, Linear


def pack_heads(kernels: Kernels, weight: Tensor) -> Linear:
    """[T, heads * in] -> [T, heads * out] with weight [heads, out, in].

    On a CPU a product per head, so that a row's bits do not depend on the other rows; a GPU takes all heads at once.
    """
    num_heads, _, num_inputs = weight.shape
    if weight.device.type == "cuda":
        transposed = weight.transpose(1, 2).contiguous()

        def all_at_once(x: Tensor) -> Tensor:
            by_head = x.view(-1, num_heads, num_inputs).transpose(0, 1)  # [heads, T, in]
            return torch.bmm(by_head, transposed).transpose(0, 1).flatten(1)

        return all_at_once
    linears = [kernels.pack_linear(head, None) for head in weight]

    def one_by_one(x: Tensor) -> Tensor:
        parts = x.view(-1, num_heads, num_inputs).unbind(1)
        return torch.cat([linear(part.contiguous()) for linear, part in zip(linears, parts, strict=True)], dim=-1)

    return one_by_one
