"""Node.Attach over real gRPC."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio

from baton import rpc
from baton.node_service import NodeService
from baton.sessions import Sessions
from baton.v1 import node_pb2, node_pb2_grpc, types_pb2

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sessions() -> AsyncIterator[Sessions]:
    sessions = Sessions(7, lambda: types_pb2.Load(num_steps=3))
    beats = asyncio.create_task(sessions.run())
    yield sessions
    beats.cancel()


@pytest.fixture
async def node(sessions: Sessions) -> AsyncIterator["node_pb2_grpc.NodeAsyncStub"]:
    server = rpc.server()
    node_pb2_grpc.add_NodeServicer_to_server(NodeService(sessions), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        yield node_pb2_grpc.NodeStub(channel)
    await server.stop(0)


def attach(node: "node_pb2_grpc.NodeAsyncStub", router_id: str = "router") -> "aio.UnaryStreamCall":
    return node.Attach(node_pb2.AttachRequest(router_id=router_id))


async def test_the_first_message_and_then_two_a_second_carry_the_load(node: "node_pb2_grpc.NodeAsyncStub") -> None:
    stream = attach(node)
    batches = [await asyncio.wait_for(stream.read(), 2) for _ in range(3)]
    assert [batch.sequence for batch in batches] == [0, 1, 2]
    assert all(batch.epoch == 7 and batch.load.num_steps == 3 for batch in batches)


async def test_an_older_stream_ends_when_its_router_attaches_anew(node: "node_pb2_grpc.NodeAsyncStub") -> None:
    old = attach(node)
    await old.read()
    new = attach(node)
    assert (await new.read()).sequence == 0
    with contextlib.suppress(aio.AioRpcError):
        while await old.read() is not aio.EOF:
            pass
    assert await old.code() is grpc.StatusCode.ABORTED
    assert (await new.read()).sequence == 1


async def test_shutting_sends_what_is_left_and_ends_the_stream(
    node: "node_pb2_grpc.NodeAsyncStub", sessions: Sessions
) -> None:
    stream = attach(node)
    await stream.read()
    sessions.session("router").add_finished(types_pb2.Finished(key=5))
    sessions.shut()
    rest = []
    while (batch := await asyncio.wait_for(stream.read(), 2)) is not aio.EOF:
        rest.append(batch)
    assert [finished.key for batch in rest for finished in batch.finished] == [5]
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_router_that_stops_reading_is_detached(
    node: "node_pb2_grpc.NodeAsyncStub", sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.node_service._WRITE_TIMEOUT_S", 0.2)
    stream = attach(node)
    await stream.read()
    session = sessions.session("router")
    filler = types_pb2.Finished(error_message="x" * 1_000_000)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while session.stream is not None:
                session.add_finished(filler)
                session.wake.set()
                await asyncio.sleep(0.005)
    assert session.stream is None
