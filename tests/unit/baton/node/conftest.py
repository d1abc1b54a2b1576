"""Tests with event loops of their own, and gRPC in them."""

import pytest

from baton.node.sessions import Sessions
from baton.v1 import types_pb2
from tests.unit.baton.node.stand_ins import Clock


@pytest.fixture(autouse=True)
def quiet_grpc(nothing_late: None) -> None:
    """Silence gRPC's messages about the event loops of other tests."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def sessions(clock: Clock) -> Sessions:
    return Sessions(7, types_pb2.Load, clock)
