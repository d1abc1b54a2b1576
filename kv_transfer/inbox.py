"""Where messages find their transfers: the receiver's `Inbox`, one for the listener of each transport."""

from collections.abc import Callable, Mapping

from kv_transfer.incoming import IncomingTransfer
from kv_transfer.plan import MAX_MESSAGES
from kv_transfer.transport import Peer, Slot


class TransferInbox:
    """See `kv_transfer.transport.Inbox`. A tag's high bits are the transfer's, the low ones say which message it is."""

    def __init__(
        self, transport: str, transfers: Mapping[int, IncomingTransfer], admit: Callable[[bytes], Peer | None]
    ) -> None:
        """`transfers`: by the high bits of their tags; the receiver adds to them and takes from them."""
        self.admit = admit
        self._transport = transport  # a peer may send over several, of which each may be lost by itself
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
        """See `Inbox`. Messages of transfers that had begun over this transport may be lost with the connection."""
        for transfer in list(self._transfers.values()):
            if transfer.peer == peer and self._transport in transfer.transports:
                transfer.fail("peer_lost", "the connection to the prefill node was lost")
