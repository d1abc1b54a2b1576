"""Random checkpoints of every served family, as transformers itself writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

VOCAB = 199
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ORIGINAL = {"original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | ORIGINAL
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4} | ORIGINAL
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [2.0, 3.0, 5.0],
}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
QUARTER_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
MOE = {"num_experts_per_tok": 3, "moe_intermediate_size": 24}
DEEPSEEK = MOE | {
    "rms_norm_eps": 1e-3,  # the latents' norms have one of their own
    "num_key_value_heads": 6,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 4, "topk_group": 2}
SOFTCAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
NO_SOFTCAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-bias-untied": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3 | {"rope_theta": 10000.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 11, "head_dim": 16}),
    "mistral-full": ("Mistral", {"sliding_window": None, "num_attention_heads": 4, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "sliding_window": 11}),
    "mixtral-tied": ("Mixtral", {"num_local_experts": 3, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-moe": (
        "Qwen3Moe",
        MOE | {"num_experts": 6, "mlp_only_layers": [1], "norm_topk_prob": True, "head_dim": 16},
    ),
    "qwen3-moe-steps": (
        "Qwen3Moe",
        MOE
        | {"num_experts": 6, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 9}
        | {"attention_bias": True, "tie_word_embeddings": True},
    ),
    "gemma2": ("Gemma2", SOFTCAPS | {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24}),
    "gemma2-untied": ("Gemma2", NO_SOFTCAPS | {"head_dim": 16, "tie_word_embeddings": False}),
    "gemma3": (
        "Gemma3",
        {"head_dim": 16, "sliding_window": 9, "sliding_window_pattern": 3, "query_pre_attn_scalar": 24}
        | {"rope_parameters": TWO_ROPES},
    ),
    "phi3": ("Phi3", {"sliding_window": 13}),
    "phi3-longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 96, "tie_word_embeddings": True},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2-bias": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 6}),
    "glm": ("Glm", {"head_dim": 12}),
    "glm4": ("Glm4", {"head_dim": 16, "attention_bias": False, "rope_parameters": QUARTER_ROPE}),
    "gpt-oss": (
        "GptOss",
        {"head_dim": 16, "sliding_window": 9, "num_local_experts": 5, "num_experts_per_tok": 2}
        | {"hidden_size": 64, "intermediate_size": 96}  # as MXFP4 wants them
        | {"rope_parameters": YARN | {"truncate": False}},
    ),
    "deepseek-v2": (
        "DeepseekV2",
        DEEPSEEK
        | GROUPS
        | {"q_lora_rank": None, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.7}
        | {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}},
    ),
    "deepseek-v2-bias": ("DeepseekV2", DEEPSEEK | {"q_lora_rank": 20, "attention_bias": True, "mlp_bias": True}),
    "deepseek-v3": (
        "DeepseekV3",
        DEEPSEEK
        | GROUPS
        | {"q_lora_rank": 20, "n_shared_experts": 2}
        | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek-v3-halves": (
        "DeepseekV3",
        DEEPSEEK
        | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}
        | {"attention_bias": True, "rope_interleave": False},
    ),
}


class Family(NamedTuple):
    name: str
    model: Any  # transformers'
    directory: Path


def make_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' random model, with norms, biases, sinks and corrections that matter."""
    family, changes = FAMILIES[name]
    torch.manual_seed(3)
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")(**(SMALL | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() == 1 else 2 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * scale)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.3)
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def save_family():
    """Writes a checkpoint of that name into a directory; returns transformers' model of it."""

    def save(directory: Path, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        model = make_model(name, dtype)
        model.save_pretrained(directory, **options)
        return model

    return save


@pytest.fixture
def stored(tmp_path, save_family) -> Callable[[str], Path]:
    """A checkpoint of that name."""

    def store(name: str) -> Path:
        save_family(tmp_path / "stored", name)
        return tmp_path / "stored"

    return store


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory, save_family) -> Family:
    """Each of the checkpoints in turn."""
    directory = tmp_path_factory.mktemp(request.param)
    return Family(request.param, save_family(directory, request.param), directory)
