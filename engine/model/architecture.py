"""How model families can differ: the rows of `engine.model.families`, and the parts that only some models have.

Names of tensors are Hugging Face's, relative to their layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.model.fields import Fields
from engine.model.routing import Routing
from kernels.api import Activation

QKNorm = Literal["", "head", "projection"]  # norm of q and k: none, over each head, over all heads together


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Names of a layer's norms; "" if it has none there."""

    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_feed_forward: str = "post_attention_layernorm"
    after_feed_forward: str = ""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The mixture-of-experts feed-forward of a model, in the layers that have one."""

    num_experts: int
    ffn_size: int  # of one expert
    layers: tuple[bool, ...]  # whether each layer is a mixture
    routing: Routing
    shared_ffn_size: int = 0  # of the experts that process all tokens; 0 if there are none
    router: str = "gate"
    router_bias: bool = False
    correction_bias: bool = False
    wide_router: bool = False  # the router's product is in fp32, whatever the model's dtype
    block: str = "mlp"
    gate_up_down: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")  # if each expert has its own tensors
    interleaved: bool = False  # experts are stored together, inputs before outputs, gate and up interleaved


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention: keys and values of all heads are linear in one latent, and only that is cached."""

    query_rank: int  # 0: queries are computed directly from the hidden state
    kv_rank: int
    nope_dim: int  # dimensions of a query head that are not rotated
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """What an architecture implies that its config.json does not say. Of a flag "if X", X is a field of config.json."""

    model_type: str  # the family's other name in config.json
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of fields that its configs may omit
    qkv_bias: bool = False  # always
    optional_qkv_bias: bool = False  # if attention_bias
    optional_o_bias: bool = False  # if attention_bias
    mlp_bias: bool = False  # if mlp_bias
    qk_norm: QKNorm = ""
    norms: Norms = Norms()
    norm_offset: float = 0.0  # added to every norm weight
    scales_embedding: bool = False  # by the square root of hidden_size
    activation: Activation | Literal[""] = ""  # "": the one that config.json names
    activation_field: str = "hidden_act"  # the field that names it
    partial_rotary: bool = False  # may rotate only a part of a head, partial_rotary_factor
    interleaved_rotary: bool = False  # rotated pairs are neighbours, not halves
    optional_interleaved_rotary: bool = False  # the same, if rope_interleave
    scaled_queries: bool = False  # attention is scaled by query_pre_attn_scalar, if set
    attention_softcap: bool = False  # if attn_logit_softcapping
    logit_softcap: bool = False  # if final_logit_softcapping
    sinks: bool = False
    windows: Callable[[Fields, int], tuple[int, ...]] = lambda _, num_layers: (0,) * num_layers
    two_ropes: bool = False  # layers with a window have a rotary embedding of their own
    longrope_alias: str = ""  # another name of longrope in its configs
    mixture: Callable[[Fields, int], MixtureConfig] | None = None
    latent: Callable[[Fields], LatentConfig] | None = None
