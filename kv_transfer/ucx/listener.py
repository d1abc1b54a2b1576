"""The receiving end of UCX connections: admits them, and receives or drops each message that is waiting."""

import asyncio
from collections.abc import Sequence

from baton.errors import TransferError
from kv_transfer.stall import StallWatch
from kv_transfer.transport import CONNECT_TIMEOUT_S, Inbox, Listener, Peer
from kv_transfer.ucx.link import UcxLink
from kv_transfer.ucx.process import UcxProcess
from kv_transfer.ucx_child import frames


class UcxIncoming:
    """One peer's connection, and the messages being received over it."""

    def __init__(self, listener: "UcxListener", peer: Peer, link: UcxLink) -> None:
        self.peer = peer
        self.link = link
        self._listener = listener
        self._stall = StallWatch("a prefill node is silent over UCX", self.lose)
        self._stall.started()  # from now on there is a heartbeat
        self._tasks: set[asyncio.Task[None]] = set()

    def heard(self) -> None:
        """Note a heartbeat of the peer."""
        self._stall.moved()

    def receive(self, message: frames.Waiting, views: Sequence[memoryview]) -> None:
        """Start to receive the message into the views; the inbox learns how that ends."""
        task = asyncio.get_running_loop().create_task(self._receive(message, views))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Close the connection. Idempotent. Returns when nothing is being written, and the inbox has been informed."""
        self.lose()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def lose(self) -> None:
        """Close the connection without waiting, or note that it was lost. Idempotent."""
        if not self.link.is_lost:
            self.link.lose()
            self._stall.close()
            self._listener.forget(self)
            self._listener.inbox.disconnected(self.peer)

    async def _receive(self, message: frames.Waiting, views: Sequence[memoryview]) -> None:
        try:
            digest = await self.link.receive(message.message, views)
        except TransferError:
            self._listener.inbox.lost(message.tag)
        else:
            self._stall.moved()
            self._listener.inbox.arrived(message.tag, digest)


class UcxListener(Listener):
    """The listener. It outlives its UCX process: the next one accepts connections at another port."""

    def __init__(self, process: UcxProcess, host: str, inbox: Inbox) -> None:
        self.host = host
        self.inbox = inbox
        self._by_peer: dict[Peer, UcxIncoming] = {}
        self._by_link: dict[int, UcxIncoming] = {}
        self._accepting = asyncio.Event()
        self.attach(process)

    @property
    def port(self) -> int:  # type: ignore[override]
        """The UCX process's port; 0 while it does not listen."""
        return self._process.port

    def attach(self, process: UcxProcess) -> None:
        """Accept connections through this process from now on. Those of an earlier process are lost."""
        self._process = process
        process.put(frames.Listen())

    async def ready(self) -> None:
        """See `Listener`. Waits while a process starts."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._accepting.wait()
        except TimeoutError:
            raise TransferError("the UCX process of the decode node is not listening (yet)") from None

    def hear(self, report: frames.Report) -> None:
        """Handle a report of the UCX process on the connections that peers opened."""
        match report:
            case frames.Listening():
                self._accepting.set()
            case frames.Hello(link, secret):
                self._admit(link, secret)
            case frames.Heard(link) if link in self._by_link:
                self._by_link[link].heard()
            case frames.Waiting():
                self._place(report)
            case frames.Gone(link) if link in self._by_link:
                self._by_link[link].lose()

    def lose(self) -> None:
        """Called when the UCX process has ended: all connections are lost."""
        self._accepting.clear()
        for incoming in list(self._by_link.values()):
            incoming.lose()

    def forget(self, incoming: UcxIncoming) -> None:
        """Give a closing connection no more messages."""
        self._by_link.pop(incoming.link.number, None)
        self._by_peer.pop(incoming.peer, None)

    async def disconnect(self, peer: Peer) -> None:
        """See `Listener`."""
        if incoming := self._by_peer.get(peer):
            await incoming.close()

    async def close(self) -> None:
        """Disconnect everyone. The UCX process itself goes on listening until the transport is closed."""
        for incoming in list(self._by_link.values()):
            await incoming.close()

    def _admit(self, number: int, secret: bytes) -> None:
        """Admit or refuse a new connection. It replaces an older one of the same peer."""
        peer = self.inbox.admit(secret)
        if peer is None:
            return self._process.close_link(number)
        if old := self._by_peer.get(peer):
            old.lose()
        incoming = UcxIncoming(self, peer, UcxLink(self._process, number))
        self._by_peer[peer] = self._by_link[number] = incoming
        return self._process.put(frames.Admit(number))

    def _place(self, message: frames.Waiting) -> None:
        slot = self.inbox.claim(message.tag, message.num_bytes, None)
        incoming = self._by_peer.get(slot.peer) if slot else None
        if slot and incoming:
            return incoming.receive(message, slot.views)
        if slot:
            self.inbox.lost(message.tag)
        return self._process.put(frames.Drop(message.message))
