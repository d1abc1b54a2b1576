"""The packets that the two ends of a connection within a host exchange.

A frame says where a message lies in the sender's own memory; the format depends on the kind of memory (see
`kv_transfer.shm.incoming.SenderMemory`). It never names memory of the receiver, which finds that by the tag.
"""

import struct
from typing import NamedTuple

from kv_transfer.transport import SECRET_BYTES

MAX_PACKET_BYTES = 64 * 1024
HEARTBEAT = b"\x02"
WELCOME = b"\x01"
_REFUSED = b"\x00"
_MESSAGE = struct.Struct("<QQ")  # sequence, tag; the source follows
_ACK = struct.Struct("<Q")


class Hello(NamedTuple):
    """The sender's first packet."""

    secret: bytes
    memory: bytes  # lets the receiver find the sender's memory, and prove that it can read it

    def pack(self) -> bytes:
        """Encode as a packet."""
        return self.secret + self.memory

    @classmethod
    def unpack(cls, packet: bytes) -> "Hello":
        """Decode a packet. Raises ValueError if it is too short for a hello."""
        if len(packet) <= SECRET_BYTES:
            raise ValueError("not a hello")
        return cls(packet[:SECRET_BYTES], packet[SECRET_BYTES:])


class Frame(NamedTuple):
    """Announces a message that the receiver is to fetch."""

    sequence: int
    tag: int
    source: bytes  # where the message lies in the sender's memory

    def pack(self) -> bytes:
        """Encode as a packet."""
        return _MESSAGE.pack(self.sequence, self.tag) + self.source

    @classmethod
    def unpack(cls, packet: bytes) -> "Frame":
        """Decode a packet. Raises ValueError if it is too short for a frame."""
        if len(packet) <= _MESSAGE.size:
            raise ValueError("not a message")
        sequence, tag = _MESSAGE.unpack_from(packet)
        return cls(sequence, tag, packet[_MESSAGE.size :])


def refusal(reason: str) -> bytes:
    """Encode the answer to a hello that is refused."""
    return _REFUSED + reason.encode()[:200]


def reason_of(packet: bytes) -> str:
    """Return the reason that an answer other than the welcome gives."""
    return packet[1:].decode(errors="replace") or "the decode node refused the connection"


def ack(sequence: int) -> bytes:
    """Encode an acknowledgement: the message's memory is no longer needed."""
    return _ACK.pack(sequence)


def acked(packet: bytes) -> int:
    """Decode an acknowledgement to its sequence number. Raises ValueError if the packet is none."""
    if len(packet) != _ACK.size:
        raise ValueError("not an acknowledgement")
    return int(_ACK.unpack(packet)[0])
