"""The decoder of all served families: embedding, layers of attention and gated feed-forward, final norm.

It turns a `Batch` into one hidden row per request and writes the batch's KV; weights come from `engine.weights`, single
operations from `kernels`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.batch import Batch
from engine.config import ModelConfig
from engine.kv_cache import KVCache
from engine.weights import LayerWeights, Weights
from kernels.api import Kernels

LayerGroupHook = Callable[[int, Batch], None]


class Decoder:
    """One model on one device."""

    def __init__(
        self, config: ModelConfig, weights: Weights, kernels: Kernels, cache: KVCache, cos_sin: Tensor
    ) -> None:
        self._config = config
        self._weights = weights
        self._kernels = kernels
        self._cache = cache
        self._cos_sin = cos_sin  # [max_model_len, D] fp32
        self._scale = config.head_dim**-0.5

    def hidden(self, batch: Batch, on_layer_group: LayerGroupHook | None = None) -> Tensor:
        """[B, H]: the normed hidden state of each request's last token in the batch.

        `on_layer_group(g, batch)` is called as soon as the batch's KV of all layers of group g is in the pool.
        """
        weights, kernels, eps = self._weights, self._kernels, self._config.rms_norm_eps
        residual = torch.nn.functional.embedding(batch.token_ids, weights.embedding)  # [T, H]
        x = kernels.rms_norm(residual, weights.layers[0].input_norm, eps)
        for index, layer in enumerate(weights.layers):
            is_last = index + 1 == len(weights.layers)
            q = self._write_kv(x, index, layer, batch)
            if on_layer_group and (index + 1) % self._cache.layout.layers_per_group == 0:
                self._call(on_layer_group, index // self._cache.layout.layers_per_group, batch)
            if is_last and batch.last is not None:  # of the last layer only the rows that are sampled from are wanted
                q, residual = q[batch.last], residual[batch.last]
            attended = self._attend(q, index, layer, batch, last_only=is_last)
            x, residual = kernels.add_rms_norm(layer.o(attended), residual, layer.post_norm, eps)
            x = layer.down(kernels.silu_mul(layer.gate_up(x)))
            next_norm = weights.final_norm if is_last else weights.layers[index + 1].input_norm
            x, residual = kernels.add_rms_norm(x, residual, next_norm, eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, H] -> [B, V] fp32."""
        return self._weights.lm_head(hidden).float()

    def _write_kv(self, x: Tensor, index: int, layer: LayerWeights, batch: Batch) -> Tensor:
        """Put the layer's keys and values of the batch into the pool; returns its queries [T, Hq, D]."""
        config = self._config
        return self._kernels.rope_and_cache(
            layer.qkv(x),
            self._cos_sin,
            batch.positions,
            batch.slots,
            self._cache.layers[index],
            config.num_heads,
            config.num_kv_heads,
            layer.q_norm,
            layer.k_norm,
            config.rms_norm_eps,
        )

    def _attend(self, q: Tensor, index: int, layer: LayerWeights, batch: Batch, *, last_only: bool) -> Tensor:
        """[T, Hq, D] -> [T, Hq * D]."""
        meta = batch.last_meta if last_only else batch.meta
        out = self._kernels.paged_attention(q, self._cache.layers[index], meta, self._scale, layer.window)
        return out.view(out.shape[0], -1)

    def _call(self, hook: LayerGroupHook, group: int, batch: Batch) -> None:
        if batch.token_ids.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # kernels only queue their writes
        hook(group, batch)
