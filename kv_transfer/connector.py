"""Opens a sender's data connection to a decode node, over the best transport that works between the two nodes."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from baton.errors import LayoutMismatch, TransferError
from baton.v1 import transfer_pb2, transfer_pb2_grpc
from kv_transfer.choose import Transports
from kv_transfer.metrics import FALLBACKS
from kv_transfer.transport import CONNECT_TIMEOUT_S, PATIENCE_S, WITHIN_HOST, AnyConnection

_log = logging.getLogger(__name__)


class Connected(NamedTuple):
    """A connection, the name of its transport, and the preferred transports that failed but may work later."""

    connection: AnyConnection
    transport: str
    better: list[str]


class Connector:
    """Opens connections to one incarnation of a decode node."""

    def __init__(
        self, address: str, epoch: int, stub: "transfer_pb2_grpc.TransferAsyncStub", metadata: grpc.aio.Metadata,
        hello: transfer_pb2.ConnectRequest, transports: Transports,
    ) -> None:  # fmt: skip
        """`stub` and `metadata` are for calls to the decode node; `hello` describes this node, all but its transports.

        Its field `transports` is filled in at each attempt.
        """
        self._address, self._epoch = address, epoch
        self._stub, self._metadata = stub, metadata
        self._hello, self._transports = hello, transports

    async def connect(self, names: Sequence[str], on_close: Callable[[], None]) -> Connected:
        """Connect over the first of these transports that works. Each one that fails before it is logged and counted.

        `on_close`: as for `Transport.connect`. Raises LayoutMismatch if the two nodes are incompatible, TransferError
        if no transport works.
        """
        offered, tried = list(names), []
        while True:
            reply = await self._ask(offered)
            offered.remove(reply.transport)
            tried.append(reply.transport)
            try:
                connection = await self._open(reply, PATIENCE_S if offered else None, on_close)
            except TransferError as error:
                if not offered:
                    raise
                FALLBACKS.labels(reply.transport).inc()
                _log.warning("KV blocks to %s do not travel over %s: %s", self._address, reply.transport, error)
            else:
                before = names[: names.index(reply.transport)]
                # a within-host transport that was not even tried is ruled out: the nodes are on different hosts
                better = [name for name in before if name not in WITHIN_HOST or name in tried]
                return Connected(connection, reply.transport, better)

    async def _ask(self, offered: Sequence[str]) -> transfer_pb2.ConnectReply:
        """Ask the decode node which of these transports it chooses, and where it listens for it."""
        self._hello.transports[:] = offered
        try:
            reply = await self._stub.Connect(self._hello, timeout=CONNECT_TIMEOUT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            mismatch = error.code() is grpc.StatusCode.FAILED_PRECONDITION
            raise (LayoutMismatch if mismatch else TransferError)(reason(error)) from error
        if reply.epoch != self._epoch:
            raise TransferError("the decode node has restarted since it gave the grant")
        if reply.transport not in offered:
            raise TransferError("the decode node chose a transport that it was not offered")
        return reply

    async def _open(
        self, reply: transfer_pb2.ConnectReply, patience_s: float | None, on_close: Callable[[], None]
    ) -> AnyConnection:
        """Open the connection that `reply` describes. `patience_s` bounds the start of the transport on this node."""
        transport = self._transports.get(reply.transport)
        try:
            async with asyncio.timeout(patience_s):
                await transport.ready()
        except TimeoutError:
            raise TransferError("the transport is still starting on this node") from None
        return await transport.connect(reply.host, reply.port, reply.secret, on_close)


def reason(error: grpc.aio.AioRpcError) -> str:
    """Return the decode node's error message or, if it sent none, the name of the status code."""
    return error.details() or error.code().name
