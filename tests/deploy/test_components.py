"""Components applied to an overlay, as in deploy/README.md: what they add belongs to the same fleet."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

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
