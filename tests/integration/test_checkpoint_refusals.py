"""Errors name what is wrong with a checkpoint whose files do not match its config.json."""

import pytest
import torch

from baton.errors import CheckpointError
from tests.integration.checkpoint_changes import EXPERTS, changed, load, without


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("qwen3-moe", "model.layers.2.mlp.gate.weight"),
        ("qwen3-moe", "model.layers.1.mlp.up_proj.weight"),
        ("gemma3", "model.layers.0.pre_feedforward_layernorm.weight"),
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight"),
        ("llama-bias-untied", "model.layers.2.self_attn.v_proj.bias"),
        ("glm4", "model.layers.3.mlp.gate_up_proj.weight"),
        ("olmo2", "model.layers.3.self_attn.q_norm.weight"),
        ("gpt-oss", "model.layers.0.self_attn.sinks"),
        ("gpt-oss", "model.layers.0.mlp.experts.down_proj_bias"),
        ("deepseek-v2-bias", "model.layers.1.mlp.shared_experts.up_proj.bias"),
        ("deepseek-v3", "model.layers.3.mlp.gate.e_score_correction_bias"),
        ("deepseek-v3", "model.layers.0.self_attn.kv_b_proj.weight"),
        ("deepseek-v3-halves", "model.layers.0.self_attn.kv_a_proj_with_mqa.bias"),
    ],
)
def test_a_missing_tensor_is_named(stored, family, name):
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {name} is missing"):
        load(changed(stored(family), without(name)))


@pytest.mark.parametrize(
    ("field", "name"), [("attention_bias", "self_attn.q_proj.bias"), ("mlp_bias", "mlp.gate_proj.bias")]
)
def test_biases_that_are_missing_are_named_as_the_weights_are(stored, field, name):
    with pytest.raises(CheckpointError, match=rf"tensor model\.layers\.0\.{name} is missing"):
        load(changed(stored("llama"), dict, **{field: True}))


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.4.w3.weight", [80, 47]),
        ("gpt-oss", "model.layers.2.mlp.experts.gate_up_proj", [5, 192, 64]),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", [79, 48]),
        ("deepseek-v3", "model.layers.1.self_attn.q_b_proj.weight", [120, 21]),
    ],
)
def test_a_wrong_shape_is_named(stored, family, name, shape):
    broken = changed(stored(family), lambda tensors: tensors | {name: torch.zeros(shape)})
    said = str(shape).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(
        CheckpointError, match=rf"model\.safetensors: tensor {name} has shape {said}, config\.json implies"
    ):
        load(broken)


@pytest.mark.parametrize(
    ("family", "field", "name"),
    [
        ("qwen3-moe", "moe_intermediate_size", "experts.0.gate_proj.weight"),
        ("gpt-oss", "intermediate_size", "experts.gate_up_proj"),
    ],
)
def test_experts_beyond_the_files_are_refused_before_memory_is_taken(stored, family, field, name):
    with pytest.raises(CheckpointError, match=rf"tensor model\.layers\.0\.mlp\.{name} and its like in shape"):
        load(changed(stored(family), dict, **{field: 10**9}))


def test_mxfp4_of_another_type_is_named(stored):
    name = f"{EXPERTS.format(layer=0)}.gate_up_proj"
    packed = {f"{name}_blocks": torch.zeros(5, 192, 2, 16), f"{name}_scales": torch.zeros(5, 192, 2).to(torch.uint8)}
    with pytest.raises(CheckpointError, match=rf"tensor {name}_blocks has type F32, not one of U8"):
        load(changed(stored("gpt-oss"), lambda tensors: tensors | packed))


def test_an_adapter_beside_the_weights_is_warned_of(stored, caplog):
    directory = stored("llama")
    load(directory)
    assert "adapter_config.json" not in caplog.text
    (directory / "adapter_config.json").write_text("{}")
    load(directory)
    assert f"adapter_config.json in {directory} is ignored" in caplog.text
