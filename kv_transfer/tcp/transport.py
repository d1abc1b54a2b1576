"""The transport over plain TCP sockets.

A sender opens a connection with its secret, gets one byte of welcome back, then sends frames of header and message.
`sendmsg` and `recv_into` work directly on pool memory. All reads and writes are non-blocking calls in the event loop,
so closing a connection stops them at once.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

from baton.errors import TransferError
from kv_transfer.acceptor import Acceptor
from kv_transfer.tcp.incoming import TcpIncoming
from kv_transfer.tcp.outgoing import TcpConnection
from kv_transfer.transport import CONNECT_TIMEOUT_S, Inbox, Listener, Peer, Transport

_LOCAL_SEND_BUFFER_BYTES = 512 * 1024  # within one host: small, so that bytes in flight stay in the processor's cache
_UNACKNOWLEDGED_MS = 3000  # TCP_USER_TIMEOUT; thanks to heartbeats there is always something to acknowledge
_MAX_UNADMITTED = 64  # connections that have not shown a secret yet


class TcpTransport(Transport):
    """One connection for each pair of nodes."""

    name = "tcp"

    async def listen(self, host: str, inbox: Inbox) -> "TcpListener":
        """See `Transport`. Binds to the address of `host` only."""
        family, kind, _, _, address = (await _resolve(host, 0))[0]
        sock = socket.socket(family, kind)
        try:
            sock.bind(address)
            sock.listen()
        except OSError:
            sock.close()
            raise
        return TcpListener(sock, host, inbox)

    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> TcpConnection:
        """See `Transport`."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                sock = await _welcomed(host, port, secret)
        except (OSError, TimeoutError) as error:
            raise TransferError(f"no data connection to the decode node: {str(error) or 'timed out'}") from error
        return TcpConnection(sock, on_close)


class TcpListener(Listener):
    """Accepts and admits connections, and keeps one per peer: a newer one replaces the older."""

    def __init__(self, sock: socket.socket, host: str, inbox: Inbox) -> None:
        self.host = host
        self.port = sock.getsockname()[1]
        self._inbox = inbox
        self._connections: dict[Peer, TcpIncoming] = {}
        self._unadmitted: set[TcpIncoming] = set()
        self._acceptor = Acceptor(sock, self._take)

    async def disconnect(self, peer: Peer) -> None:
        """See `Listener`. Closing a connection stops its writes at once, since they happen in this event loop."""
        if connection := self._connections.get(peer):
            connection.close()

    async def close(self) -> None:
        """Accept no more, and disconnect everyone."""
        self._acceptor.close()
        for connection in [*self._connections.values(), *self._unadmitted]:
            connection.close()

    def _take(self, sock: socket.socket) -> None:
        if len(self._unadmitted) >= _MAX_UNADMITTED:
            sock.close()
            return
        _prepare(sock)
        self._unadmitted.add(TcpIncoming(sock, self._inbox, self._admitted, self._forget))

    def _admitted(self, connection: TcpIncoming, peer: Peer) -> None:
        self._unadmitted.discard(connection)
        if old := self._connections.get(peer):
            old.close()
        self._connections[peer] = connection

    def _forget(self, connection: TcpIncoming) -> None:
        self._unadmitted.discard(connection)
        if connection.peer and self._connections.get(connection.peer) is connection:
            del self._connections[connection.peer]


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset


async def _resolve(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]


async def _welcomed(host: str, port: int, secret: bytes) -> socket.socket:
    loop = asyncio.get_running_loop()
    family, kind, _, _, address = (await _resolve(host, port))[0]
    sock = socket.socket(family, kind)
    try:
        _prepare(sock)
        await loop.sock_connect(sock, address)
        if sock.getpeername()[0] == sock.getsockname()[0]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOCAL_SEND_BUFFER_BYTES)
        await loop.sock_sendall(sock, secret)
        if await loop.sock_recv(sock, 1) != TcpIncoming.WELCOME:
            raise ConnectionRefusedError("the secret was refused")
    except BaseException:
        sock.close()
        raise
    return sock
