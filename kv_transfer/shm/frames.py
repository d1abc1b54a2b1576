"""What the two ends of a shared-memory connection say to each other, one packet each.

A message names memory of the sender itself, never of the receiver: that is named by the tag alone.
"""

import itertools
import struct
from typing import NamedTuple

from kv_transfer.shm.process_memory import Runs
from kv_transfer.transport import SECRET_BYTES

MAX_RUNS = 2048  # of one message; more are gathered before they are sent
MAX_PACKET_BYTES = 64 * 1024
NONCE_BYTES = 32
HEARTBEAT = b"\x02"
WELCOME = b"\x01"
_REFUSED = b"\x00"
_HELLO = struct.Struct(f"<{SECRET_BYTES}s{NONCE_BYTES}sQ")
_MESSAGE = struct.Struct("<QQ")  # sequence, tag; then pairs of address and length
_RUN = struct.Struct("<QQ")
_ACK = struct.Struct("<Q")


class Hello(NamedTuple):
    """The first packet. Whoever can read `nonce` at `address` of the sender shares memory with it."""

    secret: bytes
    nonce: bytes
    address: int

    def pack(self) -> bytes:
        """As a packet."""
        return _HELLO.pack(*self)

    @classmethod
    def unpack(cls, packet: bytes) -> "Hello":
        """Raises ValueError for anything else."""
        if len(packet) != _HELLO.size:
            raise ValueError("not a hello")
        return cls(*_HELLO.unpack(packet))


class Frame(NamedTuple):
    """A message to be fetched from `runs`."""

    sequence: int
    tag: int
    runs: Runs

    @property
    def num_bytes(self) -> int:
        """Of the message."""
        return sum(length for _, length in self.runs)

    def pack(self) -> bytes:
        """As a packet."""
        flat = itertools.chain.from_iterable(self.runs)
        return _MESSAGE.pack(self.sequence, self.tag) + struct.pack(f"<{2 * len(self.runs)}Q", *flat)

    @classmethod
    def unpack(cls, packet: bytes) -> "Frame":
        """Raises ValueError where the packet is none, or names memory that cannot be."""
        num_runs, rest = divmod(len(packet) - _MESSAGE.size, _RUN.size)
        if rest or not 0 < num_runs <= MAX_RUNS:
            raise ValueError("not a message")
        runs = list(_RUN.iter_unpack(packet[_MESSAGE.size :]))
        if any(length == 0 or address + length >= 2**64 for address, length in runs):
            raise ValueError("a message names memory that cannot be")
        sequence, tag = _MESSAGE.unpack_from(packet)
        return cls(sequence, tag, runs)


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
