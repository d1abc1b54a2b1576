"""The receiver's `Inbox`, one per listener: finds the transfer that each message belongs to."""

from collections.abc import Callable, Mapping

from kv_transfer.incoming import IncomingTransfer
from kv_transfer.plan import MAX_MESSAGES
from kv_transfer.transport import Peer, Slot


class TransferInbox:
    """See `kv_transfer.transport.Inbox`. A tag's high bits name the transfer, its low bits the message within it."""

    def __init__(
        self, transport: str, transfers: Mapping[int, IncomingTransfer], admit: Callable[[bytes], Peer | None]
    ) -> None:
        """`transfers`: by the high bits of their tags; a live view that the receiver keeps up to date."""
        self.admit = admit
        self._transport = transport  # a peer may use several transports, and lose one of their connections
        self._transfers = transfers

    def claim(self, tag: int, num_bytes: int, peer: Peer | None) -> Slot | None:
        """See `Inbox`."""
        transfer = self._transfers.get(tag // MAX_MESSAGES)
        if transfer is None or (peer is not None and peer != transfer.peer):
            return None
        return transfer.claim(tag % MAX_MESSAGES, num_bytes, self._transport)

    def arrived(self, tag: int, digest: int | None = None) -> None:
        """See `Inbox`."""
        self._transfers[tag // MAX_MESSAGES].arrived(tag % MAX_MESSAGES, digest)

    def lost(self, tag: int) -> None:
        """See `Inbox`."""
        self._transfers[tag // MAX_MESSAGES].lost(tag % MAX_MESSAGES)

    def disconnected(self, peer: Peer) -> None:
        """See `Inbox`. Fails the peer's transfers that used this transport: some of their messages may be lost."""
        for transfer in list(self._transfers.values()):
            if transfer.peer == peer and self._transport in transfer.transports:
                transfer.fail("peer_lost", "the connection to the prefill node was lost")
