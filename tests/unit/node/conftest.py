"""Tests with event loops of their own, and gRPC in them."""

import asyncio

import pytest
from grpc import aio


@pytest.fixture(autouse=True)
def nothing_late() -> None:
    """gRPC gives what comes too late for a loop that is closed to the next loop, as an error: one that only logs it."""
    asyncio.run(_listen())


async def _listen() -> None:
    async with aio.insecure_channel("127.0.0.1:1"):
        await asyncio.sleep(0.02)
