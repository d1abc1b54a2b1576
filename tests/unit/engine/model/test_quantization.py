"""`quantization_config` in the forms that tools write."""

from pathlib import Path
from typing import Any

import pytest

from baton.errors import CheckpointError
from engine.model.fields import Fields
from engine.model.quantization import quantization
from engine.model.quantized import AWQ, GPTQ, Packed, Quantized, Scaled

AUTO_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
AUTO_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}


def compressed(name: str = "pack-quantized", **weights) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": WEIGHTS | weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def rotated(*places: str) -> dict[str, Any]:
    applied = [{"targets": ["Linear"], "location": place, "inverse": False} for place in places]
    return {"transform_config": {"config_groups": {"R": {"type": "hadamard", "apply": applied}}}}


def read(config: dict[str, Any], architecture: str = "LlamaForCausalLM") -> Quantized | None:
    return quantization(Fields(Path("config.json"), {"quantization_config": config}, {}), architecture)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, None),
        ({"quant_method": "fp8", "activation_scheme": "static"}, Scaled((0, 0))),
        ({"quant_method": "fp8", "weight_block_size": [128, 64]}, Scaled((128, 64), "weight_scale_inv")),
        (AUTO_GPTQ, GPTQ(4, 128, 1)),
        (AUTO_GPTQ | {"bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"}, GPTQ(8, 0, 0)),
        (AUTO_AWQ, AWQ(128)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}, AWQ(64)),
        (compressed(), Packed(4, 128, symmetric=True)),
        (compressed() | rotated("weight_input", "weight_output"), Packed(4, 128, symmetric=True)),
        (compressed(strategy="channel", num_bits=8, symmetric=False, group_size=None), Packed(8, 0, symmetric=False)),
        (compressed("float-quantized", num_bits=8, type="float", strategy="channel"), Scaled((1, 0))),
        (compressed("float-quantized", num_bits=8, strategy="block", block_structure=[128, 64]), Scaled((128, 64))),
        (compressed("naive-quantized", num_bits=8, type="float", strategy="tensor"), Scaled((0, 0))),
        (compressed("int-quantized", num_bits=8, strategy="channel"), Scaled((1, 0))),
        (compressed("int-quantized", num_bits=8, strategy="group"), Scaled((1, 128))),
    ],
)
def test_configs_as_tools_write_them(config, wanted):
    assert read(config) == wanted


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "'bitsandbytes' is not served; served are fp8, gptq, awq, compressed-tensors",
        ),
        ({"quant_method": ["fp8"]}, r"quant_method must be a string, not \['fp8'\]"),
        (compressed() | {"config_groups": {"a": {"weights": "int4"}}}, "weights must be an object, not 'int4'"),
        (compressed() | rotated("weight_input", "input"), r"location \['weight_input', 'input'\] is not served"),
        (compressed("int-quantized", num_bits=8, strategy=["group"]), "strategy must be a string"),
        ({"quant_method": "mxfp4"}, "mxfp4 in GptOssForCausalLM"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"two positive sizes, not \[128\]"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, r"two positive sizes, not \[128, 0\]"),
        ({"quant_method": "fp8", "weight_block_size": "128"}, "must be a list of integers"),
        (AUTO_GPTQ | {"bits": 3}, r"bits 3 is not one of \(4, 8\)"),
        (AUTO_GPTQ | {"group_size": None}, "group_size must be a positive integer"),
        (AUTO_GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        (AUTO_AWQ | {"version": "gemv"}, "not gemv with 4"),
        (AUTO_AWQ | {"bits": 8}, "not gemm with 8"),
        (compressed("marlin-24"), "format 'marlin-24'"),
        (compressed("float-quantized", num_bits=4), "8 bits, not 4"),
        (compressed("int-quantized", num_bits=8, symmetric=False), "symmetric False"),
        (compressed("int-quantized", num_bits=8, strategy="token"), "strategy 'token'"),
        (compressed() | {"config_groups": {}}, "config_groups"),
        (compressed() | {"config_groups": {"a": {"weights": WEIGHTS}, "b": {"weights": {}}}}, "config_groups"),
        (compressed() | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    ],
)
def test_errors_name_what_is_not_served(config, message):
    with pytest.raises(CheckpointError, match=message):
        read(config)


def test_experts_of_gpt_oss_have_names_of_their_own():
    assert read({"quant_method": "mxfp4"}, "GptOssForCausalLM") is None
