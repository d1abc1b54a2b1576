"""Errors are the same after crossing gRPC."""

from typing import Any

import grpc
import pytest
from grpc import aio

from baton import errors
from baton.net import rpc, rpc_errors
from baton.v1 import trace_pb2, trace_pb2_grpc

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_late")]

CASES = [
    (errors.InvalidRequest("bad", param="top_p"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.ContextLengthExceeded("long"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Overloaded("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.NodeUnavailable("draining"), grpc.StatusCode.UNAVAILABLE),
    (errors.TransferError("lost"), grpc.StatusCode.ABORTED),
    (errors.LayoutMismatch("differs"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Cancelled("gone"), grpc.StatusCode.CANCELLED),
    (errors.NumericalError("nan"), grpc.StatusCode.INTERNAL),
]


class Failing(trace_pb2_grpc.TraceServicer):
    error = errors.BatonError("unset")

    async def Find(self, request: Any, context: Any) -> Any:  # noqa: N802
        await rpc_errors.abort(context, self.error)


async def test_errors_survive_a_grpc_call() -> None:
    server, servicer = rpc.server(), Failing()
    trace_pb2_grpc.add_TraceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        for error, status in CASES:
            servicer.error = error
            with pytest.raises(aio.AioRpcError) as raised:
                await trace_pb2_grpc.TraceStub(channel).Find(trace_pb2.TraceRequest())
            assert raised.value.code() is status
            back = rpc_errors.error_of(raised.value)
            assert (back.message, back.param) == (error.message, error.param)
            assert type(back) is type(error)
    await server.stop(0)


async def test_a_peer_that_is_gone_is_unavailable() -> None:
    async with rpc.channel("127.0.0.1:1") as channel:
        with pytest.raises(aio.AioRpcError) as raised:
            await trace_pb2_grpc.TraceStub(channel).Find(trace_pb2.TraceRequest())
    assert isinstance(rpc_errors.error_of(raised.value), errors.NodeUnavailable)
