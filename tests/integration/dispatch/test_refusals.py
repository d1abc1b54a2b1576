"""Nodes that refuse, drain or fail a transfer, and clients that pause: requests are placed elsewhere, or later."""

import asyncio
import time
from typing import Any

import pytest

from baton.errors import ContextLengthExceeded, NodeUnavailable, Overloaded, TransferError
from baton.v1 import node_pb2, types_pb2
from router.nodes import cut_pairs, link, outbox
from router.nodes.link import AVOID_S
from router.serving import failover
from router.serving.patience import LEAST_S

pytestmark = pytest.mark.anyio

PROMPT = list(range(10, 30))
Batch = node_pb2.StepBatch


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


async def test_after_two_failed_transfers_a_request_runs_on_a_decode_node_alone(
    fleet: Any, output_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over slow links a transfer may fail so late that its pair is no longer avoided by then."""
    monkeypatch.setattr(cut_pairs, "MIN_PAUSE_S", 0.0)
    monkeypatch.setattr(cut_pairs, "MAX_PAUSE_S", 0.0)
    prefills, decodes = [[await fleet.add(role), await fleet.add(role)] for role in ("prefill", "decode")]
    for prefill in prefills:
        prefill.transfer_errors = [TransferError("too slow") for _ in range(4)]
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 3
    assert sink.tokens == output_of(PROMPT, 12)
    assert sum(len(decode.seen("generate")) for decode in decodes) == 1
    assert [len(node.seen("run") + node.seen("reserve")) for node in prefills + decodes] == [1] * 4  # others each time


async def test_a_stream_that_has_begun_waits_for_its_kv_for_a_second(fleet: Any, output_of: Any, until: Any) -> None:
    slow, decode = await fleet.add("prefill"), await fleet.add("decode")
    slow.ship.clear()
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: sink.tokens != [])
    began_s = time.monotonic()
    assert (await sink.finished()).num_attempts == 2
    assert LEAST_S <= time.monotonic() - began_s < 2 * LEAST_S
    assert sink.tokens == output_of(PROMPT, 12)
    assert len(decode.seen("generate")) == 1  # there is no other pair
    await until(lambda: slow.num_broken_runs == 1)


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
    await until(lambda: "draining" in [link.health for link in fleet.dispatcher.links])
    for sink in [fleet.submit(PROMPT)[1] for _ in range(4)]:
        await sink.finished()
    assert (leaving.calls, len(staying.seen("reserve"))) == ([], 4)


@pytest.mark.parametrize("avoid_s", [AVOID_S, 0.0])
async def test_nodes_that_are_full_for_long_mean_overloaded(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, avoid_s: float
) -> None:
    """This holds even if there is always another node to try."""
    monkeypatch.setattr(link, "AVOID_S", avoid_s)
    prefill = await fleet.add("prefill")
    prefill.compute.clear()
    decode = await fleet.add("decode")
    decode.refusals = [Overloaded("full")] * 10_000
    await fleet.start(max_full_wait_s=0.5)
    assert isinstance(await fleet.submit(PROMPT)[1].outcome(), Overloaded)


async def test_a_fleet_that_is_full_is_not_taken_for_one_that_is_missing(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.refusals = [Overloaded("full")] * 100
    await fleet.start(max_ttft_s=0.4)
    sink, began_s = fleet.submit(PROMPT)[1], time.monotonic()
    await until(lambda: not all(link.accepting for link in fleet.dispatcher.links))
    assert fleet.dispatcher.ready
    assert isinstance(await sink.outcome(), Overloaded)
    assert time.monotonic() - began_s < AVOID_S, "its limit holds also while the node is left alone"


async def test_a_paused_request_leaves_its_nodes_and_goes_on(
    fleet: Any, until: Any, output_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "MAX_FAILURES", 1)  # a pause is none
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


async def test_a_prompt_that_no_message_holds_is_the_clients_own(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_START_BYTES", 100)
    prefill = await fleet.add("prefill")
    await fleet.add("decode")
    await fleet.start()
    assert isinstance(await fleet.submit(PROMPT * 10)[1].outcome(), ContextLengthExceeded)
    assert not prefill.calls
