"""Nodes that die or freeze: the client only sees a delay."""

import asyncio
import time
from typing import Any

import pytest

from baton.errors import NoCapacity
from baton.v1 import node_pb2, types_pb2
from router.nodes import fleet_view, silence
from router.nodes import link as node_link

pytestmark = pytest.mark.anyio

PROMPT = list(range(10, 30))
Batch = node_pb2.StepBatch


async def test_a_decode_node_dies_in_mid_stream(fleet: Any, until: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    nodes = [await fleet.add("decode"), await fleet.add("decode")]
    for node in nodes:
        node.pause_at = 7
    await fleet.start()
    sinks = [fleet.submit([n, *PROMPT], 20)[1] for n in range(6)]
    await until(lambda: all(len(sink.tokens) == 7 for sink in sinks))
    nodes[1].go.set()
    nodes[1].pause_at = 10**9
    began = time.monotonic()
    await nodes[0].die()
    usages = [await sink.finished() for sink in sinks]
    assert time.monotonic() - began < 3.0
    assert [sink.tokens for sink in sinks] == [output_of([n, *PROMPT], 20) for n in range(6)]
    num_moved = len(nodes[0].calls)  # with their KV shipped, or computed there
    assert 0 < num_moved < 6
    assert sorted(usage.num_attempts for usage in usages) == [1] * (6 - num_moved) + [2] * num_moved
    assert all(usage.num_prompt_tokens == 21 and usage.num_output_tokens == 20 for usage in usages)
    replayed = [g for _, g in nodes[1].calls if g.attempt == 1]
    assert len(replayed) == num_moved
    assert all(g.num_prompt_tokens == 21 and len(g.token_ids) == 28 for g in replayed)


async def test_a_prefill_node_dies_while_it_computes(fleet: Any, until: Any, output_of: Any) -> None:
    doomed, decode = await fleet.add("prefill"), await fleet.add("decode")
    doomed.compute.clear()
    await fleet.start()
    handle, sink = fleet.submit(PROMPT)
    await until(lambda: doomed.seen("run") and decode.seen("reserve"))
    assert not fleet.dispatcher.waiting()
    await doomed.die()
    await until(lambda: fleet.dispatcher.waiting() == [handle])
    await fleet.add("prefill")
    usage = await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)
    assert usage.num_attempts == 2
    assert (1, 0) in decode.cancelled  # what it had reserved is free again


async def test_a_prefill_node_dies_after_the_transfer(fleet: Any, until: Any, output_of: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    decode.pause_at = 5
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 5)
    await prefill.die()
    await fleet.alive(1)
    decode.go.set()
    assert (await sink.finished()).num_attempts == 1
    assert sink.tokens == output_of(PROMPT, 12)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_frozen_node_is_left_within_3_s_and_fenced(fleet: Any, until: Any, output_of: Any, role: str) -> None:
    nodes = {"prefill": await fleet.add("prefill"), "decode": await fleet.add("decode")}
    nodes["prefill"].compute.clear()
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: nodes["prefill"].seen("run") and nodes["decode"].seen("reserve"))
    frozen = nodes[role]
    frozen.warm.clear()
    if role == "decode":
        nodes["prefill"].compute.set()
        await until(lambda: len(sink.tokens) == 1)  # the rest is stuck in the frozen node
    began = time.monotonic()
    await fleet.add(role, "spare")
    await sink.finished()
    assert time.monotonic() - began < 4.0  # silence is noticed within 2.25 s; the rest is a busy machine's
    assert sink.tokens == output_of(PROMPT, 12)
    frozen.warm.set()
    frozen.compute.set()
    await fleet.alive(3)
    if role == "decode":
        await until(lambda: (1, 0) in frozen.cancelled)  # its next stream begins with nothing
    assert sink.tokens == output_of(PROMPT, 12)
    assert sink.num_ends == 1


async def test_a_node_frozen_beyond_its_lease_hears_what_was_given_up(
    fleet: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_view, "POLL_S", 0.02)
    prefill, frozen = await fleet.add("prefill"), await fleet.add("decode")
    prefill.compute.clear()
    dispatcher = await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: frozen.seen("reserve"))
    frozen.warm.clear()
    await frozen.registration.stop()  # Redis forgets it
    await fleet.add("decode", "spare")
    await until(lambda: {link.record.node_id for link in dispatcher.links} == {prefill.node_id, "spare"})
    prefill.compute.set()
    await sink.finished()
    assert not frozen.cancelled
    frozen.warm.set()
    await frozen.registration.start()
    await until(lambda: (1, 0) in frozen.cancelled)  # else its blocks would wait for the end of the lease


