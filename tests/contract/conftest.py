"""Chooses between GPU and interpreter before any test module imports Triton, which decides at its first import."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.append(str(Path(__file__).parent))  # for what tests of one subject share

import kv_nodes

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    import interpreted

    interpreted.quicken()


@pytest.fixture(params=[*kv_nodes.TRANSPORTS, "loopback, staged", "shm, staged", "tcp, staged"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the transport. With some, both nodes' pools are staged, as on GPUs."""
    name, _, staged = request.param.partition(", ")
    if staged:
        monkeypatch.setattr(kv_nodes, "Pool", kv_nodes.Staged)
    return name
