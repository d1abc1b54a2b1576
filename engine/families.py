"""The model families that the one decoder serves, and in what they differ. A new family is a new row here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _no_windows(raw: dict[str, Any], num_layers: int) -> tuple[int, ...]:
    return (0,) * num_layers


def _one_window(raw: dict[str, Any], num_layers: int) -> tuple[int, ...]:
    """Mistral: one window in all layers; its configs from before the field existed meant 4096."""
    return (raw.get("sliding_window", 4096) or 0,) * num_layers


def _upper_windows(raw: dict[str, Any], num_layers: int) -> tuple[int, ...]:
    """Qwen: windows where asked for, in the upper layers, or in the layers that `layer_types` names."""
    window = (raw.get("sliding_window", 4096) or 0) if raw.get("use_sliding_window") else 0
    first = raw.get("max_window_layers", 28)
    default = ["full_attention" if layer < first else "sliding_attention" for layer in range(num_layers)]
    kinds = raw.get("layer_types") or default
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds[:num_layers])


@dataclass(frozen=True, kw_only=True)
class Family:
    """What an architecture's name says beyond its config.json. Defaults stand for fields that its configs may omit."""

    qkv_bias: bool = False  # always
    optional_bias: bool = False  # of q, k, v and o, where attention_bias is set
    mlp_bias: bool = False  # where mlp_bias is set
    qk_norm: bool = False
    windows: Callable[[dict[str, Any], int], tuple[int, ...]] = _no_windows
    num_kv_heads: int = 0  # 0: as many as heads
    head_dim: int = 0  # 0: hidden_size / heads


FAMILIES = {
    "LlamaForCausalLM": Family(optional_bias=True, mlp_bias=True),
    "MistralForCausalLM": Family(windows=_one_window, num_kv_heads=8),
    "Qwen2ForCausalLM": Family(qkv_bias=True, windows=_upper_windows, num_kv_heads=32),
    "Qwen3ForCausalLM": Family(optional_bias=True, qk_norm=True, windows=_upper_windows, num_kv_heads=32, head_dim=128),
}
