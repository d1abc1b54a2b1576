"""The interface of transports, which move tagged messages from a sender's memory into memory that the receiver names.

A transport knows nothing of requests or transfers. It notices a peer that froze or was cut off by its silence
(`stall`). Everything runs in one event loop; callbacks never block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

SECRET_BYTES = 32
CONNECT_TIMEOUT_S = 1.5  # a lost SYN is sent again after 1 s
PATIENCE_S = 1.0  # how long to wait for a transport to start if there is another; below the timeout of a connect
RETRY_S = 10.0  # pause before a transport that failed is tried again; doubled after each further failure
MAX_RETRY_S = 600.0
HEARTBEAT_S = 0.4  # interval of a sender's heartbeats
WITHIN_HOST = frozenset({"cuda", "shm"})  # transports that only work between nodes on one host
IN_PLACE = frozenset({"cuda"})  # transports that write into the receiver's pool themselves, at `Slot.places`


class Peer(NamedTuple):
    """One incarnation of a sending node."""

    node_id: str
    epoch: int


class Slot(NamedTuple):
    """Where to write a message, and from whom it is expected."""

    peer: Peer
    views: Sequence[memoryview]  # to be filled one after the other; empty for transports of IN_PLACE
    places: Sequence[int] = ()  # for transports of IN_PLACE: the places of its blocks (`pool.places_of`)


class Inbox(Protocol):
    """The calls that a listener makes to the receiver."""

    def admit(self, secret: bytes) -> Peer | None:
        """Return whose secret this is, or None to refuse the connection. A secret is good for one connection."""

    def claim(self, tag: int, num_bytes: int, peer: Peer | None) -> Slot | None:
        """Return where to write a message, or None to drop it. `peer` is None if the transport does not know it.

        Each slot is followed by exactly one call of `arrived` or `lost`; until then it is being written to.
        """

    def arrived(self, tag: int, digest: int | None = None) -> None:
        """All of the message is in its slot. `digest`: if the transport has computed it in passing."""

    def lost(self, tag: int) -> None:
        """The message will never be complete, and nothing writes to its slot any more."""

    def disconnected(self, peer: Peer) -> None:
        """A connection of the peer is closing: it makes no more claims, but calls of `lost` may follow."""


class Connection(ABC):
    """A connection to one receiver, of one of the two kinds below. Once closed, by either side, it stays closed."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection. Idempotent. All pending sends have raised when it returns.

        The memory of sends is then no longer read, or whatever is still read of it will be dropped by the receiver.
        """


class ByteConnection(Connection):
    """A connection that sends bytes in host memory."""

    digests = False  # whether `send` returns the digest of what it sent; if not, the caller must compute it

    @abstractmethod
    async def send(self, tag: int, views: Sequence[memoryview]) -> int | None:
        """Send the views' bytes as one message. Several sends may be in flight at once.

        Returns, or raises TransferError, when the views are no longer being read. Do not cancel it: that would not stop
        the reading. Only closing the connection does.
        """


class BlockConnection(Connection):
    """A connection that sends blocks from the sender's pool, without staging."""

    @abstractmethod
    async def digest(self, places: Sequence[int]) -> int:
        """Compute the digest that the receiver reports if exactly these blocks arrive. Raises TransferError."""

    @abstractmethod
    async def send(self, tag: int, places: Sequence[int]) -> None:
        """Send the blocks at these places of the pool as one message; otherwise as `ByteConnection.send`."""


AnyConnection: TypeAlias = ByteConnection | BlockConnection


class Listener(ABC):
    """Accepts connections, and writes their messages where the inbox says."""

    host: str
    port: int

    async def ready(self) -> None:  # noqa: B027 - most are always ready
        """Wait until connections are accepted at `host` and `port`. Raises TransferError if that takes too long."""

    @abstractmethod
    async def disconnect(self, peer: Peer) -> None:
        """Close the peer's connection, if there is one. Returns when none of its messages is being written any more."""

    @abstractmethod
    async def close(self) -> None:
        """Accept no more, and disconnect everyone."""


class Transport(ABC):
    """One way to move messages between nodes."""

    name: str

    @abstractmethod
    async def listen(self, host: str, inbox: Inbox) -> Listener:
        """Listen on a free port."""

    async def ready(self) -> None:  # noqa: B027 - most are always ready
        """Wait until `connect` has what it needs on this node. Raises TransferError if it never will."""

    @abstractmethod
    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> AnyConnection:
        """Connect to a listener; `on_close` is called once, when the connection is lost or closed.

        Raises TransferError if there is no connection within CONNECT_TIMEOUT_S, or the secret is refused.
        """

    async def close(self) -> None:  # noqa: B027 - most have nothing of their own to close
        """Release what the transport itself owns. Close its listeners and connections first."""
