"""Linear layers on the compiled kernels: weights are packed once, and a row's bits never depend on the other rows.

bf16 runs on AMX tiles where the processor has them, or else with AVX512-BF16 where that is fast. Other bf16, and in any
case fp16, is widened in registers and multiplied in fp32. Processors with fast 16-bit products may do better with
oneDNN, so where results need not be deterministic it is timed against these kernels, once per process and dtype.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from kernels.api import Activation
from kernels.cpu.library import ACTIVATIONS, DTYPES, Library
from kernels.cpu.processor import features
from kernels.cpu.weights import PackedWeights
from kernels.linear import pack_linear as onednn

CLEARLY = 1.5  # how many times faster oneDNN must be to justify results that depend on the number of rows
NARROW_PRODUCTS = {torch.bfloat16: {"avx512_bf16"}, torch.float16: {"avx512_fp16", "amx_fp16"}}


class PackedLinear:
    """`x @ weight.T + bias` with weight [out, in], packed once in its own dtype or in 8 or 4 bits."""

    def __init__(self, library: Library, weight: Tensor, bias: Tensor | None, bits: int = 16) -> None:
        """Raises ValueError if the weight cannot be quantised to `bits`."""
        self._library = library
        self._type = DTYPES[weight.dtype]
        self._weights = PackedWeights(library, weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0), bits)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        weights, x, rows = self._weights, _checked(x, self._weights), x.shape[0]
        out = self._library.result(rows, weights.outputs, dtype=x.dtype)
        self._library.linear(self._type, weights.address, x.data_ptr(), out.data_ptr(), rows, torch.get_num_threads())
        return out


class PackedGated:
    """Gated activation of `x @ weight.T + bias`; the [T, 2F] product is never stored. Packed as in `PackedLinear`."""

    def __init__(
        self, library: Library, weight: Tensor, bias: Tensor | None, activation: Activation, bits: int = 16
    ) -> None:
        """weight: [2F, in], bias: [2F], gates before ups. Raises ValueError if the weight cannot be quantised."""
        self._library = library
        self._type, self._activation = DTYPES[weight.dtype], ACTIVATIONS[activation]
        self._outputs = weight.shape[0] // 2
        weight = _interleaved(weight, library.num_lanes).unsqueeze(0)
        bias = None if bias is None else _interleaved(bias, library.num_lanes).unsqueeze(0)
        self._weights = PackedWeights(library, weight, bias, bits)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, F]."""
        weights, x, rows = self._weights, _checked(x, self._weights), x.shape[0]
        out = self._library.result(rows, self._outputs, dtype=x.dtype)
        self._library.linear_gated(
            *(self._type, weights.address, x.data_ptr(), out.data_ptr(), rows, self._outputs),
            *(self._activation, torch.get_num_threads()),
        )
        return out


def _interleaved(gate_up: Tensor, lanes: int) -> Tensor:
    """Reorder [2F, ...] into panels of `lanes` gates and their `lanes` ups; F is padded with zeros to fill the last."""
    halves = gate_up.view(2, -1, *gate_up.shape[1:])
    missing = halves.new_zeros(2, -halves.shape[1] % lanes, *gate_up.shape[1:])
    parts = torch.cat((halves, missing), dim=1).view(2, -1, lanes, *gate_up.shape[1:])
    return parts.transpose(0, 1).flatten(0, 2)


def _checked(x: Tensor, weights: PackedWeights) -> Tensor:
    if x.dtype is not weights.dtype or x.shape[1] != weights.inputs:
        raise TypeError(f"expected {weights.dtype} of {weights.inputs} inputs, not {x.dtype} of {x.shape[1]}")
    return x.contiguous()


@cache
def prefers_onednn(library: Library, dtype: torch.dtype) -> bool:
    """Whether oneDNN is clearly faster here at 32 rows. Times both (milliseconds) only where it could be."""
    if not NARROW_PRODUCTS.get(dtype, set()) & features():
        return False
    weight, x = torch.ones(1024, 1024, dtype=dtype), torch.ones(32, 1024, dtype=dtype)
    own, other = PackedLinear(library, weight, None), onednn(weight, None)
    return min(_seconds(own, x) for _ in range(5)) > CLEARLY * min(_seconds(other, x) for _ in range(5))


def _seconds(linear: Callable[[Tensor], Tensor], x: Tensor) -> float:
    started = time.perf_counter()
    linear(x)
    return time.perf_counter() - started
