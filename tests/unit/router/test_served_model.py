import json
import shutil

import pytest

from baton.errors import CheckpointError
from baton.settings import ModelFlags
from router.served_model import ServedModel


@pytest.mark.parametrize("added", [False, True])
def test_a_tokenizer_with_tokens_that_the_model_lacks(model_dirs, tmp_path, added):
    directory = shutil.copytree(model_dirs["chatml"], tmp_path / "model")
    model = ServedModel.load(ModelFlags(model=str(directory)))
    largest = max(model.tokenizer.token_ids())
    config = json.loads((directory / "config.json").read_text()) | {"vocab_size": largest + 1}
    (directory / "config.json").write_text(json.dumps(config))
    ServedModel.load(ModelFlags(model=str(directory)))
    if added:
        path = directory / "tokenizer_config.json"
        token = {str(largest + 1): {"content": "<pad>", "special": True}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": token}))
    else:
        (directory / "config.json").write_text(json.dumps(config | {"vocab_size": largest}))
    message = (
        rf"tokenizer\.json does not match.*token {largest + added} has no row in tensor model\.embed_tokens\.weight"
    )
    with pytest.raises(CheckpointError, match=message):
        ServedModel.load(ModelFlags(model=str(directory)))
