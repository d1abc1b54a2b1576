"""From a checkpoint to the linears and norms of the decoder: q, k and v fused into one, gate and up into another.

It knows the tensor names of the served families; reading files is `engine.checkpoint`, laying weights out is the
kernels'.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from kernels.api import Kernels, Linear


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Norm weights are [H], those of q and k [D]."""

    input_norm: Tensor
    qkv: Linear  # [T, H] -> [T, (Hq + 2 Hkv) * D]
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_norm: Tensor
    gate_up: Linear  # [T, H] -> [T, 2F]
    down: Linear
    window: int


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole decoder."""

    embedding: Tensor  # [V, H]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    lm_head: Linear


class WeightLoader:
    """Reads one model's weights; `progress` hears of the fraction done, 1.0 last."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._kernels = kernels
        self._dtype = dtype
        self._device = device

    def load(self, progress: Callable[[float], None]) -> Weights:
        """All weights, on the device, in its dtype; CheckpointError names file and tensor."""
        config = self._config
        embedding = self._get("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        layers = []
        for index in range(config.num_layers):
            progress(index / (config.num_layers + 1))
            layers.append(self._layer(index))
        final_norm = self._get("model.norm.weight", config.hidden_size)
        head = embedding
        if not config.tie_word_embeddings:
            head = self._get("lm_head.weight", config.vocab_size, config.hidden_size)
        weights = Weights(embedding, tuple(layers), final_norm, self._kernels.pack_linear(head, None))
        progress(1.0)
        return weights

    def _layer(self, index: int) -> LayerWeights:
        config, prefix = self._config, f"model.layers.{index}"
        hidden, ffn = config.hidden_size, config.intermediate_size
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = {f"{attention}.q_proj": queries, f"{attention}.k_proj": keys, f"{attention}.v_proj": keys}
        gate_up = {f"{mlp}.gate_proj": ffn, f"{mlp}.up_proj": ffn}
        return LayerWeights(
            input_norm=self._get(f"{prefix}.input_layernorm.weight", hidden),
            qkv=self._linear(qkv, hidden, config.qkv_bias),
            q_norm=self._get(f"{attention}.q_norm.weight", config.head_dim) if config.qk_norm else None,
            k_norm=self._get(f"{attention}.k_norm.weight", config.head_dim) if config.qk_norm else None,
            o=self._linear({f"{attention}.o_proj": hidden}, queries, config.o_bias),
            post_norm=self._get(f"{prefix}.post_attention_layernorm.weight", hidden),
            gate_up=self._linear(gate_up, hidden, config.mlp_bias),
            down=self._linear({f"{mlp}.down_proj": hidden}, ffn, config.mlp_bias),
            window=config.windows[index],
        )

    def _linear(self, outputs: dict[str, int], num_inputs: int, has_bias: bool) -> Linear:
        """The linears named in `outputs` (with their numbers of outputs) as one."""
        weight = torch.cat([self._get(f"{name}.weight", size, num_inputs) for name, size in outputs.items()])
        bias = torch.cat([self._get(f"{name}.bias", size) for name, size in outputs.items()]) if has_bias else None
        return self._kernels.pack_linear(weight, bias)

    def _get(self, name: str, *shape: int) -> Tensor:
        """A copy in memory: a view of the file would fault pages in during the first requests."""
        mapped = self._checkpoint.tensor(name, shape)
        return mapped.to(device=self._device, dtype=self._dtype, copy=True)
