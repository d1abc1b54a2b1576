"""The format of a checkpoint's weights, from the `quantization_config` of its config.json.

| quant_method | read | written by |
|---|---|---|
| fp8 | one scale for a tensor or for each block of it (`weight_block_size`) | AutoFP8, DeepSeek-V3, Qwen3 |
| gptq | 4 and 8 bits, in any order of groups (`desc_act`), formats 1 and 2 | AutoGPTQ, GPTQModel |
| awq | 4 bits, version "gemm" | AutoAWQ |
| compressed-tensors | FP8, int8, packed 4 and 8 bits; one scheme for all linears | llm-compressor |
| mxfp4 | experts of GPT-OSS, whose tensors have names of their own | |

Settings for quantising activations are ignored: activations are never quantised.
"""

import json
import re
from typing import Any

from engine.model.fields import Fields
from engine.model.quantized import AWQ, AWQ_BITS, GPTQ, Packed, Quantized, Scaled

_BITS = (4, 8)


def quantization(fields: Fields, architecture: str) -> Quantized | None:
    """Return the format of linears, or None if they are not quantised. CheckpointError if it is not served."""
    raw = fields.mapping("quantization_config")
    config = Fields(fields.path, raw, {})
    method = config.text("quant_method", "")
    if not raw or (method == "mxfp4" and architecture == "GptOssForCausalLM"):
        return None
    if method not in _FORMATS:
        fields.refuse(
            f"quantization_config with quant_method {method!r} is not served; served are {', '.join(_FORMATS)}, and "
            "mxfp4 in GptOssForCausalLM"
        )
    return _FORMATS[method](config)


def _fp8(config: Fields) -> Quantized:
    sizes = config.integers("weight_block_size")
    if not sizes:
        return Scaled((0, 0))
    return Scaled(_block(config, sizes), "weight_scale_inv")


def _gptq(config: Fields) -> Quantized:
    version = config.raw.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        config.refuse(f"checkpoint_format {version!r} of GPTQ is not served; gptq and gptq_v2 are")
    return GPTQ(_bits(config, "bits"), _group_size(config), int(version == "gptq"))


def _awq(config: Fields) -> Quantized:
    version = str(config.raw.get("version") or "gemm").lower()
    if version != "gemm" or config.raw.get("bits", config.raw.get("w_bit")) != AWQ_BITS:
        config.refuse(f"AWQ is served with 4 bits and version gemm, not {version} with {config.raw.get('bits')!r}")
    return AWQ(_group_size(config, "group_size" if "group_size" in config.raw else "q_group_size"))


def _compressed(config: Fields) -> Quantized:
    groups = list(config.mapping("config_groups").values())
    weights = [Fields(config.path, group, {}).mapping("weights") for group in groups if isinstance(group, dict)]
    if len(weights) != len(groups) or not weights or not all(scheme == weights[0] for scheme in weights):
        config.refuse("config_groups of compressed-tensors must all have the same weights")
    name, sparsity = config.raw.get("format"), config.mapping("sparsity_config")
    if sparsity.get("format", "dense") != "dense":
        config.refuse(f"sparsity_config with format {sparsity['format']!r} is not served")
    places = re.findall(r'"location": "(\w+)"', json.dumps(config.mapping("transform_config")))
    if not all(place.startswith("weight_") for place in places):  # these have been applied to the weights
        config.refuse(f"transform_config of compressed-tensors with location {places} is not served")
    scheme = Fields(config.path, weights[0], {})
    symmetric = scheme.raw.get("symmetric", True) is True
    if name == "pack-quantized":
        size = 0 if scheme.raw.get("strategy") == "channel" else scheme.count("group_size")
        return Packed(_bits(scheme, "num_bits"), size, symmetric)
    if name not in ("float-quantized", "int-quantized", "naive-quantized") or not symmetric:
        config.refuse(f"format {name!r} of compressed-tensors, symmetric {symmetric}, is not served")
    if scheme.count("num_bits") != 8:
        config.refuse(f"format {name!r} of compressed-tensors is served with 8 bits, not {scheme.raw['num_bits']}")
    return Scaled(_strategy(scheme))


def _strategy(scheme: Fields) -> tuple[int, int]:
    """How many outputs and inputs share a scale; 0: all of them."""
    strategy = scheme.text("strategy", "")
    if strategy == "block":
        return _block(scheme, scheme.integers("block_structure"))
    if strategy == "group":
        return 1, scheme.count("group_size")
    blocks = {"tensor": (0, 0), "channel": (1, 0)}
    if strategy not in blocks:
        scheme.refuse(f"strategy {strategy!r} is not one of tensor, channel, group, block")
    return blocks[strategy]


def _block(config: Fields, sizes: list[Any]) -> tuple[int, int]:
    if len(sizes) != 2 or min(sizes) < 1:
        config.refuse(f"a block of weights must have two positive sizes, not {sizes}")
    return sizes[0], sizes[1]


def _bits(config: Fields, name: str) -> int:
    bits = config.count(name)
    if bits not in _BITS:
        config.refuse(f"{name} {bits} is not one of {_BITS}")
    return bits


def _group_size(config: Fields, name: str = "group_size") -> int:
    """The number of inputs that share a scale; 0 if all do, which config.json writes as -1."""
    return 0 if config.raw.get(name) == -1 else config.count(name)


_FORMATS = {"fp8": _fp8, "gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}
