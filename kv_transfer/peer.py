"""One decode node as a sender sees it: its connections, its outbox, its commits. `connector` opens connections."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import grpc

from baton.errors import TransferError
from baton.net import rpc
from baton.process import tasks
from baton.v1 import transfer_pb2, transfer_pb2_grpc
from kv_transfer.choose import Transports
from kv_transfer.connector import Connector, reason
from kv_transfer.outbox import Outbox
from kv_transfer.transport import MAX_RETRY_S, RETRY_S, AnyConnection

_log = logging.getLogger(__name__)


class Dependent(Protocol):
    """A transfer, as seen by its peer."""

    def peer_ended(self, error: TransferError) -> None:
        """Called when nothing more can be sent to this peer."""


class _Route:
    """A connection, and the transfers that may have sent over it."""

    def __init__(self, connection: AnyConnection, retired: asyncio.Event) -> None:
        self.connection = connection
        self.users: weakref.WeakSet[Dependent] = weakref.WeakSet()  # unfinished ones; filled when a better route opens
        self.retired = retired  # set once the last user has left: its closing is then no loss


class DecodePeer:
    """One incarnation of a decode node. When its connection is lost the peer has ended, and a new one is needed.

    If a better transport failed at first, it is retried while the fallback carries the messages. Once it connects, new
    messages use it, and the fallback is closed when the transfers that may have used it have ended.
    """

    def __init__(
        self,
        address: str,
        epoch: int,
        channel: grpc.aio.Channel,
        token: str,
        hello: transfer_pb2.ConnectRequest,
        transports: Transports,
        on_end: Callable[["DecodePeer"], None],
    ) -> None:
        """`channel` is a gRPC channel to `address`, which the peer closes; `token` authenticates calls on it."""
        self.address = address
        self.epoch = epoch
        self.outbox = Outbox()
        self.error: TransferError | None = None  # why the peer has ended
        self.is_unreachable = False  # no connection could be opened
        self.transport = ""  # name of the transport in use
        self._transfers: weakref.WeakSet[Dependent] = weakref.WeakSet()
        self._on_end = on_end
        self._channel = channel
        self._metadata = rpc.metadata(token)
        self._stub: transfer_pb2_grpc.TransferAsyncStub = transfer_pb2_grpc.TransferStub(self._channel)
        self._connector = Connector(address, epoch, self._stub, self._metadata, hello, transports)
        self._routes: list[_Route] = []  # new messages use the last one
        self._retiring: set[asyncio.Task[None]] = set()
        self._better: list[str] = []  # transports to retry: preferred to that of the last route
        self._ended = asyncio.Event()
        self._commits: set[asyncio.Task[None]] = set()
        self._connecting = asyncio.get_running_loop().create_task(self._connect(transports.names))
        self._improving: asyncio.Task[None] | None = None

    def enter(self, transfer: Dependent) -> None:
        """Register a transfer that sends to this peer; its `peer_ended` is called if the peer ends."""
        self._transfers.add(transfer)

    def leave(self, transfer: Dependent) -> None:
        """Remove a transfer, none of whose messages is in flight any more. Idempotent."""
        self._transfers.discard(transfer)
        for route in self._routes:
            route.users.discard(transfer)
        self._retire_unused()

    async def connected(self) -> None:
        """Wait until messages can be sent. Raises TransferError if the peer has ended."""
        await asyncio.shield(self._connecting)
        if self.error:
            raise self.error

    async def commit(self, request: transfer_pb2.CommitRequest, timeout_s: float) -> None:
        """Send a commit; raises TransferError unless the decode node accepts it."""
        commit = asyncio.get_running_loop().create_task(self._commit(request, timeout_s))
        self._commits.add(commit)
        commit.add_done_callback(self._commits.discard)
        commit.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may be gone
        await asyncio.shield(commit)

    def end(self, error: TransferError) -> None:
        """End the peer: fail every transfer to it. Idempotent."""
        if self.error is None:
            self.error = error
            self._ended.set()
            for transfer in list(self._transfers):
                transfer.peer_ended(error)
            self._on_end(self)

    async def close_connection(self) -> None:
        """End the peer and close its data connections. Returns when no transfer's blocks are read any more."""
        self.end(TransferError("the data connection was closed"))
        await asyncio.wait([self._connecting])
        for route in list(self._routes):  # routes are retired meanwhile
            await route.connection.close()
        await asyncio.gather(*self._retiring)

    async def close(self) -> None:
        """End the peer and close its channel, after waiting for pending commits, which may yet succeed. Idempotent."""
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
        """Connect over the best of these transports, and send over it from now on. Raises as `Connector.connect`."""
        retired = asyncio.Event()
        connection, self.transport, self._better = await self._connector.connect(names, partial(self._lost, retired))
        if self._routes:
            self._routes[-1].users.update(self._transfers)
        self._routes.append(_Route(connection, retired))
        if self.error:
            await connection.close()
        self.outbox.start(connection)
        self._retire_unused()

    def _retire_unused(self) -> None:
        for route in self._routes[:-1]:
            if not route.users:
                self._routes.remove(route)
                route.retired.set()
                closing = asyncio.get_running_loop().create_task(route.connection.close())
                self._retiring.add(closing)
                closing.add_done_callback(self._retiring.discard)

    async def _improve(self) -> None:
        """Retry the better transports with exponential backoff: what made them fail may pass."""
        pause_s = RETRY_S
        while self._better:
            await tasks.wait(self._ended, pause_s)
            if self._ended.is_set():
                return
            pause_s = min(2 * pause_s, MAX_RETRY_S)
            try:
                await self._take_best(self._better)
            except TransferError as error:
                _log.info("KV blocks to %s still travel over %s: %s", self.address, self.transport, error)

    def _lost(self, retired: asyncio.Event) -> None:
        if not retired.is_set():
            self.end(TransferError("the data connection to the decode node was lost"))
