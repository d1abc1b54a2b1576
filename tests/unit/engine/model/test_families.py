"""The model config of each family, from a config.json as checkpoints of that family have it."""

import json

import pytest

from baton.errors import CheckpointError
from engine.model.config import ModelConfig
from engine.model.families import FAMILIES
from engine.random_checkpoint import TINY

PLAIN = {name: value for name, value in TINY.items() if name not in ("head_dim", "tie_word_embeddings", "hidden_act")}
MLA = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 24, "v_head_dim": 16, "num_experts_per_tok": 2}


@pytest.fixture
def load(tmp_path):
    """The config of a four-layer model of that architecture; a value of None drops the field."""

    def read(architecture, **changes):
        raw = PLAIN | {"architectures": [architecture]} | changes
        raw = {name: value for name, value in raw.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return ModelConfig.load(tmp_path)

    return read


def test_an_unknown_architecture_lists_the_known(load):
    with pytest.raises(CheckpointError) as caught:
        load("Llama4ForConditionalGeneration")
    assert "'Llama4ForConditionalGeneration'" in caught.value.message
    assert all(name in caught.value.message for name in FAMILIES)


ALIEN = {
    "final_logit_softcapping": 1.0,
    "attn_logit_softcapping": 1.0,
    "query_pre_attn_scalar": 100,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_interleave": False,
    "rope_local_base_freq": 7.0,
    "sliding_window_pattern": 3,
}


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM", "GlmForCausalLM", "Phi3ForCausalLM"]
)
def test_fields_of_other_families_are_ignored(load, architecture):
    """As in transformers: configs may contain any fields that their authors wrote into them."""
    assert load(architecture, **ALIEN) == load(architecture)


def test_deepseek_v2_rotates_neighbours_whatever_a_field_of_v3_says(load):
    fields = MLA | {"n_group": 1, "topk_group": 1}
    assert load("DeepseekV2ForCausalLM", **fields, **ALIEN) == load("DeepseekV2ForCausalLM", **fields)


def test_gemma_has_its_activation_in_a_field_of_its_own(load):
    assert load("Gemma2ForCausalLM", hidden_act="silu").activation == "gelu_tanh"
    assert load("Gemma2ForCausalLM", hidden_activation="silu").activation == "silu"


def test_text_of_a_model_of_images_is_described_by_its_text_config_alone(load):
    text = {name: value for name, value in PLAIN.items() if name not in ("architectures", "model_type")}
    nothing = dict.fromkeys(text)
    above = {"hidden_act": "gelu_pytorch_tanh", "sliding_window": 7, "dtype": "bfloat16"}
    model = load("Mistral3ForConditionalGeneration", **nothing | above, text_config=text | {"sliding_window": None})
    assert (model.activation, model.windows, model.dtype) == ("silu", (0,) * 4, "bfloat16")
    assert load("Mistral3ForConditionalGeneration", **nothing | above, text_config=text).windows == (4096,) * 4


def test_gemma2_alternates_windows_and_ties_its_head(load):
    model = load("Gemma2ForCausalLM", query_pre_attn_scalar=144)
    assert model.windows == (4096, 0, 4096, 0)
    assert (model.tie_word_embeddings, model.head_dim, model.activation) == (True, 256, "gelu_tanh")
    assert (model.attention_softcap, model.logit_softcap, model.attention_scale) == (50.0, 30.0, 1 / 12)
    assert (model.embedding_scale, model.norm_offset) == (8.0, 1.0)
    assert load("Gemma2ForCausalLM", tie_word_embeddings=False).tie_word_embeddings is False


def test_gemma3_as_published_relies_on_defaults_for_its_text(load):
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    nothing = dict.fromkeys(PLAIN.keys() - {"architectures"})
    model = load("Gemma3ForConditionalGeneration", **nothing | {"text_config": text, "torch_dtype": "bfloat16"})
    assert (model.architecture, model.vocab_size, model.num_heads, model.num_kv_heads) == (
        "Gemma3ForCausalLM",
        262208,
        8,
        4,
    )
    assert (model.head_dim, model.dtype, model.rope.max_length) == (256, "bfloat16", 131072)
    assert model.tie_word_embeddings
    assert not load("Gemma3ForConditionalGeneration", text_config=text, tie_word_embeddings=False).tie_word_embeddings
    with pytest.raises(CheckpointError, match="text_config must be an object"):
        load("Gemma3ForConditionalGeneration", text_config="none")


