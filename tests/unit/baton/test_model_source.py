import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from baton import model_source
from baton.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_is_served_under_its_own_name(checkpoint: Path):
    assert model_source.resolve(str(checkpoint)) == model_source.Model(checkpoint, ("tiny",))


def test_given_names_override_the_folders(checkpoint: Path):
    assert model_source.resolve(str(checkpoint), ("a", "b")).names == ("a", "b")


def test_a_relative_folder_is_made_absolute(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(checkpoint.parent)
    assert model_source.resolve("tiny").path == checkpoint


def test_without_a_model_the_default_one_is_served(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_source, "DEFAULT_MODEL", checkpoint)
    assert model_source.resolve("") == model_source.Model(checkpoint, (model_source.DEFAULT_NAME,))


def test_a_missing_default_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_source, "DEFAULT_MODEL", tmp_path / "none")
    with pytest.raises(CheckpointError, match="train it with"):
        model_source.resolve("")


def test_a_folder_without_config_and_an_unknown_name_are_clear_errors(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        model_source.resolve(str(tmp_path))
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        model_source.resolve("./not/here")


def test_neither_code_nor_pickles_are_downloaded_from_the_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def download(hub_id: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        files = ["model-00001-of-00002.safetensors", "consolidated.safetensors", "pytorch_model.bin"]
        found = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        asked.update(hub_id=hub_id, patterns=allow_patterns, files=list(found))
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_source.resolve("org/name").names == ("org/name",)
    assert asked["hub_id"] == "org/name"
    assert asked["files"] == ["model-00001-of-00002.safetensors"]  # and not the same weights in another layout
    assert not [p for p in asked["patterns"] if p.endswith((".py", ".bin", ".pt", ".pth", "*"))]


def test_being_offline_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    def download(hub_id: str, **patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("a page of advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="org/name is not in the local cache and the hub cannot be reached"):
        model_source.resolve("org/name")


def test_a_chat_template_is_found_in_either_file(checkpoint: Path):
    assert not model_source.resolve(str(checkpoint)).has_chat_template
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert model_source.resolve(str(checkpoint)).has_chat_template
    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    assert model_source.resolve(str(checkpoint)).has_chat_template
