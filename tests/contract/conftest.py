"""Triton decides between GPU and interpreter when it is first imported, so that is settled before any test module."""

import os
import sys
from pathlib import Path

import pytest

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.append(str(Path(__file__).parent))  # for what tests of one subject share

from kv_nodes import TRANSPORTS


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param
