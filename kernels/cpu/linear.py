"""Linear layers on the compiled kernels: the weight is packed once, and a row's bits never depend on the other rows.

They widen bf16 and fp16 in registers and multiply in fp32. A processor that multiplies narrow types much faster than
that (AMX) is better off with oneDNN, so it is timed against them, once per process.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from kernels.cpu.library import DTYPES, Library
from kernels.cpu.processor import features
from kernels.linear import pack_linear as onednn

CLEARLY = 1.5  # times faster: less is not worth results that depend on the number of rows
NARROW_PRODUCTS = {torch.bfloat16: {"avx512_bf16", "amx_bf16"}, torch.float16: {"avx512_fp16", "amx_fp16"}}


class PackedLinear:
    """`x @ weight.T + bias` with a weight that was packed once."""

    def __init__(self, library: Library, weight: Tensor, bias: Tensor | None) -> None:
        self._type = DTYPES[weight.dtype]
        self._library = library
        self._outputs, self._inputs = weight.shape
        panel = 2 * library.num_lanes
        self._packed = weight.new_empty(-(-self._outputs // panel) * panel * self._inputs)
        self._bias = None if bias is None else bias.contiguous()
        library.pack_weight(self._type, weight.data_ptr(), self._packed.data_ptr(), self._outputs, self._inputs)
        self._weight_at = self._packed.data_ptr()
        self._bias_at = None if self._bias is None else self._bias.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        if x.dtype is not self._packed.dtype or x.shape[1] != self._inputs:
            raise TypeError(f"expected {self._packed.dtype} of {self._inputs} inputs, not {x.dtype} of {x.shape[1]}")
        x = x.contiguous()
        rows = x.shape[0]
        out = x.new_empty((rows, self._outputs))
        self._library.linear(
            *(self._type, x.data_ptr(), self._weight_at, self._bias_at, out.data_ptr()),
            *(rows, self._outputs, self._inputs, torch.get_num_threads()),
        )
        return out


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
