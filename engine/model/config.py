"""The description of a model, `ModelConfig`, from its config.json.

Only JSON is read here: `engine.model.weights` reads tensors, and `engine.resolve` sizes the KV pool.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from baton.errors import CheckpointError
from baton.kv.layout import DTYPE_BYTES
from baton.model_dir import eos_token_ids, read_json
from engine.model.architecture import Family, LatentConfig, MixtureConfig, Norms, QKNorm
from engine.model.families import FAMILIES, LANGUAGE_MODELS
from engine.model.fields import Fields
from engine.model.quantization import quantization
from engine.model.quantized import Quantized
from engine.model.rope import RopeConfig
from kernels.api import Activation

_OF_THE_WHOLE = ("dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")  # these override text_config
_ORIGINAL = "original_max_position_embeddings"  # at the top level it is ignored if there are two ropes
_MOST_LAYERS = 10_000
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder. Everything in which families differ is a field, so that one decoder serves them all."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_draft_layers: int  # further layers in the checkpoint, not served: they draft tokens (multi-token prediction)
    num_heads: int
    num_kv_heads: int
    head_dim: int  # of queries, and of what is cached
    num_planes: int  # 2: keys and values are cached; 1: one latent, which is both
    rotary_dim: int  # dimensions of a head that are rotated
    interleaved_rotary: bool
    rms_norm_eps: float
    rope: RopeConfig
    local_rope: RopeConfig  # of layers with a window; usually the same
    attention_scale: float
    attention_softcap: float  # 0 is none
    logit_softcap: float  # 0 is none
    sinks: bool
    tie_word_embeddings: bool
    embedding_scale: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: QKNorm
    norms: Norms
    norm_offset: float
    activation: Activation
    windows: tuple[int, ...]  # of each layer: positions that a token sees, including its own; 0 is all
    mixture: MixtureConfig | None
    latent: LatentConfig | None
    quantized: Quantized | None  # how the checkpoint stores linears, if not in its dtype
    dtype: str  # of the checkpoint
    eos_token_ids: frozenset[int]

    @property
    def stretches_after(self) -> int:
        """Tokens beyond which a request gets another rotary embedding, for all its positions; 0: never."""
        return self.rope.stretches_after or self.local_rope.stretches_after

    @classmethod
    def load(cls, model_dir: str | Path) -> "ModelConfig":
        """Read `config.json` (and `generation_config.json`); CheckpointError names the file and the field."""
        path = Path(model_dir) / "config.json"
        architecture, raw = _language_model(path, read_json(path))
        family = FAMILIES[architecture]
        fields = Fields(path, raw, family.defaults)
        if fields.flag("use_bidirectional_attention") or fields.raw.get("is_causal") is False:
            fields.refuse("only causal models are served: use_bidirectional_attention or is_causal says otherwise")
        if fields.raw.get("per_layer_config"):
            fields.refuse("per_layer_config, which gives layers different shapes, is not served")
        num_layers, hidden_size = fields.count("num_hidden_layers", most=_MOST_LAYERS), fields.count("hidden_size")
        rope, local_rope = _ropes(fields, family)
        heads = _heads(fields, family, rope)
        rope.check(path, heads.rotary_dim)
        has_bias = fields.flag("attention_bias")
        return cls(
            architecture=architecture,
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=num_layers,
            num_draft_layers=fields.optional_count("num_nextn_predict_layers"),
            **heads._asdict(),
            interleaved_rotary=family.interleaved_rotary
            or (family.optional_interleaved_rotary and fields.flag("rope_interleave")),
            rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
            rope=rope,
            local_rope=local_rope,
            attention_softcap=fields.number("attn_logit_softcapping", 0.0) * family.attention_softcap,
            logit_softcap=fields.number("final_logit_softcapping", 0.0) * family.logit_softcap,
            sinks=family.sinks,
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            embedding_scale=hidden_size**0.5 if family.scales_embedding else 1.0,
            qkv_bias=family.qkv_bias or (family.optional_qkv_bias and has_bias),
            o_bias=family.optional_o_bias and has_bias,
            mlp_bias=family.mlp_bias and fields.flag("mlp_bias"),
            qk_norm=family.qk_norm,
            norms=family.norms,
            norm_offset=family.norm_offset,
            activation=family.activation or _activation(fields, family.activation_field),
            windows=family.windows(fields, num_layers),
            mixture=_mixture(fields, family, num_layers),
            quantized=quantization(fields, architecture),
            dtype=_dtype(fields),
            eos_token_ids=eos_token_ids(Path(model_dir)),
        )


class _Heads(NamedTuple):
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_planes: int
    rotary_dim: int
    attention_scale: float
    latent: LatentConfig | None


def _heads(fields: Fields, family: Family, rope: RopeConfig) -> _Heads:
    num_heads = fields.count("num_attention_heads")
    if family.latent:
        latent = family.latent(fields)
        if latent.kv_rank % 2:
            fields.refuse(f"kv_lora_rank {latent.kv_rank} is odd")
        scale = (latent.nope_dim + latent.rope_dim) ** -0.5 * rope.score_factor
        return _Heads(num_heads, 1, latent.kv_rank + latent.rope_dim, 1, latent.rope_dim, scale, latent)
    num_kv_heads = fields.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        fields.refuse(f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}")
    head_dim = fields.count("head_dim", fields.count("hidden_size") // num_heads)
    if head_dim % 2:
        fields.refuse(f"head_dim {head_dim} is odd")
    scaled_by = fields.positive("query_pre_attn_scalar", head_dim) if family.scaled_queries else head_dim
    return _Heads(num_heads, num_kv_heads, head_dim, 2, int(head_dim * rope.partial), scaled_by**-0.5, None)


def _language_model(path: Path, raw: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the language model's architecture, and the fields that describe it."""
    names = Fields(path, raw, {}).strings("architectures")
    for name in names:
        if name in FAMILIES:
            _compare(path, name, raw.get("model_type"))
            return name, raw
        if name in LANGUAGE_MODELS:
            architecture = LANGUAGE_MODELS[name]
            text = Fields(path, raw, {}).mapping("text_config")
            Fields(path, text, {}).only("model_type", FAMILIES[architecture].model_type)
            above = {field: raw[field] for field in _OF_THE_WHOLE if raw.get(field) is not None}
            return architecture, text | above
    known = ", ".join([*FAMILIES, *LANGUAGE_MODELS])
    raise CheckpointError(f"{path}: architectures {names} are not known; served are {known}")


