"""Which layers of a family have a window."""

import json

import pytest

from baton.errors import CheckpointError
from engine.model.config import ModelConfig
from engine.random_checkpoint import TINY


@pytest.fixture
def load(tmp_path):
    """The config of a four-layer model of that architecture."""

    def read(architecture, **changes):
        (tmp_path / "config.json").write_text(json.dumps(TINY | {"architectures": [architecture]} | changes))
        return ModelConfig.load(tmp_path)

    return read


def test_gemma2_and_gpt_oss_alternate_whatever_a_field_of_gemma3_says(load):
    for fields in (
        {"architecture": "Gemma2ForCausalLM"},
        {"architecture": "GptOssForCausalLM", "num_local_experts": 8},
    ):
        assert load(**fields, sliding_window_pattern=3) == load(**fields)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("Gemma2ForCausalLM", {"sliding_window": 0}, "sliding_window must be a positive integer, not 0"),
        ("Qwen2ForCausalLM", {}, "names sliding_attention, though use_sliding_window is not set"),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window must be a positive"),
    ],
)
def test_layers_with_a_window_need_one(load, architecture, changes, message):
    kinds = ["sliding_attention"] + ["full_attention"] * 3
    with pytest.raises(CheckpointError, match=message):
        load(architecture, layer_types=kinds, **changes)
    assert load(architecture, layer_types=["full_attention"] * 4, **changes).windows == (0,) * 4


@pytest.mark.parametrize("kinds", [["full_attention"] * 3, ["full_attention"] * 3 + ["chunked_attention"]])
def test_layer_types_that_do_not_fit(load, kinds):
    with pytest.raises(CheckpointError, match=r"layer_types .* must name .* for 4 layers"):
        load("Gemma2ForCausalLM", layer_types=kinds)
