"""Redis holds only hints: requests are served without it."""

import time
from typing import Any

import pytest

from baton.v1 import node_pb2
from router.nodes import fleet_view

pytestmark = pytest.mark.anyio

PROMPT = list(range(10, 30))
Batch = node_pb2.StepBatch


async def test_redis_may_die_while_requests_run(fragile_fleet: Any, redis_server: Any, output_of: Any) -> None:
    fleet = fragile_fleet
    await fleet.add("prefill")
    await fleet.add("decode")
    await fleet.start()
    redis_server.kill()
    for n in range(20):
        _, sink = fleet.submit([n, *PROMPT])
        await sink.finished()
        assert sink.tokens == output_of([n, *PROMPT], 12)
    redis_server.start()
    await fleet.add("decode")
    await fleet.alive(3)


async def test_a_registry_that_forgot_a_living_node_takes_nothing_away(
    fleet: Any, until: Any, output_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_view, "POLL_S", 0.02)
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.pause_at = 5
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 5)
    await decode.registration.stop()
    told = len(decode.loads_told)
    await until(lambda: len(decode.loads_told) > told + 2)  # many polls later
    decode.go.set()
    assert (await sink.finished()).num_attempts == 1
    assert sink.tokens == output_of(PROMPT, 12)


async def test_a_frozen_redis_is_no_reason_to_be_slow(fragile_fleet: Any, redis_server: Any, output_of: Any) -> None:
    fleet = fragile_fleet
    await fleet.add("prefill")
    await fleet.add("decode")
    await fleet.start()
    redis_server.freeze()
    began = time.monotonic()
    for n in range(20):
        _, sink = fleet.submit([n, *PROMPT])
        await sink.finished()
    assert time.monotonic() - began < 2.0
    redis_server.thaw()
