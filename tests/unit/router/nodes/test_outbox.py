"""The orders for a node: how they are packed into messages, and what happens if the node does not read."""

import asyncio
from typing import Any

import pytest

from baton.errors import ContextLengthExceeded
from baton.net.registry import NodeRecord
from baton.v1 import node_pb2, transfer_pb2, types_pb2
from router.nodes import outbox
from router.nodes.outbox import Outbox

pytestmark = pytest.mark.anyio


class Call:
    """A call that takes messages while it is open, like a node that reads."""

    def __init__(self) -> None:
        self.written: list[node_pb2.RouterBatch] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def write(self, message: bytes) -> None:
        await self.reads.wait()
        self.written.append(node_pb2.RouterBatch.FromString(message))


@pytest.fixture
async def call() -> Call:
    return Call()


@pytest.fixture
async def box(call: Call) -> Any:
    """An outbox whose stream is open."""
    box = Outbox("router", 7)
    writing = asyncio.create_task(box.write_to(call))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    yield box
    writing.cancel()


def start(key: int, num_bytes: int = 100) -> node_pb2.RouterBatch:
    generation = types_pb2.Generation(key=key, token_ids=bytes(num_bytes))
    return node_pb2.RouterBatch(starts=[node_pb2.Start(generation=generation)])


def keys(batch: node_pb2.RouterBatch) -> list[int]:
    return [each.generation.key for each in batch.starts]


async def test_the_first_message_names_the_router_and_orders_of_a_turn_share_one_message(
    box: Outbox, call: Call
) -> None:
    box.start(start(1))
    box.cancel(9, 3)
    box.grant(node_pb2.Granted(key=5, attempt=1, grant=transfer_pb2.Grant(grant_id=4)))
    box.start(start(2), NodeRecord(node_id="p", role="prefill", epoch=8, state="ready", address=""))
    await box.drain(1.0)
    box.cancel(2, 0)
    await box.drain(1.0)
    hello, first, second = call.written
    assert (hello.router_id, hello.epoch, hello.sequence) == ("router", 7, 0)
    assert [(s.generation.key, s.prefill_node_id, s.prefill_epoch) for s in first.starts] == [(1, "", 0), (2, "p", 8)]
    assert (list(first.cancelled_keys), list(first.cancelled_attempts)) == ([9], [3])
    assert [word.grant.grant_id for word in first.grants] == [4]
    assert [(batch.epoch, batch.sequence) for batch in (first, second)] == [(7, 1), (7, 2)]
    assert list(second.cancelled_keys) == [2]


async def test_an_order_goes_to_both_nodes_and_names_the_sender_to_the_second_only(box: Outbox, call: Call) -> None:
    order, prefill = start(1), NodeRecord(node_id="p", role="prefill", epoch=8, state="ready", address="")
    box.start(order)
    box.start(order, prefill)
    await box.drain(1.0)
    [_, message] = call.written
    assert [(s.prefill_node_id, s.prefill_epoch) for s in message.starts] == [("", 0), ("p", 8)]
    assert message.starts[0].generation == message.starts[1].generation == order.starts[0].generation


async def test_what_comes_up_while_a_message_is_written_gathers(box: Outbox, call: Call) -> None:
    call.reads.clear()
    for key in range(3):
        box.start(start(key))
        await asyncio.sleep(0.001)
    call.reads.set()
    await box.drain(1.0)
    assert [keys(batch) for batch in call.written[1:]] == [[0], [1, 2]]


async def test_long_prompts_of_one_turn_are_split(box: Outbox, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BATCH_BYTES", 1000)
    for key, num_bytes in enumerate((400, 500, 200, 3000, 900)):
        box.start(start(key, num_bytes))
    box.cancel(1, 0)
    await box.drain(1.0)
    assert [keys(batch) for batch in call.written[1:]] == [[0, 1], [2], [3], [4]]
    assert [batch.sequence for batch in call.written] == [0, 1, 2, 3, 4]
    assert list(call.written[-1].cancelled_keys) == [1]


async def test_a_prompt_that_no_message_holds_is_refused(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_START_BYTES", start(1, 400).ByteSize())
    box.start(start(1, 400))
    with pytest.raises(ContextLengthExceeded):
        box.start(start(2, 401))
    assert [len(batch.starts) for batch in box._batches] == [1]


async def test_a_node_that_does_not_read_counts_as_full_and_then_as_stuck(
    box: Outbox, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_BYTES", 1000)
    await box.drain(1.0)
    box.heard(1)
    call.reads.clear()
    box.start(start(1, 900))
    await asyncio.sleep(0.001)  # it is being written, and counts until it is
    assert (box.is_full, box.is_stuck) == (False, False)
    box.start(start(2, 100))
    assert (box.is_full, box.is_stuck) == (True, False)
    monkeypatch.setattr(outbox, "STUCK_S", 0.0)
    assert box.is_stuck
    call.reads.set()
    await box.drain(1.0)
    assert (box.is_full, box.is_stuck) == (False, True)  # written, and not heard of yet
    box.heard(2)
    assert box.is_stuck
    box.heard(3)
    assert not box.is_stuck


async def test_with_its_stream_ends_what_was_not_said(call: Call) -> None:
    box = Outbox("router", 7)
    for key in (1, 2):
        writing = asyncio.create_task(box.write_to(call))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        call.reads.clear()
        box.start(start(key))
        await asyncio.sleep(0)
        if key == 1:
            writing.cancel()
            box.close()
        call.reads.set()
        await box.drain(1.0)
    writing.cancel()
    assert [(batch.router_id, keys(batch)) for batch in call.written] == [("router", []), ("router", []), ("", [2])]


async def test_a_stream_that_ended_full_and_stuck_is_forgotten(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BYTES", 100)
    box = Outbox("router", 7)
    writing = asyncio.create_task(box.write_to(call))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    call.reads.clear()
    for key in (1, 2):
        box.start(start(key))
        await asyncio.sleep(0.001)
    monkeypatch.setattr(outbox, "STUCK_S", 0.0)
    assert (box.is_full, box.is_stuck) == (True, True)
    writing.cancel()
    await asyncio.wait([writing])
    box.close()
    assert (box.is_full, box.is_stuck, box._filled.is_set()) == (False, False, False)
    await asyncio.wait_for(box.drain(60.0), 1)


async def test_a_drain_has_an_end(box: Outbox, call: Call) -> None:
    call.reads.clear()
    box.start(start(1))
    await box.drain(0.01)
    assert len(call.written) == 1


async def test_what_comes_up_in_the_next_turn_goes_along(box: Outbox, call: Call) -> None:
    await box.drain(1.0)
    box.start(start(1))
    await asyncio.sleep(0)  # the writer has been woken
    box.start(start(2))
    await box.drain(1.0)
    assert [keys(batch) for batch in call.written[1:]] == [[1, 2]]
