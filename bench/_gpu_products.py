"""Benchmarks of matrix products on a GPU: mixtures of experts and linear layers, in bf16 and with quantised weights."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from bench._gpu import CALLS, DEVICE, randn, seconds
from kernels.api import Linear
from kernels.quantize import bytes_per_weight
from kernels.triton import TritonKernels

EXPERT_SHAPES = [(64, 128, 8, 2048, 768), (8192, 128, 8, 2048, 768)]  # tokens, experts, of a token, H, F
LINEAR_SHAPES = [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336)]  # outputs, inputs
LINEAR_ROWS, QUANTIZED_ROWS = (1, 64, 256, 2048), (1, 16, 64, 256, 2048)


def expert_lines(repeats: int, copy_rate: float, flops: float) -> Iterator[str]:
    """Yield TFLOP/s, and the share of the bound by reading the weights once or by multiplying."""
    yield "\nmixture of experts                    TFLOP/s   of roofline"
    for num_tokens, num_experts, per_token, hidden, ffn in EXPERT_SHAPES:
        gate_up, down = randn(num_experts, 2 * ffn, hidden), randn(num_experts, hidden, ffn)
        x, weights = randn(num_tokens, hidden), torch.rand(num_tokens, per_token, device=DEVICE)
        chosen = torch.rand(num_tokens, num_experts, device=DEVICE).topk(per_token).indices
        num_weights = 3 * hidden * ffn * len(set(chosen.flatten().tolist()))
        num_flops = 2 * num_tokens * per_token * 3 * hidden * ffn
        for bits in (16, 8, 4):
            experts = TritonKernels().pack_experts(gate_up, down, "silu", bits=bits)
            experts_s = seconds(partial(experts, x, chosen, weights), repeats)
            num_bytes = num_weights * (2 if bits == 16 else bytes_per_weight(bits, ffn))
            bound_s = max(num_bytes / copy_rate, num_flops / flops)
            shape = f"{num_tokens} tokens, {per_token} of {num_experts}, {hidden} to {ffn}"
            kind = "" if bits == 16 else f"   int{bits}"
            yield f"{shape:36} {num_flops / experts_s / 1e12:8.0f}   {bound_s / experts_s:.0%}{kind}"


def linear_lines(repeats: int, copy_rate: float, flops: float) -> Iterator[str]:
    """Yield TFLOP/s, the share of the bound by reading the weights or multiplying, and torch's time over ours."""
    yield "\nlinear, deterministic                 TFLOP/s   of roofline   of torch's"
    for num_outputs, num_inputs in LINEAR_SHAPES:
        weight = randn(num_outputs, num_inputs)
        linears = [TritonKernels(deterministic=own).pack_linear(weight, None) for own in (True, False)]
        for num_rows in LINEAR_ROWS:
            x = randn(num_rows, num_inputs)
            own_s, torch_s = (seconds(partial(linear, x), repeats) for linear in linears)
            num_flops = 2 * num_rows * num_outputs * num_inputs
            bound_s = max(weight.nbytes / copy_rate, num_flops / flops)
            shape = f"{num_rows} rows, {num_inputs} to {num_outputs}"
            yield f"{shape:36} {num_flops / own_s / 1e12:8.0f}   {bound_s / own_s:11.0%}   {torch_s / own_s:.2f}x"


def quantized_lines(repeats: int, copy_rate: float, flops: float) -> Iterator[str]:
    """Yield, for int8 and int4, GB/s or TFLOP/s, the share of the bound by reading the integers and scales or
    multiplying, whichever takes longer, and torch's time in bf16 over ours."""
    yield "\nlinear, quantised: int8, int4         rate, of roofline, of torch's in bf16"
    for num_outputs, num_inputs in LINEAR_SHAPES:
        weight = randn(num_outputs, num_inputs)
        linears = {bits: from_memory(weight, bits) for bits in (16, 8, 4)}
        for num_rows in QUANTIZED_ROWS:
            x = randn(num_rows, num_inputs)
            took_s = {bits: seconds(partial(linear, x), repeats) for bits, linear in linears.items()}
            num_flops = 2 * num_rows * weight.numel()
            line = f"{f'{num_rows} rows, {num_inputs} to {num_outputs}':36}"
            for bits in (8, 4):
                num_bytes = weight.numel() * bytes_per_weight(bits, num_inputs)
                bound_s = max(num_bytes / copy_rate, num_flops / flops)
                rate = f"{num_flops / took_s[bits] / 1e12:.0f} TFLOP/s"
                if num_bytes / copy_rate == bound_s:
                    rate = f"{num_bytes / took_s[bits] / 1e9:.0f} GB/s"
                line += f" {rate:>12} {bound_s / took_s[bits]:4.0%} {took_s[16] / took_s[bits]:.2f}x "
            yield line.rstrip()


def from_memory(weight: Tensor, bits: int) -> Linear:
    """Return a linear layer that uses one copy of its weight after the other, so that none stays in the L2 cache."""
    copies = cycle([TritonKernels().pack_linear(weight.clone(), None, bits) for _ in range(CALLS)])

    def run(x: Tensor) -> Tensor:
        return next(copies)(x)

    return run
