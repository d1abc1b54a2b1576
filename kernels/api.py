"""The interface that every kernel backend implements: the ops of a transformer that plain torch has no fast path for.

`kernels.reference` is the specification; one contract suite tests `kernels.cpu` (compiled C++) and `kernels.triton`
against it; `kernels.dispatch` chooses a backend per process. The engine decides which op runs when.

Letters in shapes: T tokens in the batch, B sequences, S rows of logits, V size of the vocabulary, H hidden size, F
feed-forward size, D head dimension, Hq query heads, Hkv KV heads, E experts, K experts per token. The KV of one layer
is a view `[num_blocks, planes, Hkv, block_size, D]` of the pool. Only its last four dimensions are contiguous:
consecutive blocks of one layer are a whole layer group apart. There are two planes, K and V, or one where the values
are the keys (MLA's compressed cache).

Norm weights are fp32 whatever the dtype of the activations, so that a norm is rounded only once, at its end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Linear = Callable[[Tensor], Tensor]  # [T, in] -> [T, out]
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [T, H], ids [T, K] int64, weights [T, K] fp32 -> [T, H]

Activation = Literal["silu", "gelu_tanh", "swiglu_oai"]
"""How a gated feed-forward combines gate and up; computed in fp32, cast once:

silu        silu(gate) * up
gelu_tanh   gelu(gate) * up, with gelu's tanh approximation
swiglu_oai  g * sigmoid(1.702 g) * (u + 1), with g = min(gate, 7), u = clamp(up, -7, 7)
"""


@dataclass(frozen=True, slots=True)
class Attention:
    """The parameters of one layer's attention, the same for every batch."""

    scale: float  # multiplies the scores
    window: int = 0  # positions that a query sees, including its own; 0 is all
    softcap: float = 0.0  # scores become `softcap * tanh(score / softcap)`; 0 is off
    sinks: Tensor | None = None  # [Hq] fp32: per head, a score that enters the softmax's sum but has no value


class AttentionMeta(NamedTuple):
    """Query rows, lengths and block tables of one batch's sequences. The tensors are on the kernels' device."""

    query_start: Tensor  # [B + 1] int32, prefix sums of the query lengths
    seq_lens: Tensor  # [B] int32, tokens in the KV, including this step's
    block_tables: Tensor  # [B, max_blocks] int32; entries past a sequence's last block are never read
    max_query_len: int
    max_seq_len: int
    min_query_len: int = 1  # if above 1, no sequence has just one query


class Logits(NamedTuple):
    """What the output head says of S rows."""

    values: Tensor  # [S, V] fp32
    is_finite: Tensor  # [S] bool, whether a row is free of NaN and infinities
    largest: Tensor | None  # [S] int64, the token with the largest logit, of equals the first; None: not looked for


class Filters(NamedTuple):
    """The filters of some rows, each [S]. Top-p is the share of the mass that top-k keeps; min-p is relative to the
    likeliest token."""

    top_k: Tensor  # int64; the size of the vocabulary where it is off
    top_p: Tensor  # fp32; 1 where it is off
    min_p: Tensor  # fp32; 0 where it is off

    def at(self, index: Tensor) -> "Filters":
        """The filters of the rows in `index`."""
        return Filters(self.top_k[index], self.top_p[index], self.min_p[index])


Draw = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [S, V] fp32, temperature [S] fp32, keys [S, 2] int32) -> tokens [S] int64.

Draws the token with the largest `logits / temperature + noise`, with the noise of `engine.sampling.noise`; at
temperature 0 that with the largest logit. NaN is never the largest.
"""
FilteredDraw = Callable[[Tensor, Tensor, Tensor, Filters], Tensor]
"""The same, among the tokens that the filters keep."""


Mask = Callable[[Tensor, Tensor], None]
"""(logits [S, V] fp32, words [S, ceil(V / 32)] int32): tokens whose bit is 0 get -inf, in place."""


class SamplingKernels(NamedTuple):
    """What a device has for sampling; where it has no kernel to draw, `engine.sampling` draws with torch."""

    mask: Mask
    draw: Draw | None = None
    draw_filtered: FilteredDraw | None = None


class Kernels(Protocol):
    """One backend. Ops change none of their inputs except `kv`. A row of a result depends on its own sequence only."""

    name: str

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """The rows of `table` [V, H] for tokens [T] int64, times `scale`; [T, H]."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / sqrt(mean(x²) + eps) * weight` in fp32, cast to x's dtype. x: [T, H], weight: [H] fp32."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`s = x + residual`; returns `(rms_norm(s), s)`, both [T, H]."""
        ...

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """Apply a gated activation to [T, 2F] = gate | up; returns [T, F]."""
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
        """Normalise q and k per head (if `q_norm`, `k_norm` [D] are given), apply RoPE, and write k and v to `kv`.

        qkv: [T, (Hq + planes * Hkv) * D], q | k | v, or q | k where `kv` has one plane. cos_sin: [max_position, D]
        fp32, cos | sin halves; dimension i rotates with i + D/2. positions: [T] int64. slots: [T] int64,
        `block_id * block_size + offset`, or -1 for a token that is not written.
        Returns q, [T, Hq, D], contiguous.
        """
        ...

    def paged_attention(self, q: Tensor, kv: Tensor, meta: AttentionMeta, attention: Attention) -> Tensor:
        """Causal attention of q [T, Hq, D] over KV blocks, which are read in place; returns [T, Hq, D].

        Query i of a sequence with n queries is at position `seq_len - n + i`, and sees positions up to its own; with a
        window, only the last `window` of them. With one plane the keys are also the values, all D dimensions. Rows past
        `query_start[-1]` are padding, and their results are undefined.
        """
        ...

    def read_logits(self, x: Tensor, softcap: float) -> Logits:
        """Widen the output head's results, [S, V], and say what they are; `softcap` is as in `Attention`."""
        ...

    def pack_linear(self, weight: Tensor, bias: Tensor | None, bits: int = 16) -> Linear:
        """Prepare `x @ weight.T + bias`, weight [out, in], in the layout that this backend reads fastest.

        With `bits` 8 or 4 the weight is first quantised as in `kernels.quantize`; activations never are. May keep
        `weight`.
        """
        ...

    def pack_gated(self, weight: Tensor, bias: Tensor | None, activation: Activation, bits: int = 16) -> Linear:
        """Prepare `gated(x @ weight.T + bias)`, [T, in] -> [T, F], weight [2F, in]; packed as by `pack_linear`.

        Backends may or may not round the product to x's dtype before the activation.
        """
        ...

    def pack_heads(self, weight: Tensor) -> Linear:
        """Prepare one linear layer per head, each applied to its own slice of the row.

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
        """Prepare a mixture of experts: per token, the weighted sum over its K experts of `down(gated(gate_up(x)))`.

        gate_up: [E, 2F, H], gate rows before up rows; down: [E, H, F]; biases [E, 2F] and [E, H]. The sum is taken in
        fp32, in the order of the token's experts, and cast once.
        """
        ...
