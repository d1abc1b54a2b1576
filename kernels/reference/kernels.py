"""Every op as a formula in plain torch: what the fast backends are tested against, and the fallback where none runs.

Attention gathers each sequence's KV and takes a masked softmax in fp32: clear, and slow.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.api import Activation, Attention, AttentionMeta, Experts, Linear, Logits
from kernels.linear import pack_heads, pack_linear
from kernels.quantize import rounded
from kernels.reference.ends import are_finite, embedded, widened


class ReferenceKernels:
    """Plain torch, on any device."""

    name = "reference"

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """See `Kernels`."""
        return embedded(token_ids, table, scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / rms(x) * weight` in fp32, cast once. x: [..., H]; weight: [H] fp32."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * weight).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`(rms_norm(x + residual), x + residual)`, both [T, H]."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """[T, 2F] = gate | up -> [T, F]; see `Activation`."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        if activation == "swiglu_oai":
            gate = gate.clamp(max=7)
            out = gate * torch.sigmoid(1.702 * gate) * (up.clamp(-7, 7) + 1)
        else:
            out = (functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")) * up
        return out.to(gate_up.dtype)

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
        _, planes, _, block_size, head_dim = kv.shape
        heads = qkv.view(qkv.shape[0], num_heads + planes * num_kv_heads, head_dim)
        q, k, *v = torch.split(heads, [num_heads, *[num_kv_heads] * planes], dim=1)  # each [T, heads, D]
        if q_norm is not None:
            q = self.rms_norm(q, q_norm, eps)
        if k_norm is not None:
            k = self.rms_norm(k, k_norm, eps)
        at = cos_sin[positions].unsqueeze(1)  # [T, 1, D]
        q, k = rotate(q, at), rotate(k, at)

        written = slots >= 0
        block, offset = slots[written] // block_size, slots[written] % block_size
        for plane, rows in enumerate((k, *v)):
            kv[block, plane, :, offset] = rows[written].to(kv.dtype)  # [N, Hkv, D]
        return q.contiguous()

    def paged_attention(self, q: Tensor, kv: Tensor, meta: AttentionMeta, attention: Attention) -> Tensor:
        """One sequence after another; see `Kernels`."""
        out = torch.zeros_like(q)
        starts = meta.query_start.tolist()
        for i, seq_len in enumerate(meta.seq_lens.tolist()):
            rows = slice(starts[i], starts[i + 1])
            if rows.start < rows.stop:
                keys, values = gather(kv, meta.block_tables[i], seq_len)
                out[rows] = attend(q[rows], keys, values, attention)
        return out

    def read_logits(self, x: Tensor, softcap: float) -> Logits:
        """See `Kernels`."""
        values = widened(x, softcap)
        return Logits(values, are_finite(values), values.argmax(-1))

    def pack_linear(self, weight: Tensor, bias: Tensor | None, bits: int = 16) -> Linear:
        """`functional.linear`, prepacked where that is faster."""
        return pack_linear(rounded(weight, bits), bias)

    def pack_gated(self, weight: Tensor, bias: Tensor | None, activation: Activation, bits: int = 16) -> Linear:
        """See `Kernels`: a product, and then `gated`."""
        linear = self.pack_linear(weight, bias, bits)
        return lambda x: self.gated(linear(x), activation)

    def pack_heads(self, weight: Tensor) -> Linear:
        """See `Kernels`."""
        return pack_heads(weight)

    def pack_experts(
        self,
        gate_up: Tensor,
        down: Tensor,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
        bits: int = 16,
    ) -> Experts:
        """One expert after another; see `Kernels`."""
        gate_up, down = rounded(gate_up, bits), rounded(down, bits)

        def bias_of(biases: Tensor | None, expert: int) -> Tensor | None:
            return None if biases is None else biases[expert]

        def run(x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
            num_tokens, per_token = expert_ids.shape
            parts = torch.zeros(num_tokens, per_token, x.shape[1], dtype=torch.float32, device=x.device)
            for expert in set(expert_ids.flatten().tolist()):
                token, place = (expert_ids == expert).nonzero(as_tuple=True)
                hidden = self.gated(
                    functional.linear(x[token], gate_up[expert], bias_of(gate_up_bias, expert)), activation
                )
                parts[token, place] = functional.linear(hidden, down[expert], bias_of(down_bias, expert)).float()
            return (parts * weights.unsqueeze(-1)).sum(1).to(x.dtype)

        return run


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate dimension i with dimension i + D/2 in fp32. x: [T, heads, D]; cos_sin: [T, 1, D], cos | sin."""
    cos, sin = cos_sin.chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def gather(kv: Tensor, block_table: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Copy one sequence's keys and values out of their blocks, each [seq_len, Hkv, D]; with one plane, the same."""
    block_size = kv.shape[3]
    blocks = kv[block_table[: -(-seq_len // block_size)].long()]  # [blocks, planes, Hkv, block_size, D]
    planes = blocks.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :seq_len]
    return planes[0], planes[-1]


def attend(q: Tensor, keys: Tensor, values: Tensor, attention: Attention) -> Tensor:
    """Softmax attention of one sequence in fp32. q: [n, Hq, D] at the last n positions; keys, values: [s, Hkv, D]."""
    num_queries, num_heads, head_dim = q.shape
    seq_len, num_kv_heads, _ = keys.shape
    group = num_heads // num_kv_heads
    grouped = q.float().view(num_queries, num_kv_heads, group, head_dim)
    scores = torch.einsum("nhgd,shd->hgns", grouped, keys.float()) * attention.scale
    if attention.softcap:
        scores = attention.softcap * torch.tanh(scores / attention.softcap)

    query_at = torch.arange(seq_len - num_queries, seq_len, device=q.device).unsqueeze(1)  # [n, 1]
    key_at = torch.arange(seq_len, device=q.device)
    visible = key_at <= query_at
    if attention.window:
        visible &= key_at > query_at - attention.window
    scores = scores.masked_fill(~visible, float("-inf"))
    if attention.sinks is not None:
        sinks = attention.sinks.float().view(num_kv_heads, group, 1, 1).expand(-1, -1, num_queries, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., :seq_len]  # [Hkv, group, n, s]
    return torch.einsum("hgns,shd->nhgd", weights, values.float()).reshape(q.shape).to(q.dtype)
