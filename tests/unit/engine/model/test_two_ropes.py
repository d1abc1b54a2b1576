"""Gemma 3, whose layers with a window have a rotary embedding of their own."""

import json

import pytest

from baton.errors import CheckpointError
from engine.model.config import ModelConfig
from engine.random_checkpoint import TINY

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def load(tmp_path):
    """The config of a four-layer model; a value of None drops the field."""

    def read(**changes):
        raw = TINY | {"architectures": ["Gemma3ForCausalLM"], "hidden_act": None} | changes
        (tmp_path / "config.json").write_text(json.dumps({k: value for k, value in raw.items() if value is not None}))
        return ModelConfig.load(tmp_path)

    return read


def test_gemma3_has_two_bases_in_both_spellings(load):
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = {"rope_theta": None, "sliding_window": 512, "rope_local_base_freq": 1e4, "rope_scaling": scaling}
    both = {"full_attention": scaling | {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    new = {"sliding_window": 512, "sliding_window_pattern": 6, "rope_theta": None, "rope_parameters": both}
    for model in (load(num_hidden_layers=7, **fields) for fields in (old, new)):
        assert model.windows == (512,) * 5 + (0, 512)
        assert (model.rope.kind, model.rope.theta, model.rope.factor) == ("linear", 1e6, 8.0)
        assert (model.local_rope.kind, model.local_rope.theta) == ("default", 1e4)


def test_gemma3_needs_the_trained_length_of_each_of_its_ropes(load):
    """As in transformers, which reads the field at the top level only for models with a single RoPE."""
    yarn = {"rope_type": "yarn", "factor": 8.0}
    fields = {"sliding_window": 64, "original_max_position_embeddings": 32}
    assert load(**fields, rope_scaling=yarn).rope.original_length == 512
    inside = yarn | {"original_max_position_embeddings": 32}
    assert load(sliding_window=64, rope_scaling=inside).rope.original_length == 32


def test_two_ropes_may_only_stretch_at_the_same_length(load):
    with pytest.raises(CheckpointError, match="depend on a request's length, but not on the same"):
        load(rope_parameters={"full_attention": DYNAMIC, "sliding_attention": LONGROPE})
    assert load(rope_parameters={"full_attention": LONGROPE, "sliding_attention": LONGROPE}).stretches_after == 64
    assert load(rope_parameters={"sliding_attention": LONGROPE}).stretches_after == 64


def test_yarn_of_either_rope_truncates_its_range(load):
    yarn = {"rope_type": "yarn", "factor": 8.0, "truncate": True}
    assert load(rope_parameters={"sliding_attention": yarn}).local_rope.kind == "yarn"
    with pytest.raises(CheckpointError, match="truncate False is not served in this architecture"):
        load(rope_parameters={"sliding_attention": yarn | {"truncate": False}})
