"""What the two ends of a connection within a host say to each other, one packet each.

A message names memory of the sender itself, never of the receiver: that is named by the tag alone. How it does depends
on the kind of memory (`kv_transfer.shm.incoming.SenderMemory`).
"""

import struct
from typing import NamedTuple

from kv_transfer.transport import SECRET_BYTES

MAX_PACKET_BYTES = 64 * 1024
HEARTBEAT = b"\x02"
WELCOME = b"\x01"
_REFUSED = b"\x00"
_MESSAGE = struct.Struct("<QQ")  # sequence, tag; then what is to be fetched
_ACK = struct.Struct("<Q")


class Hello(NamedTuple):
    """The first packet."""

    secret: bytes
    memory: bytes  # by what the receiver finds the sender's memory, and proves that it can read it

    def pack(self) -> bytes:
        """As a packet."""
        return self.secret + self.memory

    @classmethod
    def unpack(cls, packet: bytes) -> "Hello":
        """Raises ValueError for anything else."""
        if len(packet) <= SECRET_BYTES:
            raise ValueError("not a hello")
        return cls(packet[:SECRET_BYTES], packet[SECRET_BYTES:])


class Frame(NamedTuple):
    """A message to be fetched."""

    sequence: int
    tag: int
    source: bytes  # where it lies in the sender's memory

    def pack(self) -> bytes:
        """As a packet."""
        return _MESSAGE.pack(self.sequence, self.tag) + self.source

    @classmethod
    def unpack(cls, packet: bytes) -> "Frame":
        """Raises ValueError where the packet is none."""
        if len(packet) <= _MESSAGE.size:
            raise ValueError("not a message")
        sequence, tag = _MESSAGE.unpack_from(packet)
        return cls(sequence, tag, packet[_MESSAGE.size :])


def refusal(reason: str) -> bytes:
    """The answer to a hello that is not welcome."""
    return _REFUSED + reason.encode()[:200]


def reason_of(packet: bytes) -> str:
    """Why there is no welcome."""
    return packet[1:].decode(errors="replace") or "the decode node refused the connection"


def ack(sequence: int) -> bytes:
    """The message's memory is no longer needed."""
    return _ACK.pack(sequence)


def acked(packet: bytes) -> int:
    """The sequence number; raises ValueError where the packet is no acknowledgement."""
    if len(packet) != _ACK.size:
        raise ValueError("not an acknowledgement")
    return int(_ACK.unpack(packet)[0])
