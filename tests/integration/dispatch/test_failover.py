"""Nodes that die, freeze, lie and refuse: the client sees time pass and nothing else."""

import asyncio
import time
from typing import Any

import pytest

from baton.errors import NoCapacity, NodeUnavailable, Overloaded, TransferError
from baton.v1 import node_pb2, types_pb2
from router import fleet_view, node_link

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
    num_moved = len(nodes[0].seen("reserve"))
    assert 0 < num_moved < 6
    assert sorted(usage.num_attempts for usage in usages) == [1] * (6 - num_moved) + [2] * num_moved
    assert all(usage.num_prompt_tokens == 21 and usage.num_output_tokens == 20 for usage in usages)
    replayed = [g for g in nodes[1].seen("reserve") if g.attempt == 1]
    assert len(replayed) == num_moved
    assert all(g.num_prompt_tokens == 21 and len(g.token_ids) == 28 for g in replayed)


async def test_a_prefill_node_dies_while_it_computes(fleet: Any, until: Any, output_of: Any) -> None:
    doomed, decode = await fleet.add("prefill"), await fleet.add("decode")
    doomed.compute.clear()
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: doomed.seen("run") and decode.seen("reserve"))
    await doomed.die()
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
    frozen.num_cancels_to_lose = 1
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
        await until(lambda: (1, 0) in frozen.cancelled)  # said again when the node was back
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
    frozen.num_cancels_to_lose = 1
    await frozen.registration.stop()  # Redis forgets it
    await fleet.add("decode", "spare")
    await until(lambda: len(dispatcher.nodes()) == 2 and frozen.node_id not in {n.node_id for n in dispatcher.nodes()})
    prefill.compute.set()
    await sink.finished()
    assert not frozen.cancelled
    frozen.warm.set()
    await frozen.registration.start()
    await until(lambda: (1, 0) in frozen.cancelled)  # else its blocks would wait for the end of the lease


async def test_a_cancel_that_is_lost_is_said_again(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.pause_at = 3
    await fleet.start()
    first, sink = fleet.submit(PROMPT)
    second, other = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == len(other.tokens) == 3)
    decode.num_cancels_to_lose = 1
    first.cancel()
    await until(lambda: not decode.num_cancels_to_lose)
    second.cancel()
    await until(lambda: {(1, 0), (2, 0)} <= set(decode.cancelled))


async def test_tokens_that_overtake_the_first_one_wait_for_it(fleet: Any, until: Any, output_of: Any) -> None:
    prefill = await fleet.add("prefill")
    await fleet.add("decode")
    prefill.first_token_held = asyncio.Event()
    await fleet.start()
    _, sink = fleet.submit(PROMPT, num_logprobs=0)
    links = fleet.dispatcher._fleet.links
    await until(lambda: any(len(leg._held) == 12 for link in links for leg in link.legs.values()))
    assert sink.tokens == []
    prefill.first_token_held.set()
    assert (await sink.finished()).num_attempts == 1
    assert sink.tokens == output_of(PROMPT, 12)
    assert sink.logprobs == [-float(index) for index in range(12)]