def test_qwen3_moe_has_dense_layers_where_named_and_between_steps(load):
    named = load("Qwen3MoeForCausalLM", num_experts=16, mlp_only_layers=[0, 2], norm_topk_prob=True)
    assert named.mixture.layers == (False, True, False, True)
    assert (named.mixture.num_experts, named.mixture.ffn_size, named.mixture.routing.normalized) == (16, 768, True)
    stepped = load("Qwen3MoeForCausalLM", num_local_experts=16, decoder_sparse_step=3)
    assert stepped.mixture.layers == (False, False, True, False)
    assert (stepped.mixture.num_experts, stepped.windows) == (16, (0,) * 4)
    asked = load("Qwen3MoeForCausalLM", num_experts=16, use_sliding_window=True, sliding_window=64)
    assert asked.windows == (64,) * 4


def test_mixtral_has_no_window_unless_it_says_so(load):
    assert load("MixtralForCausalLM", num_local_experts=8).windows == (0,) * 4
    assert load("MixtralForCausalLM", num_local_experts=8, sliding_window=32).windows == (32,) * 4
    assert load("MixtralForCausalLM", num_local_experts=8, rope_theta=None).rope.theta == 1e6


def test_partial_and_interleaved_rotation(load):
    for name in ("GlmForCausalLM", "Glm4ForCausalLM"):
        model = load(name, head_dim=32)
        assert (model.rotary_dim, model.interleaved_rotary, model.qkv_bias, model.o_bias) == (16, True, True, False)
    phi = load("Phi3ForCausalLM", head_dim=32, partial_rotary_factor=0.75)
    assert (phi.rotary_dim, phi.interleaved_rotary) == (24, False)
    with pytest.raises(CheckpointError, match=r"partial_rotary_factor 0\.1 would rotate 3 dimensions"):
        load("Phi3ForCausalLM", head_dim=32, partial_rotary_factor=0.1)


def test_longrope_stretches_what_is_longer_than_it_was_trained_on(load):
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    fields = {"rope_scaling": factors | {"type": "su"}, "original_max_position_embeddings": 128}
    rope = load("Phi3ForCausalLM", **fields).rope
    assert (rope.kind, rope.default_length, rope.max_length, rope.stretches_after) == ("longrope", 512, 512, 128)
    assert rope.variant(512) == ""
    assert load("Phi3ForCausalLM", **fields | {"rope_scaling": factors | {"type": "yarn"}}).rope == rope


def test_olmo2_norms_after_its_blocks_only(load):
    model = load("Olmo2ForCausalLM")
    assert (model.norms.before_attention, model.norms.before_feed_forward, model.qk_norm) == ("", "", "projection")


def test_gpt_oss_is_stretched_unless_it_says_otherwise(load, tmp_path):
    model = load("GptOssForCausalLM", num_local_experts=8, rope_theta=None)
    assert (model.windows, model.sinks, model.o_bias) == ((128, 0, 128, 0), True, True)
    assert (model.rope.kind, model.rope.theta, model.rope.values["truncate"]) == ("yarn", 150000.0, False)
    assert (model.mixture.routing.score, model.mixture.routing.experts_per_token) == ("chosen", 4)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": None}))
    assert ModelConfig.load(tmp_path).rope == model.rope
    assert load("GptOssForCausalLM", num_local_experts=8, rope_parameters={}).rope.kind == "default"


