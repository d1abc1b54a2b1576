import json
import shutil

import pytest

from baton.errors import CheckpointError
from engine.grammar import tokens

ADDED = {"id": 512, "content": "<image>", "special": True, "single_word": False, "normalized": False}


def test_added_tokens_beyond_the_vocabulary_are_left_out(tiny_model, tmp_path):
    directory = shutil.copytree(tiny_model, tmp_path / "model")
    spec = json.loads((directory / "tokenizer.json").read_text())
    spec["added_tokens"].append(ADDED | {"lstrip": False, "rstrip": False})
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    assert tokens.load(directory, 512, [2]).tokenizer.vocab_size == 512
    assert tokens.load(directory, 640, [2]).tokenizer.vocab_size == 640  # padded
    assert tokens.load(directory, 640, [2, 700]).tokenizer.eos_token == 2
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tokens.load(directory, 511, [2])
