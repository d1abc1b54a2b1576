"""Kustomize's output for deploy/kubernetes: who may reach whom, what scales, and how a canary is separated."""

import re

import yaml

from tests.deploy.manifests import (
    Manifest,
    of_kind,
    overlay,
    services,
    settings_of,
)
from tests.deploy.tools import DEPLOY

COMPONENTS = DEPLOY / "kubernetes" / "components"


def allowed(manifests: list[Manifest], to: dict[str, str], port: int) -> list[str]:
    """Return who may connect to pods with these labels: `component`, `pool` or the name of a namespace."""
    sources = []
    for policy in of_kind(manifests, "NetworkPolicy").values():
        if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= to.items():
            for rule in policy["spec"].get("ingress", []):
                if any(p["port"] <= port <= p.get("endPort", p["port"]) for p in rule["ports"]):
                    sources += [label(peer) for peer in rule["from"]]
    return sorted(sources)


def label(peer: Manifest) -> str:
    labels = next(iter(peer.values()))["matchLabels"]
    names = ("app.kubernetes.io/component", "kubernetes.io/metadata.name")
    return next((labels[name] for name in names if name in labels), "pool")


def test_only_the_proxy_reaches_routers_and_only_routers_and_nodes_reach_nodes():
    manifests = overlay("cpu")
    deny = of_kind(manifests, "NetworkPolicy")["deny-all"]["spec"]
    assert (deny["podSelector"], deny["policyTypes"]) == ({}, ["Ingress", "Egress"])
    labels = {name: m["spec"]["template"]["metadata"]["labels"] for name, m in of_kind(manifests, "Deployment").items()}
    assert allowed(manifests, labels["router"], 8000) == ["ingress-nginx"]
    assert allowed(manifests, labels["router"], 9000) == ["monitoring", "router"]
    leaving = of_kind(manifests, "NetworkPolicy")["router"]["spec"]["egress"]
    assert [(label(rule["to"][0]), rule["ports"][0]["port"]) for rule in leaving] == [
        ("router", 9000),
        ("pool", 7001),
        ("redis", 6379),
    ]
    for node in ("prefill", "decode"):
        assert allowed(manifests, labels[node], 7001) == ["pool", "router"]
        assert allowed(manifests, labels[node], 33333) == ["pool"]
        assert allowed(manifests, labels[node], 9001) == ["monitoring", "pool"]
    assert allowed(manifests, labels["redis"], 6379) == ["pool", "router"]


def test_the_ingress_streams():
    ingress = of_kind(overlay("cpu"), "Ingress")["baton"]
    annotation = {name.rpartition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    assert annotation["proxy-buffering"] == "off"
    assert (annotation["proxy-read-timeout"], annotation["proxy-send-timeout"]) == ("300", "300")
    assert ingress["spec"]["tls"][0]["secretName"]
    assert [path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]] == ["/v1/"]


def test_each_pool_scales_on_its_own_signal_and_can_leave_zero():
    manifests = overlay("cpu")
    scaled = of_kind(manifests, "ScaledObject")
    assert scaled.keys() == {"prefill", "decode"}
    for name, manifest in scaled.items():
        spec = manifest["spec"]
        assert "replicas" not in of_kind(manifests, "Deployment")[name]["spec"]
        assert (spec["idleReplicaCount"], spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 1, 8)
        assert spec["cooldownPeriod"] == 300
        triggers = {trigger["name"]: trigger["metadata"] for trigger in spec["triggers"]}
        assert (triggers["waiting"]["threshold"], triggers["waiting"]["activationThreshold"]) == ("5", "2")
        assert "baton_router_requests_in_flight" in triggers["traffic"]["query"]
        assert triggers["traffic"]["activationThreshold"] == "0"
    assert "baton_waiting_prompt_tokens" in str(scaled["prefill"])
    assert {"baton_kv_usage_ratio", "baton_requests_running"} <= set(re.findall(r"baton_\w+", str(scaled["decode"])))


def test_the_hpa_preset():
    hpas = list(yaml.safe_load_all((COMPONENTS / "hpa" / "autoscalers.yaml").read_text()))
    for hpa in hpas:
        spec = hpa["spec"]
        assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
        windows = [spec["behavior"][way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown")]
        assert windows == [60, 300]
    waiting = [m["pods"] for hpa in hpas for m in hpa["spec"]["metrics"] if m["type"] == "Pods"]
    assert [m["target"]["averageValue"] for m in waiting if m["metric"]["name"] == "baton_requests_waiting"] == [
        "50"
    ] * 2


def test_a_canary_never_mixes_with_the_fleet_beside_it():
    canary, stable = overlay("canary"), overlay("cpu")
    names = {(m["kind"], m["metadata"]["name"]) for m in canary}
    assert not names & {(m["kind"], m["metadata"]["name"]) for m in stable}
    settings = settings_of(canary)
    assert settings["REDIS_HOST"] in of_kind(canary, "Service")
    for manifests, track in ((canary, "canary"), (stable, "stable")):
        for service in of_kind(manifests, "Service").values():
            assert service["spec"]["selector"]["baton.dev/track"] == track
    annotations = of_kind(canary, "Ingress")["baton-canary"]["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/canary-weight"] == "0"
    for _, spec, _ in services(canary):
        claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
        assert claims == ["baton-models"]
