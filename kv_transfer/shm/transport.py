"""The transport within one host: the receiver fetches messages from the sender's memory, in a single copy.

Both pools are in host memory (`kv_transfer.cuda` is for those on GPUs) and stay private memory in huge pages: nothing
is mapped into the other process. A Unix-domain socket carries the announcements of messages; its end reveals a peer
that died, its heartbeats one that froze. The socket is abstract, so it vanishes with its owner. Every process on the
host can find it, so the secret guards it.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from baton.errors import TransferError
from baton.process.threads import started_pool
from kv_transfer.acceptor import Acceptor
from kv_transfer.shm import process_memory
from kv_transfer.shm.frames import MAX_PACKET_BYTES, WELCOME, Hello, reason_of
from kv_transfer.shm.host_memory import NONCE_BYTES, HostMemory, proof
from kv_transfer.shm.incoming import SenderMemory, ShmIncoming
from kv_transfer.shm.outgoing import ShmConnection
from kv_transfer.shm.process_memory import why_unavailable
from kv_transfer.transport import CONNECT_TIMEOUT_S, Inbox, Listener, Peer, Transport

_MAX_UNADMITTED = 64  # connections that have not shown a secret yet
_MAX_COPIERS = 4
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """Return the id of the running kernel, or "" if unknown. Processes with different ids share no memory."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""


class ShmTransport(Transport):
    """The transport. Raises TransferError if the system lacks process_vm_readv."""

    name = "shm"

    def __init__(self) -> None:
        if reason := why_unavailable():
            raise TransferError(reason)

    async def listen(self, host: str, inbox: Inbox) -> "ShmListener":
        """Listen under a fresh socket name, which becomes `Listener.host`. `host` is not used, and there is no port."""
        return ShmListener(inbox, HostMemory)

    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> ShmConnection:
        """See `Transport`. `host` is the listener's name. Raises TransferError also if it cannot read this process."""
        process_memory.allow_siblings()
        nonce = memoryview(bytearray(secrets.token_bytes(NONCE_BYTES)))
        return ShmConnection(await welcomed(host, Hello(secret, proof(nonce))), on_close)


class ShmListener(Listener):
    """Accepts and admits connections, and keeps one per peer: a newer one replaces the older."""

    def __init__(self, inbox: Inbox, open_memory: Callable[[int, bytes], SenderMemory]) -> None:
        self.host = f"baton-kv-{secrets.token_hex(8)}"
        self.port = 0
        self._inbox = inbox
        self._open_memory = open_memory
        self._connections: set[ShmIncoming] = set()  # admitted or not, until their last copy has ended
        self._copiers = started_pool(_num_copiers(), "kv-copy")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.bind(f"\0{self.host}")
        sock.listen()
        self._acceptor = Acceptor(sock, self._take)

    async def disconnect(self, peer: Peer) -> None:
        """See `Listener`. Returns when the copies in progress have stopped."""
        for connection in self._of(peer):
            await connection.close()

    async def close(self) -> None:
        """Accept no more, and disconnect everyone."""
        self._acceptor.close()
        for connection in list(self._connections):
            await connection.close()
        self._copiers.shutdown(wait=False)

    def _take(self, sock: socket.socket) -> None:
        if sum(connection.peer is None for connection in self._connections) >= _MAX_UNADMITTED:
            sock.close()
            return
        sock.setblocking(False)
        connection = ShmIncoming(
            sock, self._inbox, self._copiers, self._open_memory, self._admitted, self._connections.discard
        )
        self._connections.add(connection)

    def _admitted(self, peer: Peer) -> None:
        for old in self._of(peer):
            old.start_closing()

    def _of(self, peer: Peer) -> list[ShmIncoming]:
        return [connection for connection in self._connections if connection.peer == peer]


async def welcomed(name: str, hello: Hello) -> socket.socket:
    """Return a socket to the listener of that name, which has admitted this process and can read its memory.

    Raises TransferError if there is no such listener on this host, or it refuses.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                sock.setblocking(False)
                answer = await _said_hello(sock, name, hello)
                if answer != WELCOME:
                    raise ConnectionRefusedError(reason_of(answer))
            except BaseException:
                sock.close()
                raise
            return sock
    except (OSError, TimeoutError) as error:
        raise TransferError(f"no shared memory with the decode node: {str(error) or 'timed out'}") from error


async def _said_hello(sock: socket.socket, name: str, hello: Hello) -> bytes:
    """Connect, send the hello, and return the answer."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(sock, f"\0{name}")
        await loop.sock_sendall(sock, hello.pack())
        return await loop.sock_recv(sock, MAX_PACKET_BYTES)
    except ConnectionRefusedError:
        raise ConnectionRefusedError("it is on another host, or in another network namespace") from None


def _num_copiers() -> int:
    return min(_MAX_COPIERS, len(os.sched_getaffinity(0)))
