"""The linear layers around multi-head and grouped-query attention: one fused qkv projection, and the output projection.

Attention itself, RoPE and the norms of single heads are kernels. The dimensions of each head are reordered to match the
kernels' RoPE (`engine.model.rotary.rotary_order`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.config import ModelConfig
from engine.model.packer import Packer
from engine.model.rotary import rotary_order
from engine.model.tensors import TensorReader
from kernels.api import Kernels, Linear


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """A layer's attention weights, for every kind of attention."""

    qkv: Linear  # [T, H] -> [T, (Hq + planes * Hkv) * D]
    q_norm: Tensor | None  # [D] fp32
    k_norm: Tensor | None
    o: Linear  # [T, Hq * D] -> [T, H]


@dataclass(frozen=True, slots=True)
class NormedProjection:
    """A qkv projection with RMSNorm of queries and of keys, each over all heads together."""

    qkv: Linear
    q_norm: Tensor  # [Hq * D] fp32
    k_norm: Tensor  # [Hkv * D] fp32
    eps: float
    kernels: Kernels

    def __call__(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, (Hq + 2 Hkv) * D]."""
        num_queries, num_keys = len(self.q_norm), len(self.k_norm)
        q, k, v = torch.split(self.qkv(x), [num_queries, num_keys, num_keys], dim=-1)
        q = self.kernels.rms_norm(q.contiguous(), self.q_norm, self.eps)
        k = self.kernels.rms_norm(k.contiguous(), self.k_norm, self.eps)
        return torch.cat((q, k, v), dim=-1)


class AttentionLoader:
    """Reads the attention of one model's layers."""

    def __init__(self, reader: TensorReader, packer: Packer, config: ModelConfig) -> None:
        self._reader, self._packer, self._config = reader, packer, config
        head_dim = config.head_dim
        self._queries, self._keys = config.num_heads * head_dim, config.num_kv_heads * head_dim
        self._order = rotary_order(head_dim, config.rotary_dim, interleaved=config.interleaved_rotary).to(reader.device)
        self._is_ordered = torch.equal(self._order, torch.arange(head_dim, device=reader.device))

    def load(self, name: str) -> AttentionWeights:
        """Read the attention with tensors under `name`; CheckpointError names file and tensor."""
        reader, config = self._reader, self._config
        hidden = config.hidden_size
        qkv_bias = self._qkv(name, "bias") if config.qkv_bias else None
        qkv = self._packer.linear(self._qkv(name, "weight", hidden), qkv_bias)
        o_bias = reader.read(f"{name}.o_proj.bias", hidden) if config.o_bias else None
        o = self._packer.linear(reader.read(f"{name}.o_proj.weight", hidden, self._queries), o_bias)
        if config.qk_norm == "head":
            dim = config.head_dim
            return AttentionWeights(qkv, self._norm(f"{name}.q_norm", dim), self._norm(f"{name}.k_norm", dim), o)
        if config.qk_norm == "projection":
            norms = self._norm(f"{name}.q_norm", self._queries), self._norm(f"{name}.k_norm", self._keys)
            qkv = NormedProjection(qkv, *norms, config.rms_norm_eps, self._packer.kernels)
        return AttentionWeights(qkv, None, None, o)

    def _qkv(self, name: str, kind: str, *rest: int) -> Tensor:
        """Read the fused weight [(Hq + 2 Hkv) * D, H], or bias."""
        parts = {f"{name}.q_proj.{kind}": self._queries}
        parts |= dict.fromkeys((f"{name}.k_proj.{kind}", f"{name}.v_proj.{kind}"), self._keys)
        fused = self._reader.outputs(parts, f"{name}.qkv_proj.{kind}", *rest)
        if self._is_ordered:
            return fused
        q, k, v = torch.split(fused, list(parts.values()))
        return torch.cat((self._ordered(q), self._ordered(k), v))

    def _norm(self, name: str, size: int) -> Tensor:
        return self._ordered(self._reader.wide(f"{name}.weight", size) + self._config.norm_offset)

    def _ordered(self, rows: Tensor) -> Tensor:
        """Reorder the rows of each head for the kernels' RoPE. rows: [heads * D, ...]."""
        if self._is_ordered:
            return rows
        heads = rows.view(-1, len(self._order), *rows.shape[1:])
        return heads[:, self._order].flatten(0, 1)
