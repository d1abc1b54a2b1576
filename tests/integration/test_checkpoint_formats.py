"""The same model stored in the ways in which checkpoints of its family come: the same numbers."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from baton.errors import CheckpointError
from baton.request import Generation, SamplingParams
from engine.sampling.sampler import Logprobs
from tests import packed_weights
from tests.integration.checkpoint_changes import EXPERTS, Tensors, changed, load, without
from tests.packed_weights import Stored

PROMPT = [(11 * i * i + 5 * i) % 199 for i in range(30)]


def logprobs(directory: Path) -> list[Logprobs | None]:
    """Of eight greedy tokens."""
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, num_logprobs=5)
    fields = {"request_id": "r", "key": 1, "token_ids": PROMPT, "num_prompt_tokens": len(PROMPT), "router_id": ""}
    engine = load(directory)
    engine.add(Generation(sampling=sampling, **fields))
    found = []
    while engine.has_work:
        found += [output.logprobs for output in engine.step().outputs]
    assert len(found) == 8
    return found


def test_experts_one_by_one_or_together(stored):
    directory = stored("mixtral")

    def together(tensors: Tensors) -> Tensors:
        for layer in range(4):
            old = f"model.layers.{layer}.block_sparse_moe"
            parts = [[tensors.pop(f"{old}.experts.{e}.{part}.weight") for e in range(5)] for part in ("w1", "w3", "w2")]
            gate, up, down = (torch.stack(part) for part in parts)
            new = f"model.layers.{layer}.mlp"
            tensors[f"{new}.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
            tensors[f"{new}.experts.down_proj"] = down
            tensors[f"{new}.gate.weight"] = tensors.pop(f"{old}.gate.weight")
        return tensors

    assert logprobs(changed(directory, together)) == logprobs(directory)


def test_a_head_of_its_own_is_used_whatever_config_json_says(stored):
    directory = stored("llama-bias-untied")
    assert logprobs(changed(directory, dict, tie_word_embeddings=True)) == logprobs(directory)


def below(prefix: str, name: str) -> str:
    """The name of a language model's tensor in a model of images; transformers 5 leaves the output head where it is."""
    if prefix == "language_model.":
        return prefix + name
    return prefix + name.removeprefix("model.") if name.startswith("model.") else name


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
@pytest.mark.parametrize(
    ("name", "architecture"),
    [("gemma3", "Gemma3ForConditionalGeneration"), ("mistral", "Mistral3ForConditionalGeneration")],
)
def test_the_text_of_a_model_of_images(stored, name, architecture, prefix, caplog):
    directory = stored(name)
    text = json.loads((directory / "config.json").read_text())
    fields = dict.fromkeys(text) | {"architectures": [architecture], "text_config": text | {"architectures": None}}
    seeing = changed(
        directory,
        lambda tensors: (
            {below(prefix, name): tensor for name, tensor in tensors.items()} | {"model.vision_tower.x": torch.ones(3)}
        ),
        **fields | {"vision_config": {"hidden_size": 3}},
    )
    assert logprobs(seeing) == logprobs(directory)
    assert "does not use" not in caplog.text
    tensor = below(prefix, "model.layers.2.mlp.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.2\.mlp\.up_proj\.weight is missing"):
        load(changed(seeing, without(tensor)))


def test_layers_for_predicting_more_tokens_are_left_alone(stored):
    directory = stored("deepseek-v3")

    def with_more(tensors: Tensors) -> Tensors:
        last = {name: tensor for name, tensor in tensors.items() if ".layers.3." in name}
        more = {name.replace(".3.", ".4.", 1): tensor.clone() for name, tensor in last.items()}
        return tensors | more | {"model.layers.4.eh_proj.weight": torch.ones(48, 96)}

    assert logprobs(changed(directory, with_more)) == logprobs(directory)


