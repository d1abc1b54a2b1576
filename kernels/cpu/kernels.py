"""The ops of `Kernels` in compiled code: allocate the result, hand over addresses.

Threads are torch's own, as many as `torch.get_num_threads()`. A row's bits do not depend on how many there are, nor on
the rest of the batch, nor on whether its token came in a prefill or in a decode step.
"""

from functools import cache

import torch
from torch import Tensor

from kernels.api import AttentionMeta, Linear
from kernels.cpu.build import BuildError
from kernels.cpu.library import DTYPES, Library
from kernels.cpu.linear import PackedLinear, prefers_onednn
from kernels.cpu.processor import Level, features, supported
from kernels.linear import pack_linear as onednn


class Unavailable(Exception):
    """The compiled kernels cannot be had on this machine; the message says why."""


@cache
def library(level: Level) -> Library:
    """One per process. Raises Unavailable."""
    try:
        return Library(level)
    except (BuildError, OSError) as error:
        raise Unavailable(str(error)) from error


class CPUKernels:
    """Compiled kernels for tensors of one type: activations, weights and KV alike."""

    name = "cpu"

    def __init__(self, dtype: torch.dtype, level: Level | None = None) -> None:
        """Raises Unavailable if they are not built and cannot be, or do not compute in `dtype`."""
        if dtype not in DTYPES:
            raise Unavailable(f"they do not compute in {dtype}")
        self._type = DTYPES[dtype]
        self._dtype = dtype
        self.level = level or supported(features())[0]
        self._library = library(self.level)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        x = self._checked(x)
        out = torch.empty_like(x)
        rows, size = x.shape
        self._library.rms_norm(
            self._type, x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, size, eps, torch.get_num_threads()
        )
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x, residual = self._checked(x), self._checked(residual)
        out, total = torch.empty_like(x), torch.empty_like(x)
        rows, size = x.shape
        self._library.add_rms_norm(
            self._type,
            *(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), total.data_ptr()),
            *(rows, size, eps, torch.get_num_threads()),
        )
        return out, total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Kernels`."""
        gate_up = self._checked(gate_up)
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty((rows, size))
        self._library.silu_mul(self._type, gate_up.data_ptr(), out.data_ptr(), rows, size, torch.get_num_threads())
        return out

    def rope_and_cache(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        kv: Tensor,
        num_heads: int,
        num_kv_heads: int,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> Tensor:
        """See `Kernels`."""
        qkv = self._checked(qkv)
        num_tokens = qkv.shape[0]
        block_size, head_dim = kv.shape[3:]
        q = qkv.new_empty((num_tokens, num_heads, head_dim))
        self._library.rope_and_cache(
            self._type,
            *(qkv.data_ptr(), cos_sin.data_ptr(), positions.data_ptr(), slots.data_ptr(), kv.data_ptr(), q.data_ptr()),
            None if q_norm is None else q_norm.data_ptr(),
            None if k_norm is None else k_norm.data_ptr(),
            *(eps, num_tokens, num_heads, num_kv_heads, head_dim, block_size, kv.stride(0), torch.get_num_threads()),
        )
        return q

    def paged_attention(self, q: Tensor, kv: Tensor, meta: AttentionMeta, scale: float, window: int = 0) -> Tensor:
        """See `Kernels`."""
        q = self._checked(q)
        out = torch.empty_like(q)
        tables = meta.block_tables
        _, num_heads, head_dim = q.shape
        _, _, num_kv_heads, block_size, _ = kv.shape
        self._library.paged_attention(
            *(self._type, q.data_ptr(), kv.data_ptr(), out.data_ptr()),
            *(meta.query_start.data_ptr(), meta.seq_lens.data_ptr(), tables.data_ptr()),
            *(tables.shape[0], tables.stride(0), num_heads, num_kv_heads, head_dim, block_size, kv.stride(0)),
            *(scale, window, torch.get_num_threads()),
        )
        return out

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """See `Kernels`. Where oneDNN is clearly faster it is used, and then bits may depend on the number of rows."""
        weight = self._checked(weight)
        return (
            onednn(weight, bias)
            if prefers_onednn(self._library, self._dtype)
            else PackedLinear(self._library, weight, bias)
        )

    def _checked(self, x: Tensor) -> Tensor:
        """`x`, made contiguous: compiled code that misreads a type would read past its end."""
        if x.dtype is not self._dtype:
            raise TypeError(f"kernels were loaded for {self._dtype}, not {x.dtype}")
        return x.contiguous()
