from pathlib import Path

import pytest

from baton import model_source
from baton.errors import CheckpointError
from baton.model_dir import read_json
from baton.text.tokenizer import Tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 12\n"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("adapter_config.json", r"adapter_config\.json belongs to a LoRA adapter: merge it"),
        ("q4.gguf", r"q4\.gguf is not read: use the safetensors"),
        ("pytorch_model.bin", r"pytorch_model\.bin is not read: convert it"),
        ("consolidated.safetensors", r"consolidated\.safetensors is not read: use the checkpoint in the layout of"),
        ("notes.txt", "a Hugging Face model directory is needed"),
    ],
)
def test_a_directory_without_config_json_says_what_it_holds_and_what_to_do(tmp_path: Path, name: str, advice: str):
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{tmp_path} holds no config\.json: {advice}"):
        model_source.resolve(str(tmp_path))


def test_a_file_is_no_directory(tmp_path: Path):
    (tmp_path / "q4.gguf").write_text("GGUF")
    with pytest.raises(CheckpointError, match=r"q4\.gguf is a file: --model needs a directory"):
        model_source.resolve(str(tmp_path / "q4.gguf"))


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "qwen.tiktoken", "vocab.json"])
def test_a_tokenizer_in_another_format_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"holds no tokenizer\.json: {name} is not read: convert it with"):
        Tokenizer.load(tmp_path)


def test_a_git_lfs_pointer_is_named(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(POINTER)
    for read in (lambda: Tokenizer.load(tmp_path), lambda: read_json(path)):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is a Git LFS pointer.*: run `git lfs pull` in "):
            read()
