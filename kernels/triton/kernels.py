"""The ops of `Kernels` as launches of Triton kernels."""

import torch
from torch import Tensor

from kernels.api import Activation, Attention, AttentionMeta, Experts, Linear, Logits
from kernels.linear import pack_heads, pack_linear
from kernels.reference.ends import are_finite, embedded, widened
from kernels.triton import linear
from kernels.triton.activation import gated
from kernels.triton.decode import decode_attention
from kernels.triton.experts import MixtureOfExperts
from kernels.triton.norm import add_rms_norm, rms_norm
from kernels.triton.prefill import prefill_attention
from kernels.triton.rope import rope_and_cache
from kernels.triton.weights import Weights


class TritonKernels:
    """Triton kernels on CUDA devices. No op reads a tensor back, so a CUDA graph can capture a decode step."""

    name = "triton"

    def __init__(self, *, deterministic: bool = False) -> None:
        """If `deterministic`, a row's bits depend neither on the other rows, nor on whether its token came in a prefill
        or in a decode step: products use kernels of this package, and attention one shape of tile for all sequences.
        """
        self._deterministic = deterministic

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """See `Kernels`."""
        return embedded(token_ids, table, scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        return rms_norm(x.contiguous(), weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        return add_rms_norm(x.contiguous(), residual.contiguous(), weight, eps)

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """See `Kernels`."""
        return gated(gate_up.contiguous(), activation)

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
        return rope_and_cache(
            qkv.contiguous(), cos_sin, positions, slots, kv, num_heads, num_kv_heads, q_norm, k_norm, eps
        )

    def paged_attention(self, q: Tensor, kv: Tensor, meta: AttentionMeta, attention: Attention) -> Tensor:
        """See `Kernels`. Which kernel handles a sequence does not depend on the rest of the batch."""
        q = q.contiguous()
        out = torch.empty_like(q)
        if self._deterministic:
            if q.shape[0]:
                prefill_attention(q, kv, out, meta, attention, deterministic=True)
            return out
        if meta.max_query_len > 1:
            prefill_attention(q, kv, out, meta, attention)
        if q.shape[0] and meta.min_query_len == 1:
            decode_attention(q, kv, out, meta, attention)
        return out

    def read_logits(self, x: Tensor, softcap: float) -> Logits:
        """See `Kernels`. Leaves it to `draw` to find the largest."""
        values = widened(x, softcap)
        return Logits(values, are_finite(values), None)

    def pack_linear(self, weight: Tensor, bias: Tensor | None, bits: int = 16) -> Linear:
        """See `Kernels`. Weights of 16 bits keep their layout."""
        if bits == 16 and not self._deterministic:
            return pack_linear(weight, bias)
        return linear.pack_linear(weight, bias, bits, deterministic=self._deterministic)

    def pack_gated(self, weight: Tensor, bias: Tensor | None, activation: Activation, bits: int = 16) -> Linear:
        """See `Kernels`: a product, and then `gated`."""
        linear = self.pack_linear(weight, bias, bits)
        return lambda x: self.gated(linear(x), activation)

    def pack_heads(self, weight: Tensor) -> Linear:
        """See `Kernels`."""
        return linear.pack_heads(weight) if self._deterministic else pack_heads(weight)

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
        weights = Weights(gate_up, bits), Weights(down, bits)
        return MixtureOfExperts(*weights, activation, gate_up_bias, down_bias, deterministic=self._deterministic)
