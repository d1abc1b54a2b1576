"""The model families that the decoder serves, and how they differ. A new family is a new row of `FAMILIES`."""

from engine.model import mixtures, windows
from engine.model.architecture import Family, LatentConfig, Norms
from engine.model.fields import Fields


def _latent(fields: Fields) -> LatentConfig:
    return LatentConfig(
        query_rank=fields.optional_count("q_lora_rank"),
        kv_rank=fields.count("kv_lora_rank"),
        nope_dim=fields.count("qk_nope_head_dim"),
        rope_dim=fields.count("qk_rope_head_dim"),
        value_dim=fields.count("v_head_dim"),
    )


_GEMMA_NORMS = Norms(
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
)
_GEMMA_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
    "max_position_embeddings": 131072,
}
_GLM_DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1.5625e-07,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}
_QWEN_DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_QWEN3_MOE_DEFAULTS = {
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
_GPT_OSS_YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
_GPT_OSS_DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "attention_bias": True,
    "sliding_window": 128,
    "num_experts_per_tok": 4,
    "rope_theta": 150000.0,
    "rope_parameters": _GPT_OSS_YARN,
}
_DEEPSEEK_DEFAULTS = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_DEEPSEEK_V2_DEFAULTS = _DEEPSEEK_DEFAULTS | {
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
    "topk_method": "greedy",
}
_DEEPSEEK_V3_DEFAULTS = _DEEPSEEK_DEFAULTS | {
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "rope_interleave": True,
}

FAMILIES = {
    "LlamaForCausalLM": Family(model_type="llama", optional_qkv_bias=True, optional_o_bias=True, mlp_bias=True),
    "MistralForCausalLM": Family(
        model_type="mistral", defaults={"num_key_value_heads": 8, "sliding_window": 4096}, windows=windows.one_window
    ),
    "MixtralForCausalLM": Family(
        model_type="mixtral",
        defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 2},
        windows=windows.one_window,
        mixture=mixtures.mixtral,
    ),
    "Qwen2ForCausalLM": Family(
        model_type="qwen2", defaults=_QWEN_DEFAULTS, qkv_bias=True, windows=windows.upper_windows
    ),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3",
        defaults=_QWEN_DEFAULTS | {"head_dim": 128},
        optional_qkv_bias=True,
        optional_o_bias=True,
        qk_norm="head",
        windows=windows.upper_windows,
    ),
    "Qwen3MoeForCausalLM": Family(
        model_type="qwen3_moe",
        defaults=_QWEN3_MOE_DEFAULTS,
        optional_qkv_bias=True,
        optional_o_bias=True,
        qk_norm="head",
        windows=windows.asked_window,
        mixture=mixtures.qwen3_moe,
    ),
    "Gemma2ForCausalLM": Family(
        model_type="gemma2",
        defaults=_GEMMA_DEFAULTS | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        optional_qkv_bias=True,
        optional_o_bias=True,
        norms=_GEMMA_NORMS,
        norm_offset=1.0,
        activation_field="hidden_activation",
        scaled_queries=True,
        attention_softcap=True,
        logit_softcap=True,
        scales_embedding=True,
        windows=windows.alternating_windows,
    ),
    "Gemma3ForCausalLM": Family(
        model_type="gemma3_text",
        defaults=_GEMMA_DEFAULTS | _GEMMA3_DEFAULTS,
        optional_qkv_bias=True,
        optional_o_bias=True,
        qk_norm="head",
        norms=_GEMMA_NORMS,
        norm_offset=1.0,
        activation_field="hidden_activation",
        scaled_queries=True,
        logit_softcap=True,
        scales_embedding=True,
        windows=windows.patterned_windows,
        two_ropes=True,
    ),
    "Phi3ForCausalLM": Family(
        model_type="phi3",
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        windows=windows.one_window,
        partial_rotary=True,
        longrope_alias="yarn",
    ),
    "Olmo2ForCausalLM": Family(
        model_type="olmo2",
        defaults={"rms_norm_eps": 1e-5},
        optional_qkv_bias=True,
        optional_o_bias=True,
        qk_norm="projection",
        norms=Norms(
            before_attention="",
            after_attention="post_attention_layernorm",
            before_feed_forward="",
            after_feed_forward="post_feedforward_layernorm",
        ),
    ),
    "GlmForCausalLM": Family(
        model_type="glm", defaults=_GLM_DEFAULTS, optional_qkv_bias=True, partial_rotary=True, interleaved_rotary=True
    ),
    "Glm4ForCausalLM": Family(
        model_type="glm4",
        defaults=_GLM_DEFAULTS,
        optional_qkv_bias=True,
        partial_rotary=True,
        interleaved_rotary=True,
        norms=Norms(after_attention="post_self_attn_layernorm", after_feed_forward="post_mlp_layernorm"),
    ),
    "GptOssForCausalLM": Family(
        model_type="gpt_oss",
        defaults=_GPT_OSS_DEFAULTS,
        optional_qkv_bias=True,
        optional_o_bias=True,
        activation="swiglu_oai",
        sinks=True,
        windows=windows.alternating_windows,
        mixture=mixtures.gpt_oss,
    ),
    "DeepseekV2ForCausalLM": Family(
        model_type="deepseek_v2",
        defaults=_DEEPSEEK_V2_DEFAULTS,
        optional_qkv_bias=True,
        optional_o_bias=True,
        mlp_bias=True,
        interleaved_rotary=True,
        mixture=mixtures.deepseek_v2,
        latent=_latent,
    ),
    "DeepseekV3ForCausalLM": Family(
        model_type="deepseek_v3",
        defaults=_DEEPSEEK_V3_DEFAULTS,
        optional_qkv_bias=True,
        optional_o_bias=True,
        optional_interleaved_rotary=True,
        mixture=mixtures.deepseek_v3,
        latent=_latent,
    ),
}

# Models of text and images, served for text only: the architecture of `text_config` and of tensors in `language_model`.
LANGUAGE_MODELS = {
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
}
