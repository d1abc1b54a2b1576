"""Both ends of a UCX connection, and the listener that tells messages from noise. See `ucx` for the rules."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from baton.errors import TransferError
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import CONNECT_TIMEOUT_S, HEARTBEAT_S, SECRET_BYTES, Connection, Inbox, Listener, Peer
from kv_transfer.ucx_progress import Progress

_WELCOME = b"\x01"
_BEAT = b"\x02"
_MAX_UNADMITTED = 64  # connections that have not shown a secret yet


class Binding(NamedTuple):
    """What of ucxx is used; `ucx` imports it."""

    ucx: Any  # ucxx.libucxx
    array: Any  # wraps what has the buffer protocol


class Endpoint:
    """A ucxx endpoint whose every request is awaited to its end, whatever happens to it."""

    def __init__(self, binding: Binding, endpoint: Any, progress: Progress, on_lost: Callable[[], None]) -> None:
        self._binding = binding
        self._endpoint = endpoint
        self._progress = progress
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._pending: set[asyncio.Future[None]] = set()
        self._closed = False
        endpoint.set_close_callback(self._on_error)

    def start(self, operation: str, buffer: Any, *tag: int) -> asyncio.Future[None]:
        """Start `tag_send`, `tag_recv`, `stream_send` or `stream_recv`; raises TransferError on a closed endpoint.

        The buffer is touched until the future is done.
        """
        if self._closed:
            raise TransferError("the UCX connection is closed")
        tags = [self._binding.ucx.UCXXTag(value) for value in tag]
        array = self._binding.array(buffer)
        try:
            request = getattr(self._endpoint, operation)(array, *tags)
        except (self._binding.ucx.UCXError, RuntimeError) as error:  # closed meanwhile
            raise TransferError(f"the UCX connection is closed: {error}") from error
        done = self._progress.submit(request, array)
        self._pending.add(done)
        done.add_done_callback(self._pending.discard)
        return done

    async def close(self) -> None:
        """Idempotent. Returns when no buffer of any request is touched any more."""
        if not self._closed:
            self._closed = True
            self._endpoint.remove_close_callback()
            self._endpoint.close_blocking()
            self._progress.kick(thorough=True)
        if self._pending:
            await asyncio.wait(self._pending)
        self._endpoint = None  # it holds the worker, and so every descriptor of UCX's

    def _on_error(self) -> None:
        """Called by UCX, in the middle of its progress."""
        self._progress.kick(thorough=True)
        self._loop.call_soon(self._on_lost)


class UcxConnection(Connection):
    """The sending end."""

    def __init__(
        self, binding: Binding, endpoint: Any, progress: Progress, on_close: Callable[[], None], stall_s: float
    ) -> None:
        self._endpoint = Endpoint(binding, endpoint, progress, self._start_closing)
        self._on_close = on_close
        self._stall = StallWatch(stall_s, self._start_closing)
        self._heartbeat = Heartbeat(HEARTBEAT_S, self._beat)
        self._closing: asyncio.Task[None] | None = None

    async def say_hello(self, secret: bytes) -> None:
        """Show the secret and wait for the welcome."""
        welcome = bytearray(len(_WELCOME))
        answer = self._endpoint.start("stream_recv", welcome)
        await asyncio.shield(self._endpoint.start("stream_send", secret))
        await asyncio.shield(answer)
        if welcome != _WELCOME:
            raise TransferError("the decode node refused the UCX connection")

    async def send(self, tag: int, views: Sequence[memoryview]) -> None:
        """A message of several views is gathered in a copy first: UCX tags name one contiguous buffer."""
        if self._closing:
            raise TransferError("the UCX connection to the decode node is closed")
        self._stall.started()
        try:
            await self._endpoint.start("tag_send", views[0] if len(views) == 1 else b"".join(views), tag)
        finally:
            self._stall.finished()

    async def close(self) -> None:
        """Idempotent; waits until UCX is done with every send."""
        self._start_closing()
        if self._closing:
            await asyncio.shield(self._closing)

    def _beat(self) -> None:
        if not self._closing:
            with contextlib.suppress(TransferError):
                self._endpoint.start("stream_send", _BEAT)

    def _start_closing(self) -> None:
        if self._closing is None:
            self._stall.close()
            self._heartbeat.close()
            self._closing = asyncio.get_running_loop().create_task(self._endpoint.close())
            self._on_close()


class UcxIncoming:
    """The receiving end: one peer's endpoint, and the messages that are being written from it."""

    def __init__(self, listener: "UcxListener", binding: Binding, endpoint: Any, progress: Progress) -> None:
        self.peer: Peer | None = None
        self._listener = listener
        self._endpoint = Endpoint(binding, endpoint, progress, self.start_closing)
        self._stall = StallWatch(listener.stall_s, self.start_closing)
        self._closing: asyncio.Task[None] | None = None
        self._living = asyncio.get_running_loop().create_task(self._live())

    def receive(self, tag: int, view: memoryview) -> bool:
        """Write the message that waits under this tag, and tell the inbox how it ended; False if that cannot be."""
        try:
            done = self._endpoint.start("tag_recv", view, tag)
        except TransferError:
            return False
        done.add_done_callback(lambda done: self._received(tag, done))
        return True

    async def close(self) -> None:
        """Idempotent. Returns when nothing is written any more."""
        self.start_closing()
        if self._closing:
            await asyncio.shield(self._closing)

    def start_closing(self) -> None:
        """Close without waiting for it."""
        if self._closing is None:
            self._stall.close()
            self._listener.forget(self)
            self._living.cancel()
            self._closing = asyncio.get_running_loop().create_task(self._endpoint.close())
            if self.peer:
                self._listener.inbox.disconnected(self.peer)

    async def _live(self) -> None:
        """Hear the secret, welcome the peer, then hear its heartbeats until the end."""
        secret = bytearray(SECRET_BYTES)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.shield(self._endpoint.start("stream_recv", secret))
        except (TransferError, TimeoutError):
            return self.start_closing()
        self.peer = self._listener.admit(self, bytes(secret))
        if self.peer is None:
            return self.start_closing()
        self._stall.started()  # from now on there is a heartbeat
        with contextlib.suppress(TransferError):  # it closes
            self._endpoint.start("stream_send", _WELCOME)
            while True:
                await asyncio.shield(self._endpoint.start("stream_recv", bytearray(len(_BEAT))))
                self._stall.moved()
        return None

    def _received(self, tag: int, done: asyncio.Future[None]) -> None:
        self._stall.moved()
        if done.exception() is None:
            self._listener.inbox.arrived(tag)
        else:
            self._listener.inbox.lost(tag)


