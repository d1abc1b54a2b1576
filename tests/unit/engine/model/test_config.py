import json
import math

import pytest

from baton.errors import CheckpointError
from engine.model.config import ModelConfig
from engine.random_checkpoint import TINY

YARN = {"type": "yarn", "factor": 2}
LLAMA3 = {"type": "llama3", "factor": 2, "low_freq_factor": 1.0}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.fixture
def load(tmp_path):
    """The config read from a config.json with these changes; a value of None drops the field."""

    def read(changes=None, generation=None):
        raw = {name: value for name, value in (TINY | (changes or {})).items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return ModelConfig.load(tmp_path)

    return read


def test_defaults_for_what_older_configs_omit(load):
    config = load({"num_key_value_heads": None, "head_dim": None, "rms_norm_eps": None, "rope_theta": None})
    assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps) == (4, 16, 1e-6)
    assert (config.rope.kind, config.rope.theta, config.rope.max_length) == ("default", 10000.0, 512)


def test_families(load):
    qwen2 = load({"architectures": ["Qwen2ForCausalLM"]})
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm) == (True, False, "")
    qwen3 = load({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True, "head_dim": None})
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm, qwen3.head_dim) == (True, True, "head", 128)
    llama = load({"attention_bias": True, "mlp_bias": True})
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias) == (True, True, True)


@pytest.mark.parametrize(("model_type", "is_told"), [("llama", False), (None, False), ("mistral", True)])
def test_a_model_type_of_another_architecture_is_logged(load, caplog, model_type, is_told):
    assert load({"model_type": model_type}).architecture == "LlamaForCausalLM"
    told = "served as LlamaForCausalLM, though model_type is 'mistral', not 'llama'"
    assert (told in caplog.text) is is_told


def test_windows(load):
    mistral = {"architectures": ["MistralForCausalLM"]}
    assert load(mistral).windows == (4096,) * 4
    assert load(mistral | {"sliding_window": 64}).windows == (64,) * 4
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32, "max_window_layers": 3}
    assert load(qwen).windows == (0,) * 4
    assert load(qwen | {"use_sliding_window": True}).windows == (0, 0, 0, 32)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert load(qwen | {"use_sliding_window": True, "layer_types": kinds}).windows == (32, 0, 32, 0)


def test_a_null_activation_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"hidden_act": None}))
    with pytest.raises(CheckpointError, match="hidden_act None is not one of silu"):
        ModelConfig.load(tmp_path)


def test_null_window_is_no_window(tmp_path):
    raw = TINY | {"architectures": ["MistralForCausalLM"], "sliding_window": None}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert ModelConfig.load(tmp_path).windows == (0,) * 4


def test_rope_in_both_spellings(load):
    old = load({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}).rope
    new = load({"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}).rope
    assert old == new
    assert (old.theta, old.factor, old.max_length) == (5e5, 4.0, 2048)


def test_the_older_spelling_of_rope_takes_precedence(load):
    parameters = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 77.0}
    rope = load(
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": parameters}
    ).rope
    assert (rope.kind, rope.theta, rope.factor) == ("linear", 5e5, 4.0)


@pytest.mark.parametrize(
    ("scaling", "longest", "default"),
    [
        ({"rope_type": "yarn", "factor": 8.0}, 4096, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024, 512),
        ({"rope_type": "linear", "factor": 1e-9}, 512, 512),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 512, 512),
    ],
)
def test_longest_context(load, scaling, longest, default):
    rope = load({"rope_scaling": scaling}).rope
    assert (rope.max_length, rope.default_length) == (longest, default)


def test_eos_ids_of_both_files(load):
    assert load({"eos_token_id": [2, 5]}, {"eos_token_id": 7}).eos_token_ids == {2, 5, 7}
    assert load({"eos_token_id": -1}, {"eos_token_id": None}).eos_token_ids == frozenset()