async def test_messages_and_rows_that_come_twice_are_dropped(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")

    def twice(batch: Batch) -> list[Batch]:
        return [batch, batch]

    def rows_twice(batch: Batch) -> list[Batch]:
        doubled = Batch()
        doubled.CopyFrom(batch)
        for column in ("keys", "attempts", "indices", "token_ids"):
            getattr(doubled, column).extend(getattr(batch, column))
        return [doubled]

    decode.tampers = [twice, rows_twice, twice, rows_twice]
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 1
    assert sink.tokens == output_of(PROMPT, 12)


async def test_rows_of_other_attempts_are_dropped(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")

    def with_strangers(batch: Batch) -> list[Batch]:
        batch.keys.extend([batch.keys[0], 777])
        batch.attempts.extend([batch.attempts[0] + 1, 0])
        batch.indices.extend([batch.indices[0] + 1, 0])
        batch.token_ids.extend([5, 5])
        batch.finished.add(key=batch.keys[0], attempt=batch.attempts[0] + 1, num_output_tokens=1, reason=1)
        return [batch]

    decode.tampers = [lambda batch: [batch], with_strangers, with_strangers]
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 1
    assert sink.tokens == output_of(PROMPT, 12)


async def test_a_lost_row_makes_a_new_attempt(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")

    def without_rows(batch: Batch) -> list[Batch]:
        for column in ("keys", "attempts", "indices", "token_ids"):
            batch.ClearField(column)
        return [batch]

    decode.tampers = [lambda batch: [batch], without_rows]
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 2
    assert sink.tokens == output_of(PROMPT, 12)
    assert (1, 0) in decode.cancelled


async def test_a_lost_last_row_makes_a_new_attempt(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")

    def without_the_last(batch: Batch) -> list[Batch]:
        if batch.finished:
            for column in ("keys", "attempts", "indices", "token_ids"):
                batch.ClearField(column)
        return [batch]

    decode.tampers = [without_the_last] * 11
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 2
    assert sink.tokens == output_of(PROMPT, 12)


async def test_a_lost_message_makes_new_attempts_of_all_on_that_node(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.tampers = [lambda batch: [batch], lambda batch: []]
    await fleet.start()
    sinks = [fleet.submit([n, *PROMPT])[1] for n in range(3)]
    for n, sink in enumerate(sinks):
        await sink.finished()
        assert sink.tokens == output_of([n, *PROMPT], 12)


async def test_a_lost_last_message_is_noticed_by_the_next_one(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.tampers = [lambda batch: [] if batch.finished else [batch]] * 11
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 2
    assert sink.tokens == output_of(PROMPT, 12)


async def test_a_pair_that_failed_is_left_alone(fleet: Any, output_of: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    await fleet.start()
    prefill.transfer_errors = [TransferError("digest")]
    for n in range(3):
        _, sink = fleet.submit([n, *PROMPT])
        assert (await sink.finished()).num_attempts == (2 if n == 0 else 1)
        assert sink.tokens == output_of([n, *PROMPT], 12)
    assert (len(prefill.seen("run")), len(decode.seen("generate"))) == (1, 3)  # there is no other pair
    other = await fleet.add("prefill")
    await fleet.alive(3)
    _, sink = fleet.submit([9, *PROMPT])
    assert (await sink.finished()).num_attempts == 1
    assert (len(prefill.seen("run")), len(other.seen("run"))) == (1, 1)


def lose_row(node: Any, number: int, num_attempts: int) -> None:
    """Of each of the first attempts the node's row of that number never comes."""
    seen: dict[int, int] = {}

    def tamper(batch: Batch) -> list[Batch]:
        node.tampers.append(tamper)
        attempt = batch.attempts[0] if batch.attempts else num_attempts
        seen[attempt] = seen.get(attempt, 0) + 1
        if attempt < num_attempts and seen[attempt] == number:
            for column in ("keys", "attempts", "indices", "token_ids"):
                batch.ClearField(column)
        return [batch]

    node.tampers.append(tamper)


async def test_four_failures_in_vain_end_a_request(fleet: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    lose_row(decode, 1, 9)
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert isinstance(await sink.outcome(), NoCapacity)
    assert len(decode.calls) == 4


async def test_a_long_request_outlives_more_failures_as_long_as_it_gets_on(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    lose_row(await fleet.add("decode"), 3, 5)
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 40)
    assert (await sink.finished()).num_attempts == 6
    assert sink.tokens == output_of(PROMPT, 40)


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
    assert time.monotonic() - began < 1.9  # suspected after 1.1 s
    link = next(link for link in dispatcher._fleet.links if link.record.node_id == silent.node_id)
    assert link.alive
    assert link.suspected
    silent.warm.set()
    await until(lambda: link.accepting)
    assert [sink.tokens for sink in sinks] == [output_of([n, *PROMPT], 12) for n in range(2)]
    assert len(silent.streams) == 1


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_node_that_refuses_is_avoided(fleet: Any, output_of: Any, role: str) -> None:
    await fleet.add("prefill")
    await fleet.add("decode")
    refusing = await fleet.add(role)
    refusing.refusals = [NodeUnavailable("drains")] * 100
    await fleet.start()
    sinks = [fleet.submit(PROMPT)[1] for _ in range(8)]
    for sink in sinks:
        assert (await sink.finished()).num_attempts == 1  # a refusal is none
        assert sink.tokens == output_of(PROMPT, 12)


async def test_a_node_that_says_that_it_drains_gets_nothing_new(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    leaving, staying = await fleet.add("decode"), await fleet.add("decode")
    await fleet.start()
    leaving.load.state = types_pb2.NODE_STATE_DRAINING
    await until(lambda: "draining" in [node.state for node in fleet.dispatcher.nodes()])
    for sink in [fleet.submit(PROMPT)[1] for _ in range(4)]:
        await sink.finished()
    assert (leaving.calls, len(staying.seen("reserve"))) == ([], 4)


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


async def test_nodes_that_are_full_for_long_mean_overloaded(fleet: Any) -> None:
    prefill = await fleet.add("prefill")
    prefill.compute.clear()
    decode = await fleet.add("decode")
    decode.refusals = [Overloaded("full")] * 100
    await fleet.start(max_full_wait_s=0.5)
    assert isinstance(await fleet.submit(PROMPT)[1].outcome(), Overloaded)


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


async def test_a_paused_request_leaves_its_nodes_and_goes_on(fleet: Any, until: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    await fleet.start()
    decode.pause_at = 6
    handle, sink = fleet.submit(PROMPT, 12)
    await until(lambda: len(sink.tokens) == 6)
    handle.pause()
    await until(lambda: decode.cancelled)
    assert fleet.dispatcher.num_in_flight == 1
    num_calls = len(decode.calls)
    decode.pause_at = 10**9
    await asyncio.sleep(0.05)
    assert len(decode.calls) == num_calls
    handle.resume()
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)


async def test_a_request_may_be_paused_before_it_is_placed(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    await fleet.add("decode")
    await fleet.start()
    handle, sink = fleet.submit(PROMPT, 12)
    handle.pause()
    await asyncio.sleep(0.05)
    assert not sink.tokens
    handle.resume()
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)
    handle.pause()  # it has ended
    handle.resume()
