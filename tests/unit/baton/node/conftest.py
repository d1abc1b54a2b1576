"""Tests with event loops of their own, and gRPC in them."""

import pytest


@pytest.fixture(autouse=True)
def quiet_grpc(nothing_late: None) -> None:
    """Of the loops of other tests."""
