"""A sender's side of one decode node: the gRPC channel, the data connection, and the outbox before it."""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol

import grpc

from baton.errors import LayoutMismatch, TransferError
from baton.net import rpc
from baton.v1 import transfer_pb2, transfer_pb2_grpc
from kv_transfer.choose import Transports
from kv_transfer.metrics import FALLBACKS
from kv_transfer.outbox import Outbox
from kv_transfer.transport import CONNECT_TIMEOUT_S, MAX_RETRY_S, PATIENCE_S, RETRY_S, WITHIN_HOST, AnyConnection

_log = logging.getLogger(__name__)


class Dependent(Protocol):
    """A transfer, as its peer sees it."""

    def peer_over(self, error: TransferError) -> None:
        """Nothing more can be sent to this peer."""


class _Way:
    """A connection, and the transfers that may have sent over it."""

    connection: AnyConnection

    def __init__(self) -> None:
        self.users: weakref.WeakSet[Dependent] = weakref.WeakSet()  # that are not over, once there is a better way
        self.is_left = False  # for that one, by all of them


class DecodePeer:
    """One incarnation of a decode node. When a connection to it is lost, the peer is over and a new one is needed.

    Where a better transport failed, it is tried again beside the one that was taken instead, which is closed once
    whatever began over it has ended.
    """

    def __init__(
        self,
        address: str,
        epoch: int,
        channel: grpc.aio.Channel,
        token: str,
        hello: transfer_pb2.ConnectRequest,
        transports: Transports,
        on_over: Callable[["DecodePeer"], None],
    ) -> None:
        """`channel` leads to `address`, and is closed with the peer; `token` is for calls on it."""
        self.address = address
        self.epoch = epoch
        self.outbox = Outbox()
        self.error: TransferError | None = None  # why it is over
        self.is_unreachable = False  # it could never be connected to
        self.transport = ""  # the name of the one that it is connected over
        self._transfers: weakref.WeakSet[Dependent] = weakref.WeakSet()
        self._transports = transports
        self._on_over = on_over
        self._channel = channel
        self._metadata = rpc.metadata(token)
        self._stub: transfer_pb2_grpc.TransferAsyncStub = transfer_pb2_grpc.TransferStub(self._channel)
        self._ways: list[_Way] = []  # new messages take the last
        self._leaving: set[asyncio.Task[None]] = set()
        self._better: list[str] = []  # transports than that of the last, for want of which it was taken
        self._over = asyncio.Event()
        self._commits: set[asyncio.Task[None]] = set()
        self._connecting = asyncio.get_running_loop().create_task(self._connect(hello))
        self._improving: asyncio.Task[None] | None = None

    def enter(self, transfer: Dependent) -> None:
        """It sends to this peer from now on, and hears of its end."""
        self._transfers.add(transfer)

    def leave(self, transfer: Dependent) -> None:
        """It is over, and so are all of its messages. Idempotent."""
        self._transfers.discard(transfer)
        for way in self._ways:
            way.users.discard(transfer)
        self._leave_unused()

    async def connected(self) -> None:
        """Returns when messages can be sent; raises what stands in the way."""
        await asyncio.shield(self._connecting)
        if self.error:
            raise self.error

    async def commit(self, request: transfer_pb2.CommitRequest, timeout_s: float) -> None:
        """Raises TransferError unless the decode node accepts the commit."""
        commit = asyncio.get_running_loop().create_task(self._commit(request, timeout_s))
        self._commits.add(commit)
        commit.add_done_callback(self._commits.discard)
        commit.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may be gone
        await asyncio.shield(commit)

    def end(self, error: TransferError) -> None:
        """Fail every transfer to this peer; idempotent."""
        if self.error is None:
            self.error = error
            self._over.set()
            for transfer in list(self._transfers):
                transfer.peer_over(error)
            self._on_over(self)

    async def close_connection(self) -> None:
        """Returns when nothing of any transfer to this peer is being read any more. The peer is over then."""
        self.end(TransferError("the data connection was closed"))
        await asyncio.wait([self._connecting])
        for way in self._ways:
            await way.connection.close()
        await asyncio.gather(*self._leaving)

    async def close(self) -> None:
        """Idempotent; the channel goes too, after the commits that are under way: they may yet be accepted."""
        await self.close_connection()
        if self._improving:
            await asyncio.wait([self._improving])
        if self._commits:
            await asyncio.wait(self._commits)
        await self._channel.close()

    async def _commit(self, request: transfer_pb2.CommitRequest, timeout_s: float) -> None:
        try:
            await self._stub.Commit(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise TransferError(f"the decode node did not accept the commit: {_reason(error)}") from error

    async def _connect(self, hello: transfer_pb2.ConnectRequest) -> None:
        offered = list(self._transports.names)
        try:
            way = await self._best_way(hello, offered)
        except grpc.aio.AioRpcError as error:
            mismatch = error.code() is grpc.StatusCode.FAILED_PRECONDITION
            self._give_up((LayoutMismatch if mismatch else TransferError)(_reason(error)))
        except TransferError as error:
            self._give_up(error)
        else:
            await self._use(way)
            if self._better:
                self._improving = asyncio.get_running_loop().create_task(self._improve(hello))

    async def _use(self, way: _Way) -> None:
        if self._ways:
            self._ways[-1].users.update(self._transfers)
        self._ways.append(way)
        if self.error:
            await way.connection.close()
        self.outbox.start(way.connection)
        self._leave_unused()

    def _leave_unused(self) -> None:
        for way in self._ways[:-1]:
            if not way.users:
                self._ways.remove(way)
                way.is_left = True
                leaving = asyncio.get_running_loop().create_task(way.connection.close())
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def _improve(self, hello: transfer_pb2.ConnectRequest) -> None:
        """Try the better transports again, after twice the last pause: some reasons pass."""
        pause_s = RETRY_S
        while self._better and not await self._is_over_within(pause_s):
            pause_s = min(2 * pause_s, MAX_RETRY_S)
            try:
                await self._use(await self._best_way(hello, list(self._better)))
            except (grpc.aio.AioRpcError, TransferError) as error:
                reason = _reason(error) if isinstance(error, grpc.aio.AioRpcError) else error
                _log.info("KV blocks to %s still travel over %s: %s", self.address, self.transport, reason)

    async def _is_over_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()
        return self._over.is_set()

    def _give_up(self, error: TransferError) -> None:
        self.is_unreachable = True
        self.end(error)

    async def _best_way(self, hello: transfer_pb2.ConnectRequest, names: list[str]) -> _Way:
        """Over the best of these transports that carries between the two nodes; the others are said to have failed."""
        offered, tried = list(names), []
        while True:
            hello.transports[:] = offered
            reply = await self._stub.Connect(hello, timeout=CONNECT_TIMEOUT_S, metadata=self._metadata)
            if reply.epoch != self.epoch:
                raise TransferError("the decode node has restarted since it gave the grant")
            if reply.transport not in offered:
                raise TransferError("the decode node chose a transport that it was not offered")
            offered.remove(reply.transport)
            tried.append(reply.transport)
            try:
                way = await self._open_way(reply, PATIENCE_S if offered else None)
            except TransferError as error:
                if not offered:
                    raise
                FALLBACKS.labels(reply.transport).inc()
                _log.warning("KV blocks to %s do not travel over %s: %s", self.address, reply.transport, error)
            else:
                self.transport = reply.transport
                self._better = [
                    name for name in names[: names.index(reply.transport)] if name not in WITHIN_HOST or name in tried
                ]
                return way

    async def _open_way(self, reply: transfer_pb2.ConnectReply, patience_s: float | None) -> _Way:
        """As the decode node has said. `patience_s`: for the start of what the transport needs on this node."""
        way, transport = _Way(), self._transports.get(reply.transport)
        try:
            async with asyncio.timeout(patience_s):
                await transport.ready()
        except TimeoutError:
            raise TransferError("it takes long to start") from None
        way.connection = await transport.connect(reply.host, reply.port, reply.secret, partial(self._lost, way))
        return way

    def _lost(self, way: _Way) -> None:
        if not way.is_left:
            self.end(TransferError("the data connection to the decode node was lost"))


def _reason(error: grpc.aio.AioRpcError) -> str:
    return error.details() or error.code().name
