"""What a model needs computed beside its dense algebra: the interface that every kernel backend implements.

`kernels.reference` is the specification; `kernels.cpu` (compiled C++) and `kernels.triton` are held against it by one
contract suite; `kernels.dispatch` chooses one per process. Which op runs when is the engine's business.

Letters in shapes: T tokens of the batch, B sequences, H hidden size, F feed-forward size, D head dimension, Hq query
heads, Hkv key and value heads, E experts, K experts of a token. The KV of one layer is a view
`[num_blocks, planes, Hkv, block_size, D]` into the pool: only its last four dimensions are contiguous, because the
blocks of one layer lie a layer group apart. Planes are K and V, or one where the values are the keys (MLA's compressed
cache).

Norm weights are fp32, whatever the type of the activations: a norm is rounded once, at its end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Linear = Callable[[Tensor], Tensor]  # [T, in] -> [T, out]
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [T, H], ids [T, K] int64, weights [T, K] fp32 -> [T, H]

Activation = Literal["silu", "gelu_tanh", "swiglu_oai"]
"""What a gated feed-forward makes of gate and up, in fp32, cast once:

silu        silu(gate) * up
gelu_tanh   gelu(gate) * up, with gelu's tanh approximation
swiglu_oai  g * sigmoid(1.702 g) * (u + 1), with g = min(gate, 7), u = clamp(up, -7, 7)
"""


@dataclass(frozen=True, slots=True)
class Attention:
    """What one layer's attention is, whatever the batch."""

    scale: float  # on the scores
    window: int = 0  # positions that a query sees, its own included; 0 is all
    softcap: float = 0.0  # scores become `softcap * tanh(score / softcap)`; 0 is off
    sinks: Tensor | None = None  # [Hq] fp32: a score per head that takes its share of the softmax, and adds nothing


@dataclass(frozen=True, slots=True)
class AttentionMeta:
    """Where the sequences of one batch lie. The tensors live on the device of the kernels."""

    query_start: Tensor  # [B + 1] int32, prefix sums of the query lengths
    seq_lens: Tensor  # [B] int32, tokens in the KV once this step's are written
    block_tables: Tensor  # [B, max_blocks] int32; entries past a sequence's last block are never read
    max_query_len: int
    max_seq_len: int
    min_query_len: int = 1  # more than 1 says that no sequence has a single query


class Kernels(Protocol):
    """One backend. No op changes its inputs, but for `kv`. A row of a result depends on that row's sequence alone."""

    name: str

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / sqrt(mean(x²) + eps) * weight` in fp32, cast to x's dtype. x: [T, H], weight: [H] fp32."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`s = x + residual`; returns `(rms_norm(s), s)`, both [T, H]."""
        ...

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """The activation of [T, 2F] = gate | up; returns [T, F]."""
        ...

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
        """Norm the heads of q and k (where `q_norm`, `k_norm` [D] are given), rotate them, and write k and v to `kv`.

        qkv: [T, (Hq + planes * Hkv) * D], q | k | v, or q | k where `kv` has one plane. cos_sin: [max_position, D]
        fp32, cos | sin halves; dimension i rotates with i + D/2. positions: [T] int64. slots: [T] int64,
        `block_id * block_size + offset`, or -1: not written.
        Returns q, [T, Hq, D], contiguous.
        """
        ...

    def paged_attention(self, q: Tensor, kv: Tensor, meta: AttentionMeta, attention: Attention) -> Tensor:
        """Causal attention of q [T, Hq, D] over blocks where they lie; returns [T, Hq, D].

        Query i of a sequence with n queries is at position `seq_len - n + i`, and sees positions up to its own; with a
        window, only the last `window` of them. With one plane the values are the keys, all D of them. Rows past
        `query_start[-1]` are padding: their results mean nothing.
        """
        ...

    def pack_linear(self, weight: Tensor, bias: Tensor | None, bits: int = 16) -> Linear:
        """`x @ weight.T + bias` with weight [out, in], laid out anew where that is faster. May keep `weight`.

        With `bits` 8 or 4 the weight is first rounded as `kernels.quantize` says; activations are not.
        """
        ...

    def pack_gated(self, weight: Tensor, bias: Tensor | None, activation: Activation, bits: int = 16) -> Linear:
        """`gated(x @ weight.T + bias)`, [T, in] -> [T, F], with weight [2F, in]; packed as by `pack_linear`.

        The product may be rounded to x's dtype before the activation, or not.
        """
        ...

    def pack_heads(self, weight: Tensor) -> Linear:
        """A linear layer per head, each over its own part of the row, all at once.

        [T, heads * in] -> [T, heads * out] with weight [heads, out, in]. May keep `weight`.
        """
        ...

    def pack_experts(
        self,
        gate_up: Tensor,
        down: Tensor,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
        bits: int = 16,
    ) -> Experts:
        """A mixture of experts: per token, the weighted sum over its K experts of `down(gated(gate_up(x)))`.

        gate_up: [E, 2F, H], gate rows before up rows; down: [E, H, F]; biases [E, 2F] and [E, H]. The sum runs in fp32,
        in the order of the token's experts, and is cast once.
        """
        ...
