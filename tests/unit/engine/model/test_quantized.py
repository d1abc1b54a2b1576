"""Each format against weights that the tests pack number by number."""

import pytest
import torch
from safetensors.torch import save_file

from baton.errors import CheckpointError
from engine.model.checkpoint import Checkpoint
from engine.model.quantized import AWQ, GPTQ, Packed, Parts, Quantized, Scaled
from tests import packed_weights
from tests.packed_weights import Stored

OUTPUTS, INPUTS = 24, 32
SHAPE = OUTPUTS, INPUTS

CASES: dict[str, tuple[Quantized, Stored]] = {
    "gptq": (GPTQ(4, 16, 1), packed_weights.gptq(*SHAPE)),
    "gptq, groups in any order": (GPTQ(4, 16, 1), packed_weights.gptq(*SHAPE, shuffled=True)),
    "gptq, 8 bits": (GPTQ(8, 16, 1), packed_weights.gptq(*SHAPE, bits=8)),
    "gptq, one group": (GPTQ(4, 0, 1), packed_weights.gptq(*SHAPE, size=INPUTS)),
    "gptq_v2": (GPTQ(4, 16, 0), packed_weights.gptq(*SHAPE, offset=0)),
    "awq": (AWQ(16), packed_weights.awq(*SHAPE)),
    "packed": (Packed(4, 16, symmetric=True), packed_weights.packed(*SHAPE)),
    "packed, 8 bits": (Packed(8, 0, symmetric=True), packed_weights.packed(*SHAPE, bits=8, size=INPUTS)),
    "packed, with zeros": (Packed(4, 16, symmetric=False), packed_weights.packed(*SHAPE, symmetric=False)),
    "packed, half a word": (Packed(4, 7, symmetric=False), packed_weights.packed(21, 28, size=7, symmetric=False)),
    "fp8": (Scaled((0, 0)), packed_weights.scaled(*SHAPE, dtype=torch.float8_e4m3fn, scale_shape=())),
    "fp8, one in a list": (Scaled((0, 0)), packed_weights.scaled(*SHAPE, dtype=torch.float8_e4m3fn, scale_shape=(1,))),
    "fp8, each output": (Scaled((1, 0)), packed_weights.scaled(*SHAPE, dtype=torch.float8_e4m3fn, scale_shape=(24, 1))),
    "int8": (Scaled((1, 0)), packed_weights.scaled(*SHAPE, dtype=torch.int8, scale_shape=(24,))),
}


def stored(tmp_path, tensors) -> Parts:
    save_file({f"up_proj.{part}": tensor for part, tensor in tensors.items()}, tmp_path / "model.safetensors")
    return Parts(Checkpoint(tmp_path), "up_proj", torch.device("cpu"))


@pytest.mark.parametrize("name", CASES)
def test_each_format_is_dequantised_to_its_weights(tmp_path, name):
    quantized, (tensors, wanted) = CASES[name]
    parts = stored(tmp_path, tensors)
    assert quantized.part in parts
    assert torch.allclose(quantized.widened(parts, *wanted.shape), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["gptq", "awq", "packed, with zeros", "fp8"])
def test_a_missing_part_is_named(tmp_path, name):
    quantized, (tensors, wanted) = CASES[name]
    for part in tensors.keys() - {"g_idx", "weight_shape"}:
        parts = stored(tmp_path, {other: tensor for other, tensor in tensors.items() if other != part})
        with pytest.raises(CheckpointError, match=rf"tensor up_proj\.{part} is missing"):
            quantized.widened(parts, *wanted.shape)


@pytest.mark.parametrize("name", ["gptq", "awq", "packed", "fp8, each output"])
def test_another_shape_is_named(tmp_path, name):
    quantized, (tensors, _) = CASES[name]
    with pytest.raises(CheckpointError, match=r"tensor up_proj\.\w+ has shape .*, config\.json implies"):
        quantized.widened(stored(tmp_path, tensors), OUTPUTS + 8, INPUTS)


@pytest.mark.parametrize("group", [-1, 2])
def test_a_group_that_does_not_exist_is_named(tmp_path, group):
    quantized, (tensors, _) = CASES["gptq"]
    wrong = tensors["g_idx"].clone()
    wrong[3] = group
    with pytest.raises(CheckpointError, match=r"tensor up_proj\.g_idx names a group outside the 2"):
        quantized.widened(stored(tmp_path, tensors | {"g_idx": wrong}), *SHAPE)


def test_unquantised_linears_are_returned_as_they_are(tmp_path):
    weight = torch.randn(SHAPE, dtype=torch.bfloat16)
    assert torch.equal(Scaled((0, 0)).widened(stored(tmp_path, {"weight": weight}), *SHAPE), weight)
