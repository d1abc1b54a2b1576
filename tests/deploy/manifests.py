"""Rendered manifests as objects, and the flags of the services that they start."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import yaml

from baton.process.config import env_name
from baton.process.settings import NodeConfig, RouterConfig
from tests.deploy.tools import rendered

Manifest = dict[str, Any]
CONFIGS = {"router": RouterConfig, "prefill": NodeConfig, "decode": NodeConfig}
OVERLAYS = ("cpu", "gpu", "rdma", "canary")


def variables(service: str) -> set[str]:
    """Return the BATON_ variables that a service reads as flags."""
    return {env_name(field.name) for field in dataclasses.fields(CONFIGS[service])}


def overlay(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all(rendered(f"overlays/{name}")))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return name -> manifest."""
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return name of workload -> spec of its pods."""
    workloads = [m for m in manifests if m["kind"] in ("Deployment", "StatefulSet", "Job")]
    return {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in workloads}


def services(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Return (router | prefill | decode, pod spec, container) of every workload that runs Baton."""
    for name, spec in pods(manifests).items():
        service = name.removesuffix("-canary")
        if service in CONFIGS:
            yield service, spec, spec["containers"][0]


def environment(container: Manifest, settings: dict[str, str]) -> dict[str, str | None]:
    """Return variable -> value, None if only the cluster knows it. `settings` are those of the ConfigMap."""
    own = {entry["name"]: entry.get("value") for entry in container["env"]}
    return {**settings, **own}


def settings_of(manifests: list[Manifest]) -> dict[str, str]:
    """Return the settings that all services of a fleet share."""
    found = of_kind(manifests, "ConfigMap").items()
    data: dict[str, str] = next(m["data"] for name, m in found if name.startswith("baton-settings"))
    return data
