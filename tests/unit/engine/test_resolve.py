import json
import logging
from dataclasses import replace

import pytest

from baton.errors import ConfigError
from baton.process.settings import EngineFlags
from engine import random_checkpoint
from engine.model.config import ModelConfig
from engine.random_checkpoint import TINY
from engine.resolve import kv_fingerprint, layout, resolve

BLOCK_BYTES = 4 * 2 * 2 * 16 * 16 * 4  # layers, k and v, heads, block_size, head_dim, fp32


def resolved(flags, directory):
    """Resolve flags for the model in a directory."""
    return resolve(flags, directory, ModelConfig.load(directory))


@pytest.fixture
def flags(tiny_model):
    return EngineFlags(model=str(tiny_model), device="cpu")


def test_defaults_for_flags_that_are_not_given(tiny_model, flags):
    config = resolved(flags, tiny_model)
    assert (config.max_model_len, config.dtype, config.device) == (512, "float32", "cpu")
    assert config.num_threads >= 1
    assert config.num_blocks <= 256 * 32  # all requests at full length
    assert config.num_blocks * BLOCK_BYTES <= 2 * 2**30


def test_given_sizes(tiny_model, flags):
    config = resolved(replace(flags, kv_memory="3MiB", max_model_len=100, dtype="bfloat16", num_threads=3), tiny_model)
    assert (config.num_blocks, config.max_model_len, config.num_threads) == (3 * 2**20 // (BLOCK_BYTES // 2), 100, 3)
    assert config.max_blocks_per_request == 7


def test_one_decode_token_of_every_request_fits_a_step(tiny_model, flags):
    assert resolved(replace(flags, max_num_batched_tokens=100), tiny_model).max_num_seqs == 100


def test_a_small_pool_shortens_the_default_length(tiny_model, flags, caplog):
    with caplog.at_level(logging.WARNING):
        config = resolved(replace(flags, kv_memory=str(10 * BLOCK_BYTES)), tiny_model)
    assert (config.num_blocks, config.max_model_len) == (10, 160)
    assert "160" in caplog.text


def test_longrope_has_its_full_length_and_stretches_long_requests(tmp_path):
    factors = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    changes = {"architectures": ["Phi3ForCausalLM"], "rope_scaling": factors, "original_max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(TINY | changes))
    flags = EngineFlags(model=str(tmp_path), device="cpu", kv_memory="4MiB")
    config = resolved(flags, tmp_path)
    assert (config.max_model_len, config.stretches_after) == (512, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 513}, "--max-model-len 513 is more than the 512 positions"),
        (
            {"max_model_len": 512, "kv_memory": str(10 * BLOCK_BYTES)},
            "holds 160 tokens.*--kv-memory to 1MiB.*160 or less",
        ),
        ({"kv_memory": "1k"}, "holds 0 tokens.*MiB or more$"),
        ({"kv_memory": "lots"}, "'lots' is not a size"),
    ],
)
def test_errors_name_the_flag(tiny_model, flags, changes, message):
    with pytest.raises(ConfigError, match=message):
        resolved(replace(flags, **changes), tiny_model)


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="needs a machine without CUDA")
def test_cuda_without_a_device_is_refused(tiny_model, flags):
    with pytest.raises(ConfigError, match="--device cuda"):
        resolved(replace(flags, device="cuda"), tiny_model)


def test_a_gpu_has_room_for_more_kv_beside_quantised_weights(tiny_model, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free, free))
    free = 64 * 2**20  # bytes
    flags = EngineFlags(model=str(tiny_model), device="cuda", max_num_seqs=1000, max_num_batched_tokens=1000)
    per_layer = 64 * (64 + 2 * 32 + 64) + 3 * 64 * 160
    widened = 2 * 160 * 64
    none, int8, int4 = (
        resolved(replace(flags, quantization=quantization), tiny_model).num_blocks * BLOCK_BYTES
        for quantization in ("none", "int8", "int4")
    )
    saved = [4 * per_layer * (4 - each) - 4 * widened for each in (1 + 4 / 64, 0.5 + 4 / 32)]
    assert int8 - none == pytest.approx(saved[0], abs=BLOCK_BYTES + 4 * 9 * 64 * 4)  # a block, and norms
    assert int4 - none == pytest.approx(saved[1], abs=BLOCK_BYTES + 4 * 9 * 64 * 4)


def test_fingerprint_depends_on_dtype_and_dynamic_rope_alone(tmp_path):
    scaling = {"type": "dynamic", "factor": 2.0}
    for name, changes, num_different in [("plain", {}, 2), ("dynamic", {"rope_scaling": scaling}, 3)]:
        directory = random_checkpoint.write(tmp_path / name, TINY | {"max_position_embeddings": 256} | changes)
        model = ModelConfig.load(directory)
        flags = EngineFlags(model=str(directory), device="cpu", max_model_len=256)
        config = resolved(flags, directory)
        variants = [config, replace(config, max_model_len=100), replace(config, max_model_len=400)]
        variants += [replace(config, dtype="bfloat16"), replace(config, num_blocks=77)]
        assert len({kv_fingerprint(directory, model, variant) for variant in variants}) == num_different


@pytest.mark.parametrize(("num_layers", "per_group"), [(1, 1), (4, 1), (7, 1), (8, 2), (12, 3), (30, 6), (32, 8)])
def test_layer_groups(tiny_model, num_layers, per_group):
    model = replace(ModelConfig.load(tiny_model), num_layers=num_layers)
    assert layout(model, 16, "float32", "").layers_per_group == per_group
