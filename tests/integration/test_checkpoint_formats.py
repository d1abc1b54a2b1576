"""The same model stored in the ways in which checkpoints of its family come: the same numbers; and what is broken."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from baton.errors import CheckpointError
from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from engine.engine import Engine
from engine.loading import load_engine
from engine.sampling.sampler import Logprobs
from tests import packed_weights
from tests.packed_weights import Stored

PROMPT = [(11 * i * i + 5 * i) % 199 for i in range(30)]
EXPERTS = "model.layers.{layer}.mlp.experts"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def stored(tmp_path, save_family) -> Callable[[str], Path]:
    """A checkpoint of that name."""

    def store(name: str) -> Path:
        save_family(tmp_path / "stored", name)
        return tmp_path / "stored"

    return store


def changed(directory: Path, change: Callable[[Tensors], Tensors], **config) -> Path:
    """A copy with other tensors and other fields in its config.json."""
    copy = directory.parent / f"{directory.name}-changed"
    shutil.copytree(directory, copy, dirs_exist_ok=True)
    save_file(change(load_file(directory / "model.safetensors")), copy / "model.safetensors")
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | config))
    return copy


def load(directory: Path) -> Engine:
    flags = EngineFlags(model=str(directory), kv_memory="1MiB", num_threads=1, device="cpu")
    return load_engine(directory, flags)


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


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


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


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("gemma3", "Gemma3ForConditionalGeneration"), ("mistral", "Mistral3ForConditionalGeneration")],
)
def test_the_text_of_a_model_of_images(stored, name, architecture):
    directory = stored(name)
    text = json.loads((directory / "config.json").read_text())
    fields = dict.fromkeys(text) | {"architectures": [architecture], "text_config": text | {"architectures": None}}
    seeing = changed(
        directory,
        lambda tensors: (
            {f"language_model.{name}": tensor for name, tensor in tensors.items()} | {"vision_tower.x": torch.ones(3)}
        ),
        **fields | {"vision_config": {"hidden_size": 3}},
    )
    assert logprobs(seeing) == logprobs(directory)
    tensor = "language_model.model.layers.2.mlp.up_proj.weight"
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
        CheckpointError, match=rf"model\.safetensors: tensor {name} has shape {said}, config\.json asks"
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