def _compare(path: Path, architecture: str, model_type: object) -> None:
    """Warn if model_type is not the architecture's: some tools go by the one, some by the other."""
    expected = FAMILIES[architecture].model_type
    if model_type not in (None, expected):
        _log.warning("%s: served as %s, though model_type is %r, not %r", path, architecture, model_type, expected)


def _ropes(fields: Fields, family: Family) -> tuple[RopeConfig, RopeConfig]:
    """Return the RoPE of layers with full attention, and that of layers with a window."""
    scaling, parameters = fields.mapping("rope_scaling"), fields.mapping("rope_parameters")
    if fields.raw.get("rope_parameters") is None:
        parameters = family.defaults.get("rope_parameters", {})
    if family.two_ropes:
        whole, local = (_rope(fields, family, one) for one in _two_ropes(fields, scaling, parameters))
        if whole.stretches_after and local.stretches_after not in (0, whole.stretches_after):
            fields.refuse("rope_parameters of both kinds of layers depend on a request's length, but not on the same")
        return whole, local
    rope = _rope(fields, family, scaling or parameters)
    return rope, rope


def _two_ropes(fields: Fields, scaling: dict[str, Any], parameters: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the parameters of each; `rope_scaling`, in older checkpoints, is of the layers with full attention."""
    if set(parameters) - {"full_attention", "sliding_attention"}:
        fields.refuse("rope_parameters must be those of full_attention and sliding_attention in this architecture")
    if "type" in scaling and "rope_type" not in scaling:
        fields.refuse("rope_scaling must give its kind as rope_type in this architecture, not as type")
    nested = Fields(fields.path, parameters, {})
    whole, local = nested.mapping("full_attention") | scaling, nested.mapping("sliding_attention")
    for one in (whole, local):
        Fields(fields.path, one, {}).only("truncate", True)  # transformers ignores it there
    return whole, {"rope_theta": fields.number("rope_local_base_freq", 10000.0)} | local


def _rope(fields: Fields, family: Family, parameters: dict[str, Any]) -> RopeConfig:
    said = {name: value for name, value in fields.raw.items() if not (family.two_ropes and name == _ORIGINAL)}
    rope = RopeConfig.from_json(fields.path, said | {"rope_parameters": parameters}, family.longrope_alias)
    if rope.partial != 1.0 and not family.partial_rotary:
        fields.refuse(f"partial_rotary_factor {rope.partial} is not served in this architecture")
    return rope


def _activation(fields: Fields, field: str) -> Activation:
    name = fields.text(field, "silu")
    if name not in _ACTIVATIONS or fields.raw.get(field, name) is None:
        fields.refuse(f"{field} {fields.raw[field]!r} is not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _mixture(fields: Fields, family: Family, num_layers: int) -> MixtureConfig | None:
    if family.mixture is None:
        return None
    mixture = family.mixture(fields, num_layers)
    routing, num_experts = mixture.routing, mixture.num_experts
    if num_experts % routing.num_groups:
        fields.refuse(f"n_group {routing.num_groups} does not divide the {num_experts} experts")
    if routing.groups_per_token > routing.num_groups:
        fields.refuse(f"topk_group {routing.groups_per_token} is more than n_group {routing.num_groups}")
    if num_experts // routing.num_groups < routing.scores_per_group:
        fields.refuse(f"n_group {routing.num_groups} leaves less than {routing.scores_per_group} experts in a group")
    eligible = num_experts // routing.num_groups * routing.groups_per_token
    if routing.experts_per_token > eligible:
        fields.refuse(f"num_experts_per_tok {routing.experts_per_token} is more than the {eligible} to choose from")
    return mixture


def _dtype(fields: Fields) -> str:
    name = str(fields.raw.get("dtype") or fields.raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in DTYPE_BYTES:
        fields.refuse(f"dtype {name} is not one of {', '.join(DTYPE_BYTES)}")
    return name