class UcxListener(Listener):
    """Admits connections, and sends every waiting message to its slot or away."""

    def __init__(
        self, binding: Binding, worker: Any, progress: Progress, host: str, inbox: Inbox, stall_s: float
    ) -> None:
        self.host = host
        self.inbox = inbox
        self.stall_s = stall_s
        self._binding = binding
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._connections: dict[Peer, UcxIncoming] = {}
        self._unadmitted: set[UcxIncoming] = set()
        self._listener = binding.ucx.UCXListener.create(worker, 0, self._on_connection, deliver_endpoint=True)
        self.port = self._listener.port

    def receive(self, tag: int, num_bytes: int) -> bool:
        """Receive the message that waits under this tag; False where it is to be dropped."""
        slot = self.inbox.claim(tag, num_bytes, None)
        if slot is None:
            return False
        connection = self._connections.get(slot.peer)
        if connection is None or not connection.receive(tag, slot.view):
            self.inbox.lost(tag)
            return False
        return True

    def admit(self, connection: UcxIncoming, secret: bytes) -> Peer | None:
        """Whose connection this is. An older one of the same peer is closed."""
        self._unadmitted.discard(connection)
        peer = self.inbox.admit(secret)
        if peer is not None:
            if old := self._connections.get(peer):
                old.start_closing()
            self._connections[peer] = connection
        return peer

    def forget(self, connection: UcxIncoming) -> None:
        """A connection that closes gets no more messages."""
        self._unadmitted.discard(connection)
        if connection.peer and self._connections.get(connection.peer) is connection:
            del self._connections[connection.peer]

    async def disconnect(self, peer: Peer) -> None:
        """Returns when UCX writes nothing of that peer's any more."""
        if connection := self._connections.get(peer):
            await connection.close()

    async def close(self) -> None:
        """Accept no more, and disconnect everyone."""
        self._listener = None
        for connection in [*self._connections.values(), *self._unadmitted]:
            await connection.close()

    def _on_connection(self, endpoint: Any) -> None:
        """Called by UCX, in the middle of its progress."""
        self._loop.call_soon(self._accept, endpoint)

    def _accept(self, endpoint: Any) -> None:
        if self._listener is None or len(self._unadmitted) >= _MAX_UNADMITTED:
            endpoint.close_blocking()
        else:
            self._unadmitted.add(UcxIncoming(self, self._binding, endpoint, self._progress))