def test_eos_ids_of_the_text_of_a_model_of_images(load):
    assert load({"text_config": {"eos_token_id": [4, 9]}}, {"eos_token_id": 7}).eos_token_ids == {2, 4, 7, 9}


def test_no_eos_at_all(load):
    assert load({"eos_token_id": None}).eos_token_ids == frozenset()


@pytest.mark.parametrize(("name", "dtype"), [("dtype", "bfloat16"), ("torch_dtype", "torch.float16")])
def test_dtype_in_both_spellings(load, name, dtype):
    assert load({"torch_dtype": None, name: dtype}).dtype == dtype.removeprefix("torch.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertModel"]}, r"architectures \['BertModel'\].*LlamaForCausalLM.*Qwen3ForCausalLM"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, not None"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers must be a positive integer"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"hidden_act": "gelu"}, "'gelu' is not one of silu, swish, gelu_pytorch_tanh"),
        ({"torch_dtype": "int8"}, "dtype int8"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "axial"}}, "'axial' is not known"),
        ({"rope_scaling": {"type": "longrope"}}, "'longrope' needs 8 positive numbers as short_factor"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ between layers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not served in this architecture"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"is_causal": False}, "use_bidirectional_attention or is_causal says otherwise"),
        ({"per_layer_config": {"1": {"skip": ["mlp"]}}}, "per_layer_config, which gives layers different shapes"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings, not 'LlamaForCausalLM'"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures must be a list of strings"),
        ({"hidden_act": ["silu"]}, r"hidden_act must be a string, not \['silu'\]"),
        ({"attention_bias": "no"}, "attention_bias must be true or false, not 'no'"),
        ({"max_position_embeddings": "many"}, "max_position_embeddings must be a positive integer, not 'many'"),
        ({"rope_theta": -1}, r"rope_theta must be more than 0, not -1\.0"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number, not '1e4'"),
        ({"rope_scaling": {"type": ["linear"]}}, r"type must be a string, not \['linear'\]"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, r"factor must be more than 0, not 0\.0"),
        ({"rope_scaling": YARN | {"beta_fast": "x"}}, "beta_fast must be a number, not 'x'"),
        ({"rope_scaling": YARN | {"mscale": "x"}}, "mscale must be a number, not 'x'"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": "x"}}, "embeddings must be a number, not 'x'"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor must be a number"),
        ({"rope_scaling": {"type": "longrope", "short_factor": ["1"] * 8}}, "'longrope' needs 8 positive numbers"),
        ({"rope_theta": 1, "rope_scaling": YARN}, r"rope_theta 1\.0 gives no frequencies"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 0.5}}, r"embeddings 0\.5 is too small"),
        ({"rope_scaling": LONGROPE | {"original_max_position_embeddings": 1}}, r"embeddings 1\.0 is too small"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, r"high_freq_factor 0\.5 is less than low_freq_factor 1"),
        ({"rope_scaling": {"rope_type": ""}}, "RoPE scaling '' is not known"),
        ({"rope_scaling": YARN | {"factor": 3.5e38}}, r"factor 3\.5e\+38 is not a finite number in float32"),
        ({"rope_theta": 10**400}, r"rope_theta 10+ is not a finite number in float32"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps nan is not a finite number in float32"),
        ({"rms_norm_eps": 1e-39}, "rms_norm_eps must be more than 0, not 1e-39"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is more than 10000"),
        ({"hidden_size": 2**31}, "hidden_size 2147483648 is more than 2147483647"),
        ({"num_nextn_predict_layers": ""}, "num_nextn_predict_layers must be a positive integer, not ''"),
        ({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' needs more than 2 rotated"),
        ({"eos_token_id": "2"}, "eos_token_id is neither a token id nor a list of them: '2'"),
    ],
)
def test_errors_name_file_and_field(load, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(changes)
    assert str(tmp_path / "config.json") in caught.value.message


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_broken_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.load(tmp_path)


def test_no_model_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="absent is not a directory"):
        ModelConfig.load(tmp_path / "absent")
