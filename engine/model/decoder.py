"""The decoder of all served families: embedding, layers of attention and feed-forward, final norm.

It computes the hidden states of a `Batch`'s wanted tokens, and writes the batch's KV. Weights come from
`engine.model.weights`, single operations from `kernels`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.batch import Batch
from engine.kv_cache import KVCache
from engine.model.config import ModelConfig
from engine.model.weights import LayerWeights, Weights
from kernels.api import Kernels, Logits

LayerGroupHook = Callable[[int, Batch], None]


class Decoder:
    """One model on one device."""

    def __init__(
        self, config: ModelConfig, weights: Weights, kernels: Kernels, cache: KVCache, cos_sin: Sequence[Tensor]
    ) -> None:
        self._config = config
        self._weights = weights
        self._kernels = kernels
        self._cache = cache
        self._cos_sin = cos_sin  # of each layer, [max_model_len, D] fp32

    def hidden(self, batch: Batch, on_layer_group: LayerGroupHook | None = None) -> Tensor:
        """Return the normed hidden states of the batch's wanted tokens, [W, H].

        `on_layer_group(g, batch)` is called as soon as the batch's KV of all layers of group g is in the pool.
        """
        weights, layers_per_group = self._weights, self._cache.layout.layers_per_group
        residual = self._kernels.embed(batch.token_ids, weights.embedding, weights.embedding_scale)
        x = self._normed(residual, weights.layers[0].before_attention)
        for index, layer in enumerate(weights.layers):
            is_last = index + 1 == len(weights.layers)
            q = self._write_kv(x, index, layer, batch)
            if on_layer_group and (index + 1) % layers_per_group == 0:
                self._call(on_layer_group, index // layers_per_group, batch)
            if is_last and batch.last is not None:  # the rest of the last layer only computes the wanted rows
                q, residual = q[batch.last], residual[batch.last]
            attended = layer.projections.o(self._attend(q, index, layer, batch, last_only=is_last))
            x, residual = self._add(attended, residual, layer.after_attention, layer.before_feed_forward)
            next_norm = weights.final_norm if is_last else weights.layers[index + 1].before_attention
            x, residual = self._add(layer.feed_forward(x), residual, layer.after_feed_forward, next_norm)
        return x

    def logits(self, hidden: Tensor) -> Logits:
        """The logits of hidden states [S, H]."""
        return self._kernels.read_logits(self._weights.lm_head(hidden), self._config.logit_softcap)

    def _add(self, x: Tensor, residual: Tensor, after: Tensor | None, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add a block's result, normed by `after`, to the residual; return that normed by `before`, and as it is."""
        x = self._normed(x, after)
        if before is None:
            total = residual + x
            return total, total
        return self._kernels.add_rms_norm(x, residual, before, self._config.rms_norm_eps)

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else self._kernels.rms_norm(x, weight, self._config.rms_norm_eps)

    def _write_kv(self, x: Tensor, index: int, layer: LayerWeights, batch: Batch) -> Tensor:
        """Write the layer's KV of the batch to the pool; returns its queries [T, Hq, D]."""
        config = self._config
        return self._kernels.rope_and_cache(
            layer.projections.qkv(x),
            self._cos_sin[index],
            batch.positions,
            batch.slots,
            self._cache.layers[index],
            config.num_heads,
            config.num_kv_heads,
            layer.projections.q_norm,
            layer.projections.k_norm,
            config.rms_norm_eps,
        )

    def _attend(self, q: Tensor, index: int, layer: LayerWeights, batch: Batch, *, last_only: bool) -> Tensor:
        """[T, Hq, D] -> [T, Hq * D]."""
        meta = batch.last_meta if last_only else batch.meta
        out = self._kernels.paged_attention(q, self._cache.layers[index], meta, layer.attention)
        return out.view(out.shape[0], -1)

    def _call(self, hook: LayerGroupHook, group: int, batch: Batch) -> None:
        if batch.token_ids.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the kernels that write the KV have only been launched
        hook(group, batch)
