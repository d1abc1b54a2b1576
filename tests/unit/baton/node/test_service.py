"""Node.Attach over real gRPC, in both directions."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from baton.net import rpc
from baton.node.service import NodeService
from baton.node.sessions import Sessions
from baton.request import Generation
from baton.v1 import node_pb2, node_pb2_grpc, transfer_pb2, types_pb2
from tests.unit.baton.node.router_stream import EPOCH, HoldingLegs, Stream, start
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sessions() -> AsyncIterator[Sessions]:
    sessions = Sessions(EPOCH, lambda: types_pb2.Load(num_steps=3))
    beats = asyncio.create_task(sessions.run())
    yield sessions
    beats.cancel()


@pytest.fixture
async def legs(sessions: Sessions) -> HoldingLegs:
    return HoldingLegs(sessions)


@pytest.fixture
async def attach(sessions: Sessions, legs: HoldingLegs) -> AsyncIterator[Callable[..., Stream]]:
    server = rpc.server()
    node_pb2_grpc.add_NodeServicer_to_server(NodeService(sessions, legs), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        yield lambda router_id="router": Stream(node_pb2_grpc.NodeStub(channel), router_id)
    await server.stop(0)


async def test_the_first_message_and_then_four_a_second_carry_the_load(attach: Callable[..., Stream]) -> None:
    stream = attach()
    batches = [await stream.open(), await stream.read(), await stream.read()]
    assert [batch.sequence for batch in batches] == [0, 1, 2]
    assert all(batch.epoch == EPOCH and batch.load.num_steps == 3 for batch in batches)


async def test_the_parts_of_one_message_are_handled_in_order(attach: Callable[..., Stream], legs: HoldingLegs) -> None:
    stream = attach()
    await stream.open()
    grants = [node_pb2.Granted(key=key, attempt=1, grant=transfer_pb2.Grant(grant_id=40 + key)) for key in (1, 2, 3)]
    await stream.say(starts=[start(1), start(2, 1), start(3, 2), start(4)], grants=grants)
    await until(lambda: bool(legs.begun))
    assert legs.keys == [(1, 0), (2, 1), (3, 2), (4, 0)]
    assert legs.grants == [(2, 1, 42)]  # those of other attempts are nobody's
    assert [leg.generation.router_id for leg in legs.begun] == ["router"] * 4
    await stream.say(cancelled_keys=[1, 3, 9], cancelled_attempts=[0, 1, 0], starts=[start(9), start(9, 1)])
    await until(lambda: len(legs.begun) == 5)
    assert [leg.is_cancelled for leg in legs.begun] == [True, False, False, False, False]
    assert [(generation.key, generation.attempt) for generation in legs.stale] == [(9, 0)]


async def test_a_repeated_message_is_handled_once(attach: Callable[..., Stream], legs: HoldingLegs) -> None:
    stream = attach()
    await stream.open()
    for sequence in (1, 1, 2, 1, 2, 3):
        await stream.say(sequence=sequence, starts=[start(sequence)])
    await until(lambda: len(legs.begun) == 3)
    assert legs.keys == [(1, 0), (2, 0), (3, 0)]
    assert not legs.stale
    async with asyncio.timeout(5):
        while (await stream.read()).num_heard != 4:  # its first one too
            pass


@pytest.mark.parametrize(
    ("fields", "code", "details"),
    [
        ({"sequence": 2, "starts": [start(1)]}, grpc.StatusCode.UNAVAILABLE, "message 1 of the stream is missing"),
        ({"epoch": 6}, grpc.StatusCode.UNAVAILABLE, "the message is for another incarnation of this node"),
        (
            {"cancelled_keys": [1]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "cancelled_keys and cancelled_attempts differ in length",
        ),
    ],
)
async def test_an_invalid_message_ends_the_stream(
    attach: Callable[..., Stream], legs: HoldingLegs, fields: Any, code: grpc.StatusCode, details: str
) -> None:
    stream = attach()
    await stream.open()
    await stream.say(**fields)
    assert await stream.end() == (code, details)
    assert not legs.begun


@pytest.mark.parametrize("hello", [{}, {"router_id": "router", "sequence": 1}, {"router_id": "router", "epoch": 6}])
async def test_a_stream_with_an_invalid_first_message_is_refused(attach: Callable[..., Stream], hello: Any) -> None:
    stream = attach()
    await stream.say(**hello)
    code, _ = await stream.end()
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE)


async def test_an_invalid_start_fails_only_its_own_request(attach: Callable[..., Stream], legs: HoldingLegs) -> None:
    stream = attach()
    await stream.open()
    bad = start(1, attempt=2)
    bad.generation.token_ids += b"\0"
    await stream.say(starts=[bad, start(2)])
    failed: list[node_pb2.Failed] = []
    while not failed:
        failed += (await stream.read()).failed
    assert [(word.key, word.attempt, word.code, word.param) for word in failed] == [(1, 2, "invalid_value", "prompt")]
    assert legs.keys == [(2, 0)]


async def test_an_older_stream_ends_when_its_router_attaches_again(
    attach: Callable[..., Stream], legs: HoldingLegs
) -> None:
    old, new = attach(), attach()
    await old.open()
    await old.say(starts=[start(1)])
    await until(lambda: bool(legs.begun))
    assert (await new.open()).sequence == 0
    assert (await old.end())[0] is grpc.StatusCode.ABORTED
    assert legs.begun[0].is_cancelled  # a new stream begins with nothing
    await new.say(starts=[start(2)])
    await until(lambda: len(legs.begun) == 2)
    assert (await new.read()).sequence == 1
    assert not legs.begun[1].is_cancelled


async def test_messages_on_an_older_stream_are_dropped(sessions: Sessions, legs: HoldingLegs) -> None:
    session, older = sessions.attach("router")
    newer = sessions.attach("router")[1]

    async def messages() -> AsyncIterator[node_pb2.RouterBatch]:
        yield node_pb2.RouterBatch(epoch=EPOCH, sequence=1, starts=[start(1)])

    await NodeService(sessions, legs)._read(session, older, messages())
    assert not legs.begun
    assert session.stream is newer


async def test_a_hanging_write_on_an_older_stream_does_not_delay_the_newer_one(
    sessions: Sessions, legs: HoldingLegs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.node.service._WRITE_TIMEOUT_S", 0.05)
    writing = asyncio.Event()

    class Context:
        async def write(self, batch: node_pb2.StepBatch) -> None:
            writing.set()
            await asyncio.Event().wait()

        async def abort(self, code: grpc.StatusCode, details: str) -> None:
            raise aio.AbortError(details)

    async def messages() -> AsyncIterator[node_pb2.RouterBatch]:
        yield node_pb2.RouterBatch(router_id="router", epoch=EPOCH)
        await asyncio.Event().wait()

    context: Any = Context()
    older = asyncio.create_task(NodeService(sessions, legs).Attach(messages(), context))
    await writing.wait()
    session, newer = sessions.attach("router")
    legs.begin(Generation.from_proto(start(1).generation, "router"), "", 0)
    async with asyncio.timeout(5):
        with pytest.raises(aio.AbortError, match="does not read"):
            await older
    assert session.stream is newer
    assert not legs.begun[0].is_cancelled


async def test_shutting_sends_pending_messages_and_ends_the_stream(
    attach: Callable[..., Stream], sessions: Sessions
) -> None:
    stream = attach()
    await stream.open()
    sessions.session("router").add_finished(types_pb2.Finished(key=5))
    sessions.shut()
    rest = []
    while (batch := await stream.read()) is not aio.EOF:
        rest.append(batch)
    assert [finished.key for batch in rest for finished in batch.finished] == [5]
    assert await stream.call.code() is grpc.StatusCode.OK


async def test_requests_are_cancelled_when_the_stream_of_their_router_ends(
    attach: Callable[..., Stream], sessions: Sessions, legs: HoldingLegs
) -> None:
    stream = attach()
    await stream.open()
    await stream.say(starts=[start(1)])
    await until(lambda: bool(legs.begun))
    stream.call.cancel()
    await until(lambda: legs.begun[0].is_cancelled)
    assert sessions.session("router").stream is None


async def test_a_router_that_stops_reading_is_detached(
    attach: Callable[..., Stream], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.node.service._WRITE_TIMEOUT_S", 0.2)
    stream = attach()
    await stream.open()
    session = sessions.session("router")
    filler = types_pb2.Finished(error_message="x" * 1_000_000)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while session.stream is not None:
                session.add_finished(filler)
                await asyncio.sleep(0.005)
    assert session.stream is None
