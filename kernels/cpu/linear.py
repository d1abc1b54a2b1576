"""Linear layers on the compiled kernels: the weight is packed once, and a row's bits never depend on the other rows.

bf16 goes through the tiles of AMX where there are any. Else bf16, and fp16 always, are widened in registers and
multiplied in fp32; a processor that multiplies them much faster than that is better off with oneDNN: where results need
not be deterministic it is timed against ours, once per process.
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

CLEARLY = 1.5  # times faster: less is not worth results that depend on the number of rows
NARROW_PRODUCTS = {torch.bfloat16: {"avx512_bf16"}, torch.float16: {"avx512_fp16", "amx_fp16"}}


class PackedLinear:
    """`x @ weight.T + bias` with a weight [out, in] that was packed once, in its own type or in 8 or 4 bits."""

    def __init__(self, library: Library, weight: Tensor, bias: Tensor | None, bits: int = 16) -> None:
        """ValueError where the weight cannot be rounded to so many bits."""
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
    """The activation of `x @ weight.T + bias`, whose [T, 2F] are never written; packed as `PackedLinear`."""

    def __init__(
        self, library: Library, weight: Tensor, bias: Tensor | None, activation: Activation, bits: int = 16
    ) -> None:
        """weight: [2F, in], bias: [2F], gates before ups. ValueError where the weight cannot be rounded."""
        self._library = library
        self._type, self._activation = DTYPES[weight.dtype], ACTIVATIONS[activation]
        self._outputs = weight.shape[0] // 2
        weight = _in_turn(weight, library.num_lanes).unsqueeze(0)
        bias = None if bias is None else _in_turn(bias, library.num_lanes).unsqueeze(0)
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


def _in_turn(gate_up: Tensor, lanes: int) -> Tensor:
    """[2F, ...] -> the same rows, `lanes` gates and the `lanes` ups that they gate in turn: a panel. Missing are 0."""
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
    """Whether oneDNN is clearly faster here at 32 rows. Costs milliseconds, and only where it could be."""
    if not NARROW_PRODUCTS.get(dtype, set()) & features():
        return False
    weight, x = torch.ones(1024, 1024, dtype=dtype), torch.ones(32, 1024, dtype=dtype)
    own, other = PackedLinear(library, weight, None), onednn(weight, None)
    return min(_seconds(own, x) for _ in range(5)) > CLEARLY * min(_seconds(other, x) for _ in range(5))


def _seconds(linear: Callable[[Tensor], Tensor], x: Tensor) -> float:
    started = time.perf_counter()
    linear(x)
    return time.perf_counter() - started
