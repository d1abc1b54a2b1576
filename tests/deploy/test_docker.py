"""Images and compose stack, as far as they can be checked without a Docker engine."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import CONFIGS, variables
from tests.deploy.tools import DEPLOY, ROOT, run

DOCKER = DEPLOY / "docker"
OF_THE_ENTRY_POINT = {"BATON_SERVICE_TOKEN_FILE"}


@cache
def compose(*files: str) -> dict[str, Any]:
    flags = [part for name in ("compose.yaml", *files) for part in ("-f", str(DOCKER / name))]
    printed = run("docker-compose", *flags, "--env-file", str(DOCKER / ".env.example"), "config")
    found: dict[str, Any] = yaml.safe_load(printed)
    return found


def test_the_dockerfile_is_clean():
    run("hadolint", "-c", str(DOCKER / "hadolint.yaml"), str(DOCKER / "Dockerfile"))


def test_bases_are_pinned_and_nobody_is_root():
    text = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert {base for base, _ in stages} <= {"python:${PYTHON}", *(name for _, name in stages)}
    for name in ("cpu", "gpu"):
        stage = text[text.index(f" AS {name}\n") :].partition("\nFROM ")[0]
        users = re.findall(r"^USER (\S+)$", stage, re.MULTILINE)
        assert not users or users[-1] == "10001:10001"
    assert "--interval=30s --timeout=10s --retries=3 --start-period=120s" in text


def test_what_is_copied_is_in_the_context():
    """.dockerignore lists what is included, and every package of the project must be."""
    named = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in named)
    packages = re.search(r"include = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    assert packages is not None
    assert {name.strip(' "*') for name in packages[1].split(",")} <= named


def test_the_requirements_are_those_of_the_project():
    command = [sys.executable, str(DOCKER / "dependencies.py"), str(ROOT / "pyproject.toml"), "--without", "triton"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    assert any(line.startswith("torch") for line in lines)
    assert not any(line.startswith("triton") for line in lines)
    assert "pytest" not in str(lines)


@pytest.mark.parametrize("files", [(), ("compose.gpu.yaml",), ("compose.tls.yaml",)], ids=str)
def test_compose_accepts(files: tuple[str, ...]):
    services = compose(*files)["services"]
    assert services.keys() >= {"proxy", "router", "prefill", "decode", "redis", "prometheus", "grafana"}


def test_variables_are_flags_of_their_services():
    for service in CONFIGS:
        given = {name for name in compose()["services"][service]["environment"] if name.startswith("BATON_")}
        assert given - OF_THE_ENTRY_POINT <= variables(service)


def test_services_are_watched_and_have_the_time_to_drain():
    services = compose()["services"]
    for name in ("proxy", *CONFIGS):
        health = services[name]["healthcheck"]
        assert (health["interval"], health["timeout"], health["retries"]) == ("30s", "10s", 3)
        assert services[name]["stop_grace_period"] in ("1m40s", "100s")
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    for name in CONFIGS:
        assert services[name]["healthcheck"]["start_period"] == "2m0s"
        assert float(services[name]["environment"]["BATON_DRAIN_TIMEOUT_S"]) < 100
    assert {services[name]["shm_size"] for name in ("prefill", "decode")} == {str(4 * 2**30)}


def test_images_are_pinned():
    for service in compose()["services"].values():
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"])


def test_only_the_proxy_is_offered_to_other_hosts():
    services = compose("compose.tls.yaml")["services"]
    for name, service in services.items():
        offered = {port["target"] for port in service.get("ports", []) if port.get("host_ip") != "127.0.0.1"}
        assert offered == ({8080, 8443} if name == "proxy" else set())
    assert not set(services["proxy"]["networks"]) & set(services["redis"]["networks"])


def test_secrets_are_made_once_and_not_printed(tmp_path: Path):
    script = [str(DOCKER / "make-secrets.sh"), str(tmp_path / "secrets")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True, timeout=30)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == compose()["secrets"].keys()
    assert all(re.fullmatch(r"[A-Za-z0-9]{40}", secret) for secret in made.values())
    assert (printed.stdout, printed.stderr) == ("", "")
    subprocess.run(script, check=True, timeout=30)
    assert made == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}


def entry(tmp_path: Path, **env: str) -> dict[str, str]:
    """Return the environment that the entry point passes to a service."""
    baton = tmp_path / "baton"
    baton.write_text('#!/bin/sh\necho "command=$*"\nenv\n')
    baton.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(DOCKER / "entrypoint.sh"), "decode", "--port", "1"],
        env={"PATH": path, **env},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def test_a_container_is_found_by_its_own_address(tmp_path: Path):
    given = entry(tmp_path)
    assert given["command"] == "decode --port 1"
    assert re.fullmatch(r"[0-9a-f.:]+", given["BATON_HOST"])
    assert given["BATON_ADMIN_HOST"] == given["BATON_HOST"]
    assert entry(tmp_path, BATON_HOST="10.0.0.7")["BATON_HOST"] == "10.0.0.7"


def test_secrets_come_from_files(tmp_path: Path):
    (tmp_path / "token").write_text("a-token")
    (tmp_path / "password").write_text("a-password")
    files = {"BATON_SERVICE_TOKEN_FILE": str(tmp_path / "token"), "REDIS_PASSWORD_FILE": str(tmp_path / "password")}
    given = entry(tmp_path, **files)
    assert given["BATON_SERVICE_TOKEN"] == "a-token"
    assert given["BATON_REDIS_URL"] == "redis://:a-password@redis:6379/0"
    assert not {"REDIS_PASSWORD", *files} & given.keys()


def test_a_service_in_two_networks_listens_in_both():
    for name in CONFIGS:
        service = compose()["services"][name]
        assert len(service["networks"]) == 1 or service["environment"]["BATON_HOST"] == "0.0.0.0"


def test_redis_is_the_same_everywhere():
    assert (DOCKER / "redis.conf").read_bytes() == (DEPLOY / "kubernetes" / "base" / "redis.conf").read_bytes()
