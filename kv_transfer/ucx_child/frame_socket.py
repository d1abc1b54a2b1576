"""One end of the socket between a node and its UCX process: sends and receives packets of frames without blocking."""

import socket
from collections import deque
from typing import Any, Generic, TypeVar

import msgspec

from kv_transfer.ucx_child.frames import Frame

MAX_TEXT_CHARS = 255  # of a host name, or a reason
_MAX_PACKET_BYTES = 2**17
_MAX_FRAMES = 128  # per packet; a frame has at most 1,000 bytes
_MAX_QUEUED_FRAMES = 2**16  # an other side that lets this many pile up is as good as dead

Taken = TypeVar("Taken", bound=Frame)


class FrameSocket(Generic[Taken]):
    """Transfers frames in order. Every failure of the other side raises ConnectionError."""

    def __init__(self, sock: socket.socket, taken: Any) -> None:
        """`sock`: a connected SOCK_SEQPACKET socket. `taken`: the union of frames that the other side may send."""
        sock.setblocking(False)
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[list[Taken]] = msgspec.msgpack.Decoder(list[taken])
        self._encoder = msgspec.msgpack.Encoder()
        self._queue: deque[Frame] = deque()

    def fileno(self) -> int:
        """The socket's file descriptor, for a selector."""
        return self._sock.fileno()

    def put(self, frame: Frame) -> None:
        """Queue a frame, to be sent by the next `flush`. Raises ConnectionError if too many are queued."""
        if len(self._queue) >= _MAX_QUEUED_FRAMES:
            raise ConnectionError(f"the other side takes no frames: {_MAX_QUEUED_FRAMES} are waiting for it")
        self._queue.append(frame)

    def flush(self) -> bool:
        """Send queued frames until the socket is full. Returns whether all were sent."""
        while self._queue:
            frames = [self._queue[i] for i in range(min(len(self._queue), _MAX_FRAMES))]
            try:
                self._sock.send(self._encoder.encode(frames))
            except BlockingIOError:
                return False
            for _ in frames:
                self._queue.popleft()
        return True

    def take(self) -> list[Taken]:
        """Return the frames of the next packet, or none if no packet has come. Raises ConnectionError at the end."""
        try:
            packet = self._sock.recv(_MAX_PACKET_BYTES)
        except BlockingIOError:
            return []
        if not packet:
            raise ConnectionError("the other side has ended")
        try:
            frames = self._decoder.decode(packet)
        except msgspec.DecodeError as error:
            raise ConnectionError(f"the other side sent a malformed packet: {error}") from error
        return frames

    def close(self) -> None:
        """Close the socket. Frames still queued are lost."""
        self._sock.close()
