import json
import shutil
from types import SimpleNamespace

import pytest

from baton.errors import CheckpointError
from baton.process.settings import FrontFlags
from baton.text.tokenizer import Tokenizer
from router.openai.generate import Generator
from router.openai.served_model import ServedModel


@pytest.fixture
def cut(model_dirs, tmp_path):
    """Loads a model whose vocabulary lacks the tokenizer's last rows, and all of what is added to the tokenizer."""

    def load(num_lacking=0, **added):
        directory = shutil.copytree(model_dirs["chatml"], tmp_path / "model", dirs_exist_ok=True)
        largest = max(Tokenizer.load(directory).token_ids())
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"vocab_size": largest + 1 - num_lacking}))
        if added:
            path = directory / "tokenizer_config.json"
            tokens = {"added_tokens_decoder": {str(largest + 1): {"content": "<image>", **added}}}
            path.write_text(json.dumps(json.loads(path.read_text()) | tokens))
        return ServedModel.load(FrontFlags(model=str(directory))), largest

    return load


def test_a_tokenizer_with_tokens_that_the_model_lacks(cut):
    _, largest = cut()
    for changes, lacking in (({"num_lacking": 1}, largest), ({"special": False}, largest + 1)):
        message = rf"tokenizer\.json does not match.*token {lacking} has no row in tensor model\.embed_tokens\.weight"
        with pytest.raises(CheckpointError, match=message):
            cut(**changes)


def test_special_tokens_may_have_no_row(cut):
    """For example Gemma 3's image tokens, or a padding token, which occur in no text."""
    model, largest = cut(special=True)
    assert model.tokenizer.token_id("<image>") == largest + 1 == model.facts.vocab_size
    assert largest + 1 not in model.tokenizer.encode("an <image> here")


@pytest.mark.parametrize(
    ("num_lacking", "special", "is_known"), [(-1, True, True), (-1, False, False), (0, True, False)]
)
def test_a_call_marker_that_is_a_special_token_is_known_by_its_id(cut, tmp_path, num_lacking, special, is_known):
    _, largest = cut(num_lacking, content="[TOOL_CALLS]", special=special)
    model = ServedModel.load(FrontFlags(model=str(tmp_path / "model"), tool_parser="mistral"))
    assert model.style.marker_id == (largest + 1 if is_known else None)


@pytest.mark.parametrize(
    ("asked", "of_nodes", "limit"), [(0, 2048, 2048), (100, 2048, 100), (0, None, 512), (0, 0, 512)]
)
def test_the_maximum_length_is_that_of_the_nodes(model_dirs, asked, of_nodes, limit):
    """RoPE scaling reaches beyond max_position_embeddings, and nodes may have less memory."""
    model = ServedModel.load(FrontFlags(model=str(model_dirs["chatml"]), max_model_len=asked))
    facts = None if of_nodes is None else SimpleNamespace(max_model_len=of_nodes)
    assert Generator(model, SimpleNamespace(facts=facts), 1.0).max_model_len == limit