def test_mxfp4_experts_are_their_values(stored):
    directory = stored("gpt-oss")
    generator = torch.Generator().manual_seed(2)

    def random_bytes(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)

    packed: Tensors = {}
    for layer in range(4):
        for name, num_outputs, num_inputs in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
            prefix, groups = f"{EXPERTS.format(layer=layer)}.{name}", num_inputs // 32
            packed[f"{prefix}_blocks"] = random_bytes(0, 256, 5, num_outputs, groups, 16)
            packed[f"{prefix}_scales"] = random_bytes(120, 125, 5, num_outputs, groups)

    def widened(tensors: Tensors) -> Tensors:
        for name in [name.removesuffix("_blocks") for name in packed if name.endswith("_blocks")]:
            parts = packed[f"{name}_blocks"], packed[f"{name}_scales"]
            tensors[name] = convert_moe_packed_tensors(*parts, dtype=torch.float32)
        return tensors

    wanted = logprobs(changed(directory, widened))
    narrow = changed(
        directory,
        lambda tensors: {name: tensor for name, tensor in tensors.items() if f"{name}_blocks" not in packed} | packed,
        quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    )
    assert logprobs(narrow) == wanted


def in_fp8(tensors: Tensors) -> Tensors:
    """All products but the router's, in blocks of 16 outputs and 32 inputs."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        found[name] = tensor
        if "_proj" in name and tensor.dim() == 2:
            found[name] = tensor.to(torch.float8_e4m3fn)
            shape = [-(-size // block) for size, block in zip(tensor.shape, (16, 32), strict=True)]
            found[f"{name}_scale_inv"] = 1 + torch.arange(shape[0] * shape[1]).view(shape) / 16
    return found


def test_fp8_blocks_are_their_values(stored):
    directory = stored("deepseek-v3")

    def widened(tensors: Tensors) -> Tensors:
        fp8 = in_fp8(tensors)
        for name in [name.removesuffix("_scale_inv") for name in fp8 if name.endswith("_scale_inv")]:
            rows, columns = fp8[name].shape
            scale = fp8.pop(f"{name}_scale_inv").repeat_interleave(16, 0).repeat_interleave(32, 1)
            fp8[name] = fp8[name].float() * scale[:rows, :columns]
        return fp8

    wanted = logprobs(changed(directory, widened))
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    narrow = changed(directory, in_fp8, quantization_config=quantization)
    assert logprobs(narrow) == wanted
    spoilt = in_fp8(load_file(directory / "model.safetensors"))
    spoilt["model.layers.1.self_attn.o_proj.weight"].view(torch.uint8)[3, 5] = 0x7F
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.1\.self_attn\.o_proj\.weight holds NaN"):
        load(changed(narrow, lambda _: spoilt))
    scale = "model.layers.2.self_attn.o_proj.weight_scale_inv"
    broken = changed(narrow, without(scale))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {scale} is missing"):
        load(broken)


QUANTIZED: dict[str, tuple[dict[str, object], Callable[..., Stored]]] = {
    "gptq": ({"bits": 4, "group_size": 16, "desc_act": True}, partial(packed_weights.gptq, shuffled=True)),
    "awq": ({"bits": 4, "group_size": 16, "version": "gemm"}, packed_weights.awq),
    "compressed-tensors": (
        {
            "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 16}}},
        },
        packed_weights.packed,
    ),
}


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("family", ["qwen2", "phi3", "qwen3-moe", "deepseek-v3"])
def test_packed_checkpoints_are_their_values(stored, family, method):
    """Every linear but router and output head; biases, fused parts and experts among them."""
    directory = stored(family)
    fields, pack = QUANTIZED[method]
    narrow: Tensors = {}
    wide: Tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        narrow[name] = wide[name] = tensor
        if "_proj" in name and tensor.dim() == 2 and not any(size % 16 for size in tensor.shape):
            parts, values = pack(*tensor.shape)
            del narrow[name]
            narrow |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
            wide[name] = values
    assert len(narrow) > len(wide)
    wanted = logprobs(changed(directory, lambda _: wide))
    assert (
        logprobs(changed(directory, lambda _: narrow, quantization_config={"quant_method": method} | fields)) == wanted
    )
