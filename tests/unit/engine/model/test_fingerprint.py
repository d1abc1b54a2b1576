import json

from engine import random_checkpoint
from engine.model.checkpoint import Checkpoint
from engine.model.fingerprint import fingerprint


def of(directory, *extras):
    return fingerprint(directory, Checkpoint(directory).files, *extras)


def test_same_model_in_two_places(tmp_path):
    first = random_checkpoint.write(tmp_path / "a", num_shards=2)
    second = random_checkpoint.write(tmp_path / "b", num_shards=2)
    assert of(first) == of(second)
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "use_cache": False}))
    assert of(first) == of(second)


def test_whatever_changes_kv_changes_the_fingerprint(tmp_path):
    directory = random_checkpoint.write(tmp_path / "a")
    found = {of(directory), of(directory, "bfloat16"), of(random_checkpoint.write(tmp_path / "b", seed=1))}
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    found.add(of(directory))
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found.add(of(directory))
    assert len(found) == 5
    assert all(len(value) == 32 for value in found)
