import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import random_checkpoint
from engine.model.checkpoint import Checkpoint
from engine.model.config import ModelConfig
from engine.model.weights import WeightLoader
from kernels.reference import ReferenceKernels

LAYER = "model.layers.1"


def told(caplog, directory, extra, prefix="", **changes):
    """Load a checkpoint with these additional tensors; returns what is logged."""
    file, config = directory / "model.safetensors", directory / "config.json"
    tensors = {prefix + name: tensor for name, tensor in load_file(file).items()}
    save_file(tensors | extra, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    model = ModelConfig.load(directory)
    WeightLoader(model, Checkpoint(directory), ReferenceKernels(), torch.float32, torch.device("cpu")).load(lambda _: 0)
    return caplog.text


@pytest.fixture
def directory(tmp_path):
    return random_checkpoint.write(tmp_path)


def test_a_complete_checkpoint_causes_no_warning(caplog, directory):
    assert not told(caplog, directory, {})


def test_unread_tensors_are_named_with_their_number(caplog, directory):
    extra = {f"model.layers.{layer}.self_attn.q_norm.weight": torch.ones(16) for layer in range(4)}
    text = told(caplog, directory, extra | {f"{LAYER}.self_attn.q_proj.bias": torch.ones(64)})
    assert "LlamaForCausalLM, as config.json describes it, does not use " in text
    assert "model.layers.*.self_attn.q_norm.weight (4), model.layers.*.self_attn.q_proj.bias (1)" in text


def test_a_long_list_is_cut(caplog, directory):
    assert "kinds more" not in told(caplog, directory, {f"extra_{x}.weight": torch.ones(1) for x in "abcdefgh"})
    caplog.clear()
    text = told(caplog, directory, {f"extra_{x}.weight": torch.ones(1) for x in "ij"})
    assert text.count("extra_") == 8
    assert "and 2 kinds more" in text


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        f"{LAYER}.mlp.up_proj.input_scale",
        f"{LAYER}.mlp.up_proj.input_zero_point",
        f"{LAYER}.self_attn.k_scale",
        f"{LAYER}.mlp.up_proj.weight_shape",
        "model.layers.4.eh_proj.weight",
    ],
)
def test_harmless_unread_tensors_are_not_mentioned(caplog, directory, name):
    assert not told(caplog, directory, {name: torch.ones(4)}, num_nextn_predict_layers=1)


def test_a_head_equal_to_the_embedding_is_harmless_and_another_one_is_logged(caplog, directory):
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    assert not told(caplog, directory, {"lm_head.weight": embedding.clone()})
    assert "lm_head.weight differs from the embedding" in told(caplog, directory, {"lm_head.weight": embedding + 1})


def test_biases_of_zeros_are_harmless_and_weights_are_not(caplog, directory):
    assert not told(caplog, directory, {f"{LAYER}.mlp.up_proj.bias": torch.zeros(160)})
    text = told(caplog, directory, {f"{LAYER}.mlp.norm.weight": torch.zeros(160)})
    assert "model.layers.*.mlp.norm.weight (1)" in text


def test_an_additional_layer_is_logged(caplog, directory):
    assert "model.layers.*.input_layernorm.weight (1)" in told(
        caplog, directory, {"model.layers.4.input_layernorm.weight": torch.ones(64)}
    )


def test_unread_tensors_for_images_are_harmless(caplog, directory):
    extra = {"vision_tower.patch.weight": torch.ones(4), "language_model.model.odd.weight": torch.ones(4)}
    text = told(caplog, directory, extra, "language_model.")
    assert text.count(" (") == 1
    assert "language_model.model.odd.weight (1)" in text