async def test_what_runs_on_a_silent_node_goes_to_those_that_speak(fleet: Any, until: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    silent, other = await fleet.add("decode"), await fleet.add("decode")
    for node in (silent, other):
        node.pause_at = 5
    dispatcher = await fleet.start()
    sinks = [fleet.submit([n, *PROMPT])[1] for n in range(2)]
    await until(lambda: all(len(sink.tokens) == 5 for sink in sinks))
    silent.warm.clear()
    other.go.set()
    began = time.monotonic()
    assert sorted([(await sink.finished()).num_attempts for sink in sinks]) == [1, 2]
    assert time.monotonic() - began < 4.0  # suspected after 1.1 s, on a machine that has time
    link = next(link for link in dispatcher.links if link.record.node_id == silent.node_id)
    assert link.alive
    assert link.suspected
    silent.warm.set()
    await until(lambda: link.accepting)
    assert [sink.tokens for sink in sinks] == [output_of([n, *PROMPT], 12) for n in range(2)]
    assert len(silent.streams) == 1


@pytest.mark.parametrize(("hopeless_ticks", "num_attempts"), [(40, 1), (8, 2)])
async def test_the_last_of_a_pool_is_given_longer(
    fleet: Any, until: Any, output_of: Any, monkeypatch: pytest.MonkeyPatch, hopeless_ticks: int, num_attempts: int
) -> None:
    monkeypatch.setattr(silence, "LOST_TICKS", 4)  # 0.5 s
    monkeypatch.setattr(silence, "HOPELESS_TICKS", hopeless_ticks)
    await fleet.add("prefill")
    last = await fleet.add("decode")
    last.pause_at = 5
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 5)
    last.warm.clear()
    if num_attempts == 1:
        await asyncio.sleep(1.5)
    else:
        await until(lambda: any(not link.alive for link in fleet.dispatcher.links))  # given up
    last.warm.set()
    last.go.set()
    assert (await sink.finished()).num_attempts == num_attempts
    assert sink.tokens == output_of(PROMPT, 12)


async def test_a_node_that_beats_but_does_not_step_is_left_until_it_does(
    fleet: Any, until: Any, output_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_link, "STUCK_S", 0.5)
    await fleet.add("prefill")
    stuck = await fleet.add("decode")
    stuck.pause_at = 5
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 5)
    stuck.load.num_running = 1
    spare = await fleet.add("decode")
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)
    for other in [fleet.submit(PROMPT)[1] for _ in range(3)]:
        await other.finished()
    assert (len(stuck.seen("reserve")), len(spare.seen("reserve"))) == (1, 4)
    stuck.load.num_steps += 1
    await until(lambda: len(fleet.dispatcher._fleet.accepting("decode")) == 2)


async def test_a_dead_prefill_pool_is_waited_for_and_one_that_drained_is_not(
    fleet: Any, until: Any, output_of: Any
) -> None:
    prefill = await fleet.add("prefill")
    decode = await fleet.add("decode")
    await fleet.start()
    await prefill.die()
    await fleet.alive(1)
    assert not fleet.dispatcher.ready
    assert isinstance(await fleet.submit(PROMPT, timeout_s=0.3)[1].outcome(), NoCapacity)
    second = await fleet.add("prefill")
    await fleet.alive(2)
    second.load.state = types_pb2.NODE_STATE_DRAINING
    await until(lambda: not fleet.dispatcher._fleet.accepting("prefill"))
    await prefill.registration.deregister()
    await second.stop()
    _, sink = fleet.submit(PROMPT)
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)
    assert len(decode.seen("generate")) == 1


async def test_a_new_incarnation_at_the_same_address_voids_the_old_one(fleet: Any, until: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    old = await fleet.add("decode", "decode")
    old.pause_at = 6
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 6)
    await old.die()
    new = await fleet.add("decode", "decode", old.port)
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)
    assert [g.attempt for g in new.seen("reserve")] == [1]
