"""Components applied to an overlay, as in deploy/README.md: what they add belongs to the same fleet."""

import os
from pathlib import Path
from typing import Any

import huggingface_hub.cli.download
import pytest
import yaml
from huggingface_hub.cli.hf import app
from huggingface_hub.utils import filter_repo_objects

from tests.deploy.manifests import OVERLAYS, Manifest, of_kind, overlay
from tests.deploy.tools import DEPLOY, run

KUBERNETES = DEPLOY / "kubernetes"
IMAGE = "my.registry/baton:0.1.0-gpu"


def own_overlay(folder: Path, below: str, component: str) -> list[Manifest]:
    """Create a user's overlay over `below`, with a component and another registry."""
    content: dict[str, Any] = {
        "resources": [os.path.relpath(KUBERNETES / below, folder.resolve())],
        "components": [os.path.relpath(KUBERNETES / "components" / component, folder.resolve())],
        "images": [{"name": "registry.example.com/baton", "newName": "my.registry/baton", "newTag": "0.1.0-gpu"}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return list(yaml.safe_load_all(run("kubectl", "kustomize", str(folder))))


def strangers(manifests: list[Manifest]) -> list[tuple[str, str]]:
    """Return the objects without a namespace, which would end up in kubectl's present one."""
    namespaced = [m for m in manifests if m["kind"] != "Namespace"]
    return [(m["kind"], m["metadata"]["name"]) for m in namespaced if m["metadata"].get("namespace") != "baton"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_in_its_namespace(name: str):
    assert strangers(overlay(name)) == []


@pytest.mark.parametrize(("below", "component"), [("base", "hpa"), ("overlays/gpu", "model-download")])
def test_a_component_is_in_the_namespace_of_its_fleet(tmp_path: Path, below: str, component: str):
    """Replace the overlays' component keda with hpa."""
    assert strangers(own_overlay(tmp_path, below, component)) == []


def test_the_download_runs_the_image_of_its_overlay(tmp_path: Path):
    job = of_kind(own_overlay(tmp_path, "overlays/gpu", "model-download"), "Job")["model-download"]
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE


def test_the_download_takes_all_that_is_read_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command line is parsed by the real `hf`: without its own `--include`, a pattern counts as a file's name."""
    files = ["config.json", "tokenizer.json", "chat_template.jinja", "model-00001-of-00002.safetensors"]
    others = ["consolidated.safetensors", "pytorch_model.bin", "modeling_x.py"]
    taken: list[str] = []

    def download(allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        taken.extend(
            filter_repo_objects(files + others, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        )
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.cli.download, "snapshot_download", download)
    job = of_kind(own_overlay(tmp_path, "overlays/gpu", "model-download"), "Job")["model-download"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["hf", "download"]
    app(["download", *(arg.replace("$(MODEL)", "org/name") for arg in container["args"])], standalone_mode=False)
    assert taken == files
