"""Requests that wait: for nodes, or for room on them."""

import asyncio
import time
from typing import Any

import pytest

from baton.errors import NoCapacity, Overloaded

pytestmark = pytest.mark.anyio

PROMPT = list(range(10, 30))


async def test_without_nodes_a_request_waits_until_its_deadline(fleet: Any) -> None:
    await fleet.start()
    began = time.monotonic()
    error = await fleet.submit(PROMPT, timeout_s=0.6)[1].outcome()
    assert isinstance(error, NoCapacity)
    assert error.retry_after_s > 0
    assert 0.5 < time.monotonic() - began < 2.0


@pytest.mark.parametrize("lacks", ["room", "nodes"])
async def test_at_its_deadline_a_request_that_waits_hears_that_capacity_lacks(
    fleet: Any, until: Any, lacks: str
) -> None:
    """The error is not that the request took too long, even if it had begun."""
    decode = await fleet.add("decode", num_free_blocks=2 if lacks == "room" else 1000)
    decode.pause_at = 3
    await fleet.start()
    handle, sink = fleet.submit(PROMPT, timeout_s=0.8)
    if lacks == "nodes":
        await until(lambda: len(sink.tokens) == 3)
        await decode.die()
    assert isinstance(await sink.outcome(), NoCapacity)
    assert handle.usage.num_attempts == (lacks == "nodes")


async def test_a_request_waits_for_a_node_that_comes_in_time(fleet: Any, output_of: Any) -> None:
    await fleet.start()
    assert not fleet.dispatcher.ready
    _, sink = fleet.submit(PROMPT)
    await fleet.add("decode")
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)
    assert fleet.dispatcher.ready
    facts = fleet.dispatcher.facts
    assert (facts.model_fingerprint, facts.block_size, facts.max_model_len) == ("cafe", 4, 4096)


async def test_too_many_in_flight_are_refused_at_once(fleet: Any) -> None:
    await fleet.start(max_in_flight=2)
    handles = [fleet.submit(PROMPT)[0] for _ in range(2)]
    with pytest.raises(Overloaded):
        fleet.submit(PROMPT)
    handles[0].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    fleet.submit(PROMPT)


async def test_full_nodes_mean_overloaded_after_a_while(fleet: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode", num_free_blocks=2)
    await fleet.start(max_full_wait_s=0.3)
    sinks = [fleet.submit(PROMPT)[1] for _ in range(3)]
    for sink in sinks:
        error = await sink.outcome()
        assert isinstance(error, Overloaded)
        assert error.retry_after_s > 0
    assert not decode.calls


async def test_requests_wait_in_line_for_room(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode", num_free_blocks=6)  # of 4 tokens
    await fleet.start()
    holders = fleet.dispatcher._replica._holders.values()
    await until(lambda: all(holder.loaded for holder in holders))  # lookups that ask Redis overtake each other
    prompts = [[0, *PROMPT, *PROMPT], [1, *PROMPT], [2, *PROMPT]]  # the first one takes 11 blocks, the others 6
    sinks = [fleet.submit(prompt)[1] for prompt in prompts]
    seen_loads = len(decode.loads_told)
    await until(lambda: len(decode.loads_told) > seen_loads + 2)
    assert not decode.calls
    decode.load.num_free_blocks = 11
    for sink in sinks:
        await sink.finished()
    assert [g.token_ids[0] for _, g in decode.calls] == [0, 1, 2]
