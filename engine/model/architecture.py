"""What a model family can differ in: a row of `engine.model.families`, and the parts that not all models have.

Names of tensors are Hugging Face's, relative to the layer they belong to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.model.fields import Fields
from engine.model.routing import Routing
from kernels.api import Activation

QKNorm = Literal["", "head", "projection"]  # of q and k: none, over each head, over all heads together


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Names of a layer's norms; "" is none."""

    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_feed_forward: str = "post_attention_layernorm"
    after_feed_forward: str = ""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A feed-forward of experts, in the layers that have one."""

    num_experts: int
    ffn_size: int  # of one expert
    layers: tuple[bool, ...]  # whether that layer is a mixture
    routing: Routing
    shared_ffn_size: int = 0  # of the experts that all tokens go to; 0 is none
    router: str = "gate"
    router_bias: bool = False
    correction_bias: bool = False
    wide_router: bool = False  # its product in fp32, whatever the model's type
    block: str = "mlp"
    gate_up_down: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")  # where each expert has its own tensors
    interleaved: bool = False  # where experts are stored together: inputs before outputs, gate and up taking turns


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention: keys and values of all heads are linear in one latent, and only that is cached."""

    query_rank: int  # 0: queries come straight from the hidden state
    kv_rank: int
    nope_dim: int  # of a query head, not rotated
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """What an architecture's name says beyond its config.json."""

    model_type: str  # the other name of the same thing
    defaults: Mapping[str, Any] = field(default_factory=dict)  # for fields that its configs may omit
    qkv_bias: bool = False  # always
    optional_qkv_bias: bool = False  # where attention_bias is set
    optional_o_bias: bool = False  # the same
    mlp_bias: bool = False  # where mlp_bias is set
    qk_norm: QKNorm = ""
    norms: Norms = Norms()
    norm_offset: float = 0.0  # added to every norm weight
    scales_embedding: bool = False  # by the root of hidden_size
    activation: Activation | Literal[""] = ""  # "": as config.json says
    activation_field: str = "hidden_act"  # where it says so
    partial_rotary: bool = False  # rotates only partial_rotary_factor of a head
    interleaved_rotary: bool = False  # pairs are neighbours, not halves
    optional_interleaved_rotary: bool = False  # where rope_interleave is set
    scaled_queries: bool = False  # by query_pre_attn_scalar, where that is set
    attention_softcap: bool = False  # where attn_logit_softcapping is set
    logit_softcap: bool = False  # where final_logit_softcapping is set
    sinks: bool = False
    windows: Callable[[Fields, int], tuple[int, ...]] = lambda _, num_layers: (0,) * num_layers
    two_ropes: bool = False  # layers with a window have one of their own
    longrope_alias: str = ""  # what its configs also call longrope
    mixture: Callable[[Fields, int], MixtureConfig] | None = None
    latent: Callable[[Fields], LatentConfig] | None = None
