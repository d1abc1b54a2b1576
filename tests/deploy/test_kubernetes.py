"""Checks kustomize's output for deploy/kubernetes against the schemas of Kubernetes and KEDA, and our own rules."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import (
    CONFIGS,
    OVERLAYS,
    Manifest,
    environment,
    of_kind,
    overlay,
    pods,
    services,
    settings_of,
    variables,
)
from tests.deploy.tools import DEPLOY

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
KUBERNETES = "1.34"
SCALED_OBJECT = json.loads((Path(__file__).parent / "schemas" / "scaledobject.json").read_text())
COMPONENTS = DEPLOY / "kubernetes" / "components"


def seconds(spec: dict[str, Any]) -> tuple[int, int]:
    return spec["periodSeconds"], spec["failureThreshold"]


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return overlay(request.param)


def check(manifest: Manifest) -> None:
    if manifest["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(manifest, SCALED_OBJECT)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about how the validator finds its own files
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_kubernetes_and_keda_know_every_field(manifests: list[Manifest]):
    for manifest in manifests:
        check(manifest)


def test_the_validators_refuse_unknown_fields():
    manifests = overlay("cpu")
    deployment, scaled = of_kind(manifests, "Deployment")["decode"], of_kind(manifests, "ScaledObject")["decode"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 5
    with pytest.raises(kubernetes_validate.ValidationError):
        check(deployment)
    scaled["spec"]["cooldownPeriods"] = 5
    with pytest.raises(jsonschema.ValidationError):
        check(scaled)


@pytest.mark.parametrize("component", ["hpa", "model-download"])
def test_the_other_components_are_valid_too(component: str):
    for path in COMPONENTS.joinpath(component).glob("*.yaml"):
        for manifest in yaml.safe_load_all(path.read_text()):
            if manifest["kind"] != "Component":
                check(manifest)


def test_all_objects_are_present():
    kinds = {(m["kind"], m["metadata"]["name"]) for m in overlay("cpu")}
    pools = ("router", "prefill", "decode")
    assert kinds >= {(kind, name) for kind in ("Deployment", "ServiceAccount", "Service") for name in (*pools, "redis")}
    assert kinds >= {("PodDisruptionBudget", name) for name in pools}
    assert kinds >= {("Ingress", "baton"), ("PersistentVolumeClaim", "baton-models"), ("NetworkPolicy", "deny-all")}


def test_no_secret_is_in_the_manifests(manifests: list[Manifest]):
    assert not of_kind(manifests, "Secret")
    for _, _, container in services(manifests):
        hidden = {e["name"]: e for e in container["env"] if re.search("TOKEN|PASSWORD", e["name"])}
        assert hidden.keys() == {"BATON_SERVICE_TOKEN", "REDIS_PASSWORD"}
        assert all("secretKeyRef" in entry["valueFrom"] for entry in hidden.values())


def test_every_variable_is_a_flag_of_its_service(manifests: list[Manifest]):
    settings = settings_of(manifests)
    known_somewhere = {name for service in CONFIGS for name in variables(service)}
    for name in settings:
        assert name in known_somewhere | {"REDIS_HOST"}
    for service, _, container in services(manifests):
        assert container["args"] == [service]
        own = {entry["name"] for entry in container["env"] if entry["name"].startswith("BATON_")}
        assert own <= variables(service)


def test_variables_are_defined_before_they_are_referenced(manifests: list[Manifest]):
    for spec in pods(manifests).values():
        seen: set[str] = set()
        for entry in spec["containers"][0].get("env", []):
            assert set(re.findall(r"\$\((\w+)\)", entry.get("value", ""))) <= seen
            seen.add(entry["name"])


def test_pods_can_do_little(manifests: list[Manifest]):
    for name, spec in pods(manifests).items():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            security = container["securityContext"]
            assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True), name
            assert security["capabilities"]["drop"] == ["ALL"]
            assert set(security["capabilities"].get("add", [])) <= {"IPC_LOCK"}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert re.fullmatch(r"\S+:[\w.-]*\d[\w.-]*", container["image"]), "pinned by tag"


def test_the_grace_period_covers_a_drain(manifests: list[Manifest]):
    settings = settings_of(manifests)
    for _, spec, container in services(manifests):
        drain_s = float(environment(container, settings)["BATON_DRAIN_TIMEOUT_S"] or 0)
        before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert 60 <= drain_s <= 120
        assert spec["terminationGracePeriodSeconds"] >= before_s + drain_s + 10


def test_pods_are_spread_over_hosts(manifests: list[Manifest]):
    for service, spec, _ in services(manifests):
        (constraint,) = spec["topologySpreadConstraints"]
        assert (constraint["maxSkew"], constraint["topologyKey"]) == (1, "kubernetes.io/hostname")
        assert constraint["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == service


def test_models_are_on_a_volume_that_hosts_share():
    claim = of_kind(overlay("cpu"), "PersistentVolumeClaim")["baton-models"]["spec"]
    assert (claim["accessModes"], claim["resources"]["requests"]["storage"]) == (["ReadWriteMany"], "100Gi")
    for _, spec, container in services(overlay("cpu")):
        assert any(v.get("persistentVolumeClaim", {}).get("readOnly") for v in spec["volumes"])
        assert any(m["mountPath"] == "/models" and m["readOnly"] for m in container["volumeMounts"])


@pytest.mark.parametrize(
    ("preset", "startup", "ready", "live", "delay_s"),
    [("a", (10, 40), (15, 3), (30, 5), 0), ("b", (10, 30), (5, 1), (10, 3), 30)],
)
def test_probes_are_the_preset(preset: str, startup: tuple, ready: tuple, live: tuple, delay_s: int):
    for name in ("router", "node"):
        patch = yaml.safe_load((COMPONENTS / f"probes-{preset}" / f"{name}.yaml").read_text())
        (container,) = patch["spec"]["template"]["spec"]["containers"]
        assert seconds(container["startupProbe"]) == startup
        assert seconds(container["readinessProbe"]) == ready
        assert seconds(container["livenessProbe"]) == live
        assert container["startupProbe"].get("initialDelaySeconds", 0) == delay_s
        assert container["livenessProbe"]["timeoutSeconds"] == 5


def test_every_service_is_probed(manifests: list[Manifest]):
    for service, _, container in services(manifests):
        how = "httpGet" if service == "router" else "grpc"
        assert all(how in container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe"))


def test_rdma_pins_memory_and_takes_the_system_s_ucx():
    for service, _, container in services(overlay("rdma")):
        if service != "router":
            values = environment(container, {})
            assert (values["BATON_TRANSPORT"], values["RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY"]) == ("ucx", "true")
            assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
            assert any(name.startswith("rdma/") for name in container["resources"]["limits"])
