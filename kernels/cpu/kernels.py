"""The ops of `Kernels` in compiled code: each allocates its result and passes addresses to the library.

Threads are torch's own, `torch.get_num_threads()` of them. A row's bits depend neither on the number of threads, nor on
the rest of the batch, nor on whether its token came in a prefill or in a decode step.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

from kernels.api import Activation, Attention, AttentionMeta, Experts, Linear, Logits
from kernels.cpu.build import BuildError
from kernels.cpu.experts import PackedExperts
from kernels.cpu.library import ACTIVATIONS, DTYPES, Library
from kernels.cpu.linear import PackedGated, PackedLinear, prefers_onednn
from kernels.cpu.processor import Level, features, supported
from kernels.cpu.recording import Recorder
from kernels.cpu.weights import PackedWeights
from kernels.linear import pack_linear as onednn


class Unavailable(Exception):
    """The compiled kernels cannot be used on this machine; the message says why."""


@cache
def library(level: Level) -> Library:
    """Load that level's library, once per process. Raises Unavailable."""
    if level not in supported(features()):
        raise Unavailable(f"this processor cannot run {level.name}")
    try:
        return Library(level)
    except (BuildError, OSError) as error:
        raise Unavailable(str(error)) from error


def fastest() -> Level:
    """Return the fastest level that this processor can run and that can be built. Raises Unavailable if none can."""
    errors = []
    for level in supported(features()):
        try:
            library(level)
        except Unavailable as error:
            errors.append(f"{level.name}: {error}")
            continue
        if errors:
            warnings.warn(f"slower kernels than this processor could run: {'; '.join(errors)}", stacklevel=2)
        return level
    raise Unavailable("; ".join(errors))


