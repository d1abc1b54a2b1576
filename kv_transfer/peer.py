"""A sender's side of one decode node: what is under way to it, commits, and its end. `connector` opens connections."""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import grpc

from baton.errors import TransferError
from baton.net import rpc
from baton.v1 import transfer_pb2, transfer_pb2_grpc
from kv_transfer.choose import Transports
from kv_transfer.connector import Connector, reason
from kv_transfer.outbox import Outbox
from kv_transfer.transport import MAX_RETRY_S, RETRY_S, AnyConnection

_log = logging.getLogger(__name__)


class Dependent(Protocol):
    """A transfer, as its peer sees it."""

    def peer_over(self, error: TransferError) -> None:
        """Nothing more can be sent to this peer."""


class _Way:
    """A connection, and the transfers that may have sent over it."""

    def __init__(self, connection: AnyConnection, left: asyncio.Event) -> None:
        self.connection = connection
        self.users: weakref.WeakSet[Dependent] = weakref.WeakSet()  # that are not over, once there is a better way
        self.left = left  # for that one, by all of them


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
        self._on_over = on_over
        self._channel = channel
        self._metadata = rpc.metadata(token)
        self._stub: transfer_pb2_grpc.TransferAsyncStub = transfer_pb2_grpc.TransferStub(self._channel)
        self._connector = Connector(address, epoch, self._stub, self._metadata, hello, transports)
        self._ways: list[_Way] = []  # new messages take the last
        self._leaving: set[asyncio.Task[None]] = set()
        self._better: list[str] = []  # transports than that of the last, for want of which it was taken
        self._over = asyncio.Event()
        self._commits: set[asyncio.Task[None]] = set()
        self._connecting = asyncio.get_running_loop().create_task(self._connect(transports.names))
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
            raise TransferError(f"the decode node did not accept the commit: {reason(error)}") from error

    async def _connect(self, names: Sequence[str]) -> None:
        try:
            await self._take_best(names)
        except TransferError as error:
            self.is_unreachable = True
            self.end(error)
        else:
            if self._better:
                self._improving = asyncio.get_running_loop().create_task(self._improve())

    async def _take_best(self, names: Sequence[str]) -> None:
        """Send over the best of these transports from now on. Raises as the connector does."""
        left = asyncio.Event()
        connection, self.transport, self._better = await self._connector.connect(names, partial(self._lost, left))
        if self._ways:
            self._ways[-1].users.update(self._transfers)
        self._ways.append(_Way(connection, left))
        if self.error:
            await connection.close()
        self.outbox.start(connection)
        self._leave_unused()

    def _leave_unused(self) -> None:
        for way in self._ways[:-1]:
            if not way.users:
                self._ways.remove(way)
                way.left.set()
                leaving = asyncio.get_running_loop().create_task(way.connection.close())
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def _improve(self) -> None:
        """Try the better transports again, after twice the last pause: some reasons pass."""
        pause_s = RETRY_S
        while self._better and not await self._is_over_within(pause_s):
            pause_s = min(2 * pause_s, MAX_RETRY_S)
            try:
                await self._take_best(self._better)
            except TransferError as error:
                _log.info("KV blocks to %s still travel over %s: %s", self.address, self.transport, error)

    async def _is_over_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()
        return self._over.is_set()

    def _lost(self, left: asyncio.Event) -> None:
        if not left.is_set():
            self.end(TransferError("the data connection to the decode node was lost"))
