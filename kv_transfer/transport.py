"""What a transport is: tagged messages from a sender's memory straight into memory that the receiver names.

A transport knows neither blocks nor transfers. A peer that freezes or is cut off is noticed by its silence (`stall`).
Everything runs in one event loop; callbacks never block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

SECRET_BYTES = 32
CONNECT_TIMEOUT_S = 1.5  # a lost SYN is sent again after 1 s
PATIENCE_S = 1.0  # for a transport that is starting, where there is another; less than a connect may take
RETRY_S = 10.0  # after which a transport that failed is tried again; then after twice that, and so on
MAX_RETRY_S = 600.0
HEARTBEAT_S = 0.4  # senders say at least that often that they live
WITHIN_HOST = frozenset({"cuda", "shm"})  # transports for nodes that share a host
IN_PLACE = frozenset({"cuda"})  # transports that write the receiver's blocks themselves: what they are told is places


class Peer(NamedTuple):
    """One incarnation of a sending node."""

    node_id: str
    epoch: int


class Slot(NamedTuple):
    """Where a message goes, and from whom it is expected."""

    peer: Peer
    views: Sequence[memoryview]  # to be filled one after the other; none for transports of IN_PLACE
    places: Sequence[int] = ()  # for those: of its blocks in the pool


class Inbox(Protocol):
    """What a listener asks and tells the receiver."""

    def admit(self, secret: bytes) -> Peer | None:
        """Who opens a connection with this secret; None refuses it. A secret opens one connection."""

    def claim(self, tag: int, num_bytes: int, peer: Peer | None) -> Slot | None:
        """Where to write the message, or None: drop it. `peer` is None where the transport cannot tell.

        After a slot, exactly one call of `arrived` or `lost` follows; between the two it is being written to.
        """

    def arrived(self, tag: int, digest: int | None = None) -> None:
        """All of the message is in its slot. A transport that has read it anyway may say its digest."""

    def lost(self, tag: int) -> None:
        """The message will never be whole, and nothing writes into its slot any more."""

    def disconnected(self, peer: Peer) -> None:
        """A peer's connection is closing: no claims come from it any more, but `lost` may still."""


class Connection(ABC):
    """To one receiver, of one of the two kinds below. Lost for good once closed, by whichever side."""

    @abstractmethod
    async def close(self) -> None:
        """Idempotent. Returns when nothing of any send is being read, or what is read will be dropped by the receiver.

        The sends have raised by then.
        """


class ByteConnection(Connection):
    """For bytes in host memory."""

    digests = False  # whether `send` says the digest of what it has sent; else whoever calls it has to find out

    @abstractmethod
    async def send(self, tag: int, views: Sequence[memoryview]) -> int | None:
        """Send the views' bytes as one message; several sends may be under way.

        Returns, or raises TransferError, when the views are no longer being read. Not to be cancelled: cancelling the
        await does not stop the reading, closing the connection does.
        """


class BlockConnection(Connection):
    """For blocks where they lie in the sender's pool."""

    @abstractmethod
    async def digest(self, places: Sequence[int]) -> int:
        """What the receiver will say of these blocks, if they are what arrives. TransferError where nobody can say."""

    @abstractmethod
    async def send(self, tag: int, places: Sequence[int]) -> None:
        """Send the blocks at these places of the pool as one message; otherwise like `ByteConnection.send`."""


AnyConnection: TypeAlias = ByteConnection | BlockConnection


class Listener(ABC):
    """Accepts connections, and writes messages to where the inbox says."""

    host: str
    port: int

    async def ready(self) -> None:  # noqa: B027 - most always are
        """Returns when connections are accepted at `host` and `port`; TransferError when that takes too long."""

    @abstractmethod
    async def disconnect(self, peer: Peer) -> None:
        """Close the peer's connection, if there is one. Returns when nothing of it is being written any more."""

    @abstractmethod
    async def close(self) -> None:
        """Accept no more, and disconnect everyone."""


class Transport(ABC):
    """One way for messages to travel."""

    name: str

    @abstractmethod
    async def listen(self, host: str, inbox: Inbox) -> Listener:
        """Listen on a free port."""

    async def ready(self) -> None:  # noqa: B027 - most always are
        """Returns when `connect` has all that it needs on this side; TransferError where it never will have."""

    @abstractmethod
    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> AnyConnection:
        """Raises TransferError when there is no connection within CONNECT_TIMEOUT_S, or the secret is refused.

        `on_close` is called once, when the connection is lost or closed.
        """

    async def close(self) -> None:  # noqa: B027 - most have nothing of their own to close
        """Release what the transport owns itself; listeners and connections are closed before."""