def test_deepseek_caches_one_vector(load):
    model = load("DeepseekV2ForCausalLM", **MLA, head_dim=8)
    assert (model.num_kv_heads, model.head_dim, model.num_planes, model.rotary_dim) == (1, 24, 1, 8)
    assert model.attention_scale == 32**-0.5
    yarn = {"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707}
    stretched = load("DeepseekV2ForCausalLM", **MLA, rope_scaling=yarn)
    assert stretched.attention_scale == pytest.approx(32**-0.5 * 1.2608**2, rel=1e-4)


def test_deepseek_layers_and_groups(load):
    v2 = load(
        "DeepseekV2ForCausalLM", **MLA, n_group=4, topk_group=2, first_k_dense_replace=1, moe_intermediate_size=32
    )
    assert v2.mixture.layers == (False, True, True, True)
    assert (v2.mixture.routing.num_groups, v2.mixture.shared_ffn_size) == (1, 64)
    limited = load("DeepseekV2ForCausalLM", **MLA, n_group=4, topk_group=2, topk_method="group_limited_greedy")
    assert limited.mixture.routing.num_groups == 4
    v3 = load("DeepseekV3ForCausalLM", **MLA)
    assert (v3.mixture.routing.score, v3.mixture.routing.scores_per_group, v3.mixture.routing.scale) == (
        "sigmoid",
        2,
        2.5,
    )
    assert v3.interleaved_rotary
    assert not load("DeepseekV3ForCausalLM", **MLA, rope_interleave=False).interleaved_rotary


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("DeepseekV3ForCausalLM", {"n_group": 7}, "n_group 7 does not divide the 256 experts"),
        ("DeepseekV3ForCausalLM", {"topk_group": 9}, "topk_group 9 is more than n_group 8"),
        (
            "DeepseekV3ForCausalLM",
            {"topk_group": 1, "num_experts_per_tok": 33},
            "33 is more than the 32 to choose from",
        ),
        ("DeepseekV2ForCausalLM", {"topk_method": "noaux"}, "topk_method 'noaux' is neither greedy nor"),
        ("DeepseekV2ForCausalLM", {"kv_lora_rank": 15}, "kv_lora_rank 15 is odd"),
        ("MixtralForCausalLM", {}, "num_local_experts must be a positive integer, not None"),
        ("GptOssForCausalLM", {"num_local_experts": 8, "swiglu_limit": 9.0}, "swiglu_limit other than 7"),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": "no"}, "final_logit_softcapping must be a number"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be more than 0"),
        ("Gemma2ForCausalLM", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not one of"),
        (
            "Gemma3ForCausalLM",
            {"rope_parameters": {"rope_theta": 1e4}},
            "those of full_attention and sliding_attention",
        ),
        ("Gemma3ForCausalLM", {"rope_scaling": {"type": "linear"}}, "must give its kind as rope_type"),
        ("Gemma3ForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not served"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "yarn", "factor": 2}}, "'longrope' needs 8 positive numbers"),
        ("DeepseekV3ForCausalLM", {"n_group": 256}, "n_group 256 leaves less than 2 experts in a group"),
        (
            "Qwen3MoeForCausalLM",
            {"num_experts": 16, "mlp_only_layers": 3},
            "mlp_only_layers must be a list of integers",
        ),
        ("Phi3ForCausalLM", {"rope_scaling": "longrope"}, "rope_scaling must be an object, not 'longrope'"),
        ("Gemma2ForCausalLM", {"layer_types": "all"}, "layer_types must be a list of strings"),
        ("Qwen3MoeForCausalLM", {"num_experts": 4}, "num_experts_per_tok 8 is more than the 4"),
    ],
)
def test_errors_name_the_field(load, tmp_path, architecture, changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(architecture, **(MLA | changes if "Deepseek" in architecture else changes))
    assert str(tmp_path / "config.json") in caught.value.message


@pytest.mark.parametrize(("model", "kind"), [("Mistral3", "ministral3"), ("Gemma3", "gemma3n_text")])
def test_text_models_of_another_kind_under_the_same_name(load, model, kind):
    """Ministral 3 scales queries by their positions, which only the model_type of its text_config shows."""
    text = PLAIN | {"architectures": None}
    assert load(f"{model}ForConditionalGeneration", text_config=text | {"model_type": None}).num_layers == 4
    with pytest.raises(CheckpointError, match=f"model_type '{kind}' is not served"):
        load(f"{model}ForConditionalGeneration", text_config=text | {"model_type": kind})


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        ("2", {"scoring_func": "sigmoid"}),
        ("2", {"norm_topk_prob": True}),
        ("2", {"moe_layer_freq": 2}),
        ("3", {"scoring_func": "softmax"}),
        ("3", {"topk_method": "greedy"}),
        ("3", {"moe_layer_freq": 2}),
    ],
)
def test_deepseek_routes_as_its_version_does(load, version, changes):
    fields = MLA | {"n_group": 1, "topk_group": 1}
    published = {"2": {"scoring_func": "softmax"}, "3": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}}
    assert load(f"DeepseekV{version}ForCausalLM", **fields | published[version] | {"moe_layer_freq": 1}).mixture
    with pytest.raises(CheckpointError, match=f"{next(iter(changes))} .* is not served in this architecture, only"):
        load(f"DeepseekV{version}ForCausalLM", **fields | changes)
