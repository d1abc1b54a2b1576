"""The mixtures of experts of each family, from its config.json."""

from engine.model.architecture import MixtureConfig
from engine.model.fields import Fields
from engine.model.routing import Routing


def mixtral(fields: Fields, num_layers: int) -> MixtureConfig:
    """All layers are mixtures."""
    return MixtureConfig(
        num_experts=fields.count("num_local_experts"),
        ffn_size=fields.count("intermediate_size"),
        layers=(True,) * num_layers,
        routing=Routing(experts_per_token=fields.count("num_experts_per_tok"), normalized=True),
        block="block_sparse_moe",
        gate_up_down=("w1", "w3", "w2"),
    )


def qwen3_moe(fields: Fields, num_layers: int) -> MixtureConfig:
    """Some layers may be dense: those in mlp_only_layers, and all but every n-th."""
    dense, step = fields.integers("mlp_only_layers"), fields.count("decoder_sparse_step")
    experts_per_token = fields.count("num_experts_per_tok")
    return MixtureConfig(
        num_experts=fields.count("num_experts", fields.optional_count("num_local_experts") or 128),
        ffn_size=fields.count("moe_intermediate_size"),
        layers=tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)),
        routing=Routing(experts_per_token=experts_per_token, normalized=fields.flag("norm_topk_prob")),
    )


def gpt_oss(fields: Fields, num_layers: int) -> MixtureConfig:
    """All layers are mixtures. The constants of the experts' activation are fixed in the kernels."""
    if (fields.number("swiglu_alpha", 1.702), fields.number("swiglu_limit", 7.0)) != (1.702, 7.0):
        fields.refuse("swiglu_alpha other than 1.702 and swiglu_limit other than 7 are not served")
    return MixtureConfig(
        num_experts=fields.count("num_local_experts"),
        ffn_size=fields.count("intermediate_size"),
        layers=(True,) * num_layers,
        routing=Routing(experts_per_token=fields.count("num_experts_per_tok"), score="chosen"),
        router="router",
        router_bias=True,
        interleaved=True,
    )


def _deepseek(fields: Fields, num_layers: int, routing: Routing, *, correction_bias: bool) -> MixtureConfig:
    """The first layers are dense. The shared experts are computed as one feed-forward, as wide as all of them."""
    fields.only("moe_layer_freq", 1)
    ffn_size, first = fields.count("moe_intermediate_size"), fields.optional_count("first_k_dense_replace")
    return MixtureConfig(
        num_experts=fields.count("n_routed_experts"),
        ffn_size=ffn_size,
        layers=tuple(layer >= first for layer in range(num_layers)),
        routing=routing,
        shared_ffn_size=ffn_size * fields.optional_count("n_shared_experts"),
        correction_bias=correction_bias,
        wide_router=True,
    )


def deepseek_v2(fields: Fields, num_layers: int) -> MixtureConfig:
    """Softmax scores; the score of a group is that of its best expert."""
    method = fields.raw.get("topk_method")
    if method not in ("greedy", "group_limited_greedy"):
        fields.refuse(f"topk_method {method!r} is neither greedy nor group_limited_greedy")
    fields.only("scoring_func", "softmax")
    fields.only("norm_topk_prob", False)
    is_grouped = method == "group_limited_greedy"
    routing = Routing(
        experts_per_token=fields.count("num_experts_per_tok"),
        scale=fields.number("routed_scaling_factor", 1.0),
        num_groups=fields.count("n_group") if is_grouped else 1,
        groups_per_token=fields.count("topk_group") if is_grouped else 1,
    )
    return _deepseek(fields, num_layers, routing, correction_bias=False)


def deepseek_v3(fields: Fields, num_layers: int) -> MixtureConfig:
    """Sigmoid scores, with a correction for the choice; the score of a group is that of its best two experts."""
    fields.only("scoring_func", "sigmoid")
    fields.only("topk_method", "noaux_tc")
    routing = Routing(
        experts_per_token=fields.count("num_experts_per_tok"),
        score="sigmoid",
        normalized=fields.flag("norm_topk_prob"),
        scale=fields.number("routed_scaling_factor", 1.0),
        num_groups=fields.count("n_group"),
        groups_per_token=fields.count("topk_group"),
        scores_per_group=2,
    )
    return _deepseek(fields, num_layers, routing, correction_bias=True)
