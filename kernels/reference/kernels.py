"""Every op as a formula in plain torch: what the fast backends are tested against, and the fallback where none runs.

Attention is a gather and a masked softmax per sequence, in fp32: clear, and slow.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.api import AttentionMeta, Linear
from kernels.linear import pack_linear


class ReferenceKernels:
    """Plain torch, on any device."""

    name = "reference"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`weight * cast(x / rms(x))`; the mean in fp32, the product in x's dtype. x: [..., H]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return weight * wide.to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`(rms_norm(x + residual), x + residual)`, both [T, H]."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2F] = gate | up -> silu(gate) * up, [T, F]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

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
        """Norm, rotate, write; see `Kernels`."""
        block_size, head_dim = kv.shape[3:]
        heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
        q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)  # each [T, heads, D]
        if q_norm is not None:
            q = self.rms_norm(q, q_norm, eps)
        if k_norm is not None:
            k = self.rms_norm(k, k_norm, eps)
        at = cos_sin[positions].unsqueeze(1)  # [T, 1, D]
        q, k = rotate(q, at), rotate(k, at)

        written = slots >= 0
        block, offset = slots[written] // block_size, slots[written] % block_size
        kv[block, 0, :, offset] = k[written].to(kv.dtype)  # [N, Hkv, D]
        kv[block, 1, :, offset] = v[written].to(kv.dtype)
        return q.contiguous()

    def paged_attention(self, q: Tensor, kv: Tensor, meta: AttentionMeta, scale: float, window: int = 0) -> Tensor:
        """One sequence after another; see `Kernels`."""
        out = torch.zeros_like(q)
        starts = meta.query_start.tolist()
        for i, seq_len in enumerate(meta.seq_lens.tolist()):
            rows = slice(starts[i], starts[i + 1])
            if rows.start < rows.stop:
                keys, values = gather(kv, meta.block_tables[i], seq_len)
                out[rows] = attend(q[rows], keys, values, scale, window)
        return out

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """`functional.linear`, prepacked where that is faster."""
        return pack_linear(weight, bias)


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate dimension i with dimension i + D/2 in fp32. x: [T, heads, D]; cos_sin: [T, 1, D], cos | sin."""
    cos, sin = cos_sin.chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def gather(kv: Tensor, block_table: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one sequence, each [seq_len, Hkv, D], copied out of their blocks."""
    block_size = kv.shape[3]
    blocks = kv[block_table[: -(-seq_len // block_size)].long()]  # [blocks, 2, Hkv, block_size, D]
    keys, values = blocks.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :seq_len]
    return keys, values


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int) -> Tensor:
    """Softmax attention of one sequence in fp32. q: [n, Hq, D] at the last n positions; keys, values: [s, Hkv, D]."""
    num_queries, num_heads, head_dim = q.shape
    seq_len, num_kv_heads, _ = keys.shape
    grouped = q.float().view(num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("nhgd,shd->hgns", grouped, keys.float()) * scale

    query_at = torch.arange(seq_len - num_queries, seq_len, device=q.device).unsqueeze(1)  # [n, 1]
    key_at = torch.arange(seq_len, device=q.device)
    visible = key_at <= query_at
    if window:
        visible &= key_at > query_at - window
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)  # [Hkv, group, n, s]
    return torch.einsum("hgns,shd->nhgd", weights, values.float()).reshape(q.shape).to(q.dtype)
