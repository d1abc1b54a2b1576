import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton.errors import CheckpointError
from engine import random_checkpoint
from engine.model.checkpoint import Checkpoint
from engine.model.config import ModelConfig
from engine.model.weights import WeightLoader
from kernels.reference import ReferenceKernels


def load(directory):
    kernels, config = ReferenceKernels(), ModelConfig.load(directory)
    return WeightLoader(config, Checkpoint(directory), kernels, torch.float32, torch.device("cpu")).load(lambda _: None)


@pytest.fixture
def single(tmp_path):
    return random_checkpoint.write(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    return random_checkpoint.write(tmp_path, num_shards=3)


def change(path, **changes):
    """Replace tensors of a file; None drops one."""
    tensors = {name: tensor for name, tensor in (load_file(path) | changes).items() if tensor is not None}
    save_file(tensors, path)


def test_single_and_sharded_hold_the_same(tmp_path):
    first = Checkpoint(random_checkpoint.write(tmp_path / "a"))
    second = Checkpoint(random_checkpoint.write(tmp_path / "b", num_shards=4))
    name, shape = "model.layers.2.mlp.down_proj.weight", (64, 160)
    assert torch.equal(first.tensor(name, shape), second.tensor(name, shape))
    assert (len(first.files), len(second.files)) == (1, 4)
    assert name in second
    assert "lm_head.weight" not in second


def test_fused_linears_are_the_parts_side_by_side(single):
    tensors = load_file(single / "model.safetensors")
    weights = load(single)
    x = torch.randn(3, 64)
    attention = "model.layers.1.self_attn"
    parts = [x @ tensors[f"{attention}.{name}_proj.weight"].T for name in "qkv"]
    assert torch.allclose(weights.layers[1].projections.qkv(x), torch.cat(parts, -1), atol=1e-5)
    gate, up = (x @ tensors[f"model.layers.1.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    gated = torch.nn.functional.silu(gate) * up
    assert torch.allclose(weights.layers[1].feed_forward.gated(x), gated, atol=1e-5)
    assert torch.allclose(weights.lm_head(x), x @ tensors["model.embed_tokens.weight"].T, atol=1e-5)


def test_packed_weights_count_as_the_values_that_they_represent(tmp_path):
    tensors = {"a.weight": torch.zeros(3, 5), "b_blocks": torch.zeros(2, 4, 16, dtype=torch.uint8)}
    tensors |= {"b_scales": torch.zeros(2, 4, dtype=torch.uint8), "c.qweight": torch.zeros(2, 3, dtype=torch.int32)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).num_values(8) == 15 + 2 * 128 + 8 * 6


def test_missing_tensor(single):
    change(single / "model.safetensors", **{"model.layers.3.mlp.up_proj.weight": None})
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: tensor model\.layers\.3\.mlp\.up_proj\.weight is mis"
    ):
        load(single)


def test_untied_model_without_head(single):
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing"):
        load(single)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite(single, value, dtype):
    name = "model.layers.2.self_attn.k_proj.weight"
    weight = load_file(single / "model.safetensors")[name].to(dtype)
    weight[31, 63] = value
    change(single / "model.safetensors", **{name: weight})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {name} holds NaN or infinite values"):
        load(single)


def test_wrong_shape(single):
    change(single / "model.safetensors", **{"model.norm.weight": torch.ones(63)})
    with pytest.raises(CheckpointError, match=r"safetensors: tensor model\.norm\.weight has shape \[63\].*\[64\]"):
        load(single)


def test_wrong_type(single):
    change(single / "model.safetensors", **{"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight has type I8"):
        load(single)


@pytest.mark.parametrize("num_bytes", [0, 4, 100, -1])
def test_truncated_shard(sharded, num_bytes):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is truncated or not a safetensors file"):
        load(sharded)


def test_missing_shard(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[2]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name} does not exist, though .*index\.json names it"):
        load(sharded)


def test_index_that_names_a_tensor_elsewhere(sharded):
    index = sharded / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["model.norm.weight"] = value["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight is missing, though"):
        load(sharded)


@pytest.mark.parametrize(
    ("dtype", "change", "is_refused"),
    [(None, 0, False), (None, 1, True), (torch.int8, 0, True), (torch.float8_e4m3fn, 0, True)],
)
def test_a_tensor_in_several_shards(sharded, dtype, change, is_refused):
    first, second, _ = sorted(sharded.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: (tensor + change).to(dtype or tensor.dtype)}, second)
    if not is_refused:
        load(sharded)
        return
    with pytest.raises(CheckpointError, match=rf"{first.name}: tensor {name} has other values in {second.name}"):
        load(sharded)


def test_a_single_file_takes_precedence_over_an_index(sharded, tmp_path):
    """As in transformers: shards that are left from an earlier save are not read."""
    whole = load_file(random_checkpoint.write(tmp_path / "whole", seed=1) / "model.safetensors")
    save_file(whole, sharded / "model.safetensors")
    assert torch.equal(load(sharded).embedding, whole["model.embed_tokens.weight"])
    change(sharded / "model.safetensors", **{"model.norm.weight": None})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor model\.norm\.weight is missing"):
        load(sharded)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "intermediate_size",
            10**8,
            r"mlp\.gate_proj\.weight and its like in shape \[200000000, 64\], .* more than all",
        ),
        ("num_attention_heads", 10**7, r"self_attn\.q_proj\.weight and its like in shape"),
        ("intermediate_size", 161, r"mlp\.gate_proj\.weight has shape \[160, 64\], config\.json implies \[161, 64\]"),
    ],
)
def test_sizes_beyond_the_files_are_refused_before_memory_is_taken(single, field, value, message):
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(CheckpointError, match=message):
        load(single)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": []},
        *({"weight_map": {"a": file}} for file in ("../a.safetensors", 1, "", "..", "a\0.safetensors")),
    ],
)
def test_broken_index(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-q4.gguf", "consolidated.safetensors"])
def test_no_safetensors(single, name):
    (single / "model.safetensors").rename(single / name)
    said = rf"neither model\.safetensors nor model\.safetensors\.index\.json: {name} is not read: "
    with pytest.raises(CheckpointError, match=said):
        load(single)


def test_a_git_lfs_pointer(single):
    (single / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 1\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a Git LFS pointer"):
        load(single)
