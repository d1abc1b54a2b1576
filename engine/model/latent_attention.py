"""Multi-head latent attention (MLA; DeepSeek-V2, arXiv:2405.04434) in its absorbed form.

A token's cache is one vector of `kv_rank + rope_dim` dimensions: the normed latent, of which the keys and values of all
heads are linear functions, and a rotated key that all heads share. The linear functions are absorbed by queries and
outputs:

    score_h = (W_uk,h^T q_nope,h) . latent + q_rope,h . rope_key      out_h = W_uv,h (sum of weighted latents)

So all query heads attend to a single KV head, whose keys are also its values. Dimensions are ordered for the kernels'
RoPE: [first half of the rope key | first half of the latent | second halves alike]; the latent has frequency zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.architecture import LatentConfig
from engine.model.attention import AttentionWeights
from engine.model.config import ModelConfig
from engine.model.packer import Packer
from engine.model.rotary import rotary_order
from engine.model.tensors import TensorReader
from kernels.api import Kernels, Linear

_EPS = 1e-6  # of both latents' norms, whatever rms_norm_eps is


@dataclass(frozen=True, slots=True)
class LatentProjection:
    """[T, H] -> [T, (Hq + 1) * D]: absorbed queries, and the vector that is cached."""

    down: Linear  # [T, H] -> query latent (or queries) | key latent | rope key
    sizes: list[int]  # of these three
    q_norm: Tensor | None  # of the query latent, fp32
    up: Linear | None  # query latent -> queries, [T, Hq * (nope + rope)]
    kv_norm: Tensor
    absorb: Linear  # queries -> [T, Hq * D]
    kernels: Kernels

    def __call__(self, x: Tensor) -> Tensor:
        """One row for each row of `x`."""
        q, latent, rope_key = torch.split(self.down(x), self.sizes, dim=-1)
        if self.up is not None and self.q_norm is not None:
            q = self.up(self.kernels.rms_norm(q.contiguous(), self.q_norm, _EPS))
        latent = self.kernels.rms_norm(latent.contiguous(), self.kv_norm, _EPS)
        (latent_1, latent_2), (key_1, key_2) = latent.chunk(2, dim=-1), rope_key.chunk(2, dim=-1)
        return torch.cat((self.absorb(q.contiguous()), key_1, latent_1, key_2, latent_2), dim=-1)


@dataclass(frozen=True, slots=True)
class LatentOutput:
    """[T, Hq * D] -> [T, H]."""

    values: Linear  # [T, Hq * D] -> [T, Hq * value_dim]
    o: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """One row for each row of `x`."""
        return self.o(self.values(x))


class LatentAttentionLoader:
    """Reads the attention of one model's layers."""

    def __init__(self, reader: TensorReader, packer: Packer, config: ModelConfig, latent: LatentConfig) -> None:
        self._reader, self._packer, self._config, self._latent = reader, packer, config, latent
        rope_dim = latent.rope_dim
        self._rope_order = rotary_order(rope_dim, rope_dim, interleaved=config.interleaved_rotary)
        dims = torch.arange(config.head_dim).view(2, -1)  # in halves
        self._rope_dims = dims[:, : rope_dim // 2].flatten()
        self._latent_dims = dims[:, rope_dim // 2 :].flatten()

    def load(self, name: str) -> AttentionWeights:
        """Read the attention with tensors under `name`; CheckpointError names file and tensor."""
        reader, packer, config, latent = self._reader, self._packer, self._config, self._latent
        num_queries = config.num_heads * (latent.nope_dim + latent.rope_dim)
        rank = latent.query_rank
        absorb, values = self._head_weights(name)
        up = packer.linear(reader.read(f"{name}.q_b_proj.weight", num_queries, rank)) if rank else None
        sizes = [rank or num_queries, latent.kv_rank, latent.rope_dim]
        qkv = LatentProjection(
            down=self._down(name, sizes),
            sizes=sizes,
            q_norm=reader.wide(f"{name}.q_a_layernorm.weight", rank) if rank else None,
            up=up,
            kv_norm=reader.wide(f"{name}.kv_a_layernorm.weight", latent.kv_rank),
            absorb=packer.kernels.pack_heads(absorb),
            kernels=packer.kernels,
        )
        hidden = config.hidden_size
        o_bias = reader.read(f"{name}.o_proj.bias", hidden) if config.o_bias else None
        weight = reader.read(f"{name}.o_proj.weight", hidden, config.num_heads * latent.value_dim)
        o = LatentOutput(packer.kernels.pack_heads(values), packer.linear(weight, o_bias))
        return AttentionWeights(qkv, None, None, o)

    def _down(self, name: str, sizes: list[int]) -> Linear:
        """Read the fused product from the hidden state to query latent (or queries), key latent and rope key."""
        reader, hidden, latent = self._reader, self._config.hidden_size, self._latent
        query, key = f"{name}.{'q_a_proj' if latent.query_rank else 'q_proj'}", f"{name}.kv_a_proj_with_mqa"
        parts = {f"{query}.weight": sizes[0], f"{key}.weight": latent.kv_rank + latent.rope_dim}
        weight = self._ordered(reader.outputs(parts, "", hidden))
        if not self._config.qkv_bias:
            return self._packer.linear(weight)
        bias = torch.zeros(len(weight), dtype=reader.dtype, device=reader.device)
        if latent.query_rank:  # queries computed directly from the hidden state have no bias
            reader.read_into(bias[: sizes[0]], f"{query}.bias")
        reader.read_into(bias[sizes[0] :], f"{key}.bias")
        return self._packer.linear(weight, self._ordered(bias))

    def _ordered(self, rows: Tensor) -> Tensor:
        """Reorder the last `rope_dim` rows for the kernels' RoPE."""
        still = len(rows) - self._latent.rope_dim
        return torch.cat((rows[:still], rows[still:][self._rope_order.to(rows.device)]))

    def _head_weights(self, name: str) -> tuple[Tensor, Tensor]:
        """Read, per head, the map from a query to the cached vector's dimensions, [Hq, D, nope + rope], and the map
        from these to values, [Hq, value_dim, D]."""
        reader, config, latent = self._reader, self._config, self._latent
        num_heads, nope, rank = config.num_heads, latent.nope_dim, latent.kv_rank
        rows = num_heads * (nope + latent.value_dim)
        both = reader.read(f"{name}.kv_b_proj.weight", rows, rank).view(num_heads, -1, rank)
        absorb = both.new_zeros(num_heads, config.head_dim, nope + latent.rope_dim)
        absorb[:, self._latent_dims, :nope] = both[:, :nope].transpose(1, 2)
        absorb[:, self._rope_dims, nope + self._rope_order] = 1.0
        values = both.new_zeros(num_heads, latent.value_dim, config.head_dim)
        values[:, :, self._latent_dims] = both[:, nope:]
        return absorb, values