class CPUKernels:
    """Compiled kernels for one dtype, which activations, weights and KV share."""

    name = "cpu"

    def __init__(self, dtype: torch.dtype, level: Level | None = None, *, deterministic: bool = True) -> None:
        """Raises Unavailable if the kernels cannot be built or loaded, or do not support `dtype`.

        Unless `deterministic`, linear layers use oneDNN where it is clearly faster; a row's bits may then depend on
        the number of rows.
        """
        if dtype not in DTYPES:
            raise Unavailable(f"they do not support {dtype}")
        self._type = DTYPES[dtype]
        self._dtype = dtype
        self.level = level or fastest()
        self._library = library(self.level)
        self._deterministic = deterministic

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """See `Kernels`. A token that the table does not have gets NaN."""
        table, token_ids = self._checked(table), _int64(token_ids)
        rows, (table_rows, size) = token_ids.shape[0], table.shape
        out = self._library.result(rows, size, dtype=table.dtype)
        self._library.embed(
            *(self._type, table.data_ptr(), token_ids.data_ptr(), out.data_ptr()),
            *(rows, table_rows, size, scale, torch.get_num_threads()),
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        x = self._checked(x)
        rows, size = x.shape
        out = self._library.result(rows, size, dtype=x.dtype)
        self._library.rms_norm(
            self._type, x.data_ptr(), _fp32(weight), out.data_ptr(), rows, size, eps, torch.get_num_threads()
        )
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x, residual = self._checked(x), self._checked(residual)
        rows, size = x.shape
        out = self._library.result(rows, size, dtype=x.dtype)
        total = self._library.result(rows, size, dtype=x.dtype)
        self._library.add_rms_norm(
            self._type,
            *(x.data_ptr(), residual.data_ptr(), _fp32(weight), out.data_ptr(), total.data_ptr()),
            *(rows, size, eps, torch.get_num_threads()),
        )
        return out, total

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """See `Kernels`."""
        gate_up = self._checked(gate_up)
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = self._library.result(rows, size, dtype=gate_up.dtype)
        self._library.gated(
            *(self._type, gate_up.data_ptr(), out.data_ptr(), rows, size),
            *(ACTIVATIONS[activation], torch.get_num_threads()),
        )
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
        _, planes, _, block_size, head_dim = kv.shape
        q = self._library.result(num_tokens, num_heads, head_dim, dtype=qkv.dtype)
        self._library.rope_and_cache(
            self._type,
            *(qkv.data_ptr(), _fp32(cos_sin), positions.data_ptr(), slots.data_ptr(), kv.data_ptr(), q.data_ptr()),
            None if q_norm is None else _fp32(q_norm),
            None if k_norm is None else _fp32(k_norm),
            *(eps, num_tokens, num_heads, num_kv_heads, planes, head_dim, block_size, kv.stride(0)),
            torch.get_num_threads(),
        )
        return q

    def paged_attention(self, q: Tensor, kv: Tensor, meta: AttentionMeta, attention: Attention) -> Tensor:
        """See `Kernels`."""
        q = self._checked(q)
        out = self._library.result(*q.shape, dtype=q.dtype)
        tables = meta.block_tables
        _, num_heads, head_dim = q.shape
        _, planes, num_kv_heads, block_size, _ = kv.shape
        sinks = attention.sinks
        self._library.paged_attention(
            *(self._type, q.data_ptr(), kv.data_ptr(), out.data_ptr()),
            *(meta.query_start.data_ptr(), meta.seq_lens.data_ptr(), tables.data_ptr()),
            *(tables.shape[0], tables.stride(0), num_heads, num_kv_heads, planes, head_dim, block_size, kv.stride(0)),
            *(attention.scale, attention.softcap, attention.window),
            *(None if sinks is None else _fp32(sinks), torch.get_num_threads()),
        )
        return out

    def read_logits(self, x: Tensor, softcap: float) -> Logits:
        """See `Kernels`."""
        x = self._checked(x)
        rows, size = x.shape
        values = self._library.result(rows, size, dtype=torch.float32)
        largest = self._library.result(rows, dtype=torch.int64)
        is_finite = self._library.result(rows, dtype=torch.bool)
        self._library.read_logits(
            *(self._type, x.data_ptr(), values.data_ptr(), largest.data_ptr(), is_finite.data_ptr()),
            *(rows, size, softcap, torch.get_num_threads()),
        )
        return Logits(values, is_finite, largest)

    def pack_linear(self, weight: Tensor, bias: Tensor | None, bits: int = 16) -> Linear:
        """See `Kernels`."""
        weight = self._checked(weight)
        if bits == 16 and not self._deterministic and prefers_onednn(self._library, self._dtype):
            return onednn(weight, bias)
        return PackedLinear(self._library, weight, bias, bits)

    def pack_gated(self, weight: Tensor, bias: Tensor | None, activation: Activation, bits: int = 16) -> Linear:
        """See `Kernels`."""
        weight = self._checked(weight)
        if bits == 16 and not self._deterministic and prefers_onednn(self._library, self._dtype):
            linear = onednn(weight, bias)
            return lambda x: self.gated(linear(x), activation)
        return PackedGated(self._library, weight, bias, activation, bits)

    def pack_heads(self, weight: Tensor) -> Linear:
        """See `Kernels`. One packed product per head, since a row's bits must not depend on the other rows."""
        num_heads, _, num_inputs = weight.shape
        linears = [self.pack_linear(head, None) for head in weight]

        def run(x: Tensor) -> Tensor:
            parts = x.view(-1, num_heads, num_inputs).unbind(1)
            return torch.cat([linear(part.contiguous()) for linear, part in zip(linears, parts, strict=True)], dim=-1)

        return run

    def pack_experts(
        self,
        gate_up: Tensor,
        down: Tensor,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
        bits: int = 16,
    ) -> Experts:
        """See `Kernels`."""
        packed_gate_up = PackedWeights(self._library, self._checked(gate_up), gate_up_bias, bits)
        packed_down = PackedWeights(self._library, self._checked(down), down_bias, bits)
        return PackedExperts(self._library, packed_gate_up, packed_down, activation)

    def recorder(self, max_rows: int) -> Recorder:
        """Return a recorder for repeated computations: Python costs a small model a tenth of a decode step."""
        return Recorder(self._library, max_rows)

    def _checked(self, x: Tensor) -> Tensor:
        """Return `x`, contiguous. TypeError on another dtype, with which compiled code might read past the end."""
        if x.dtype is not self._dtype:
            raise TypeError(f"kernels were loaded for {self._dtype}, not {x.dtype}")
        return x.contiguous()


def _int64(x: Tensor) -> Tensor:
    """Return `x`. Raises TypeError unless it is int64 and contiguous."""
    if x.dtype is not torch.int64 or not x.is_contiguous():
        raise TypeError(f"expected a contiguous int64 tensor, not {x.dtype} of shape {tuple(x.shape)}")
    return x


def _fp32(x: Tensor) -> int:
    """Return the address of `x`. Raises TypeError unless it is fp32 and contiguous."""
    if x.dtype is not torch.float32 or not x.is_contiguous():
        raise TypeError(f"expected a contiguous fp32 tensor, not {x.dtype} of shape {tuple(x.shape)}")
    return x.data_ptr()
