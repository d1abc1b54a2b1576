"""One end of the socket between a node and its UCX process: packets of frames, sent and taken without waiting."""

import socket
from collections import deque
from typing import Any, Generic, TypeVar

import msgspec

from kv_transfer.ucx_child.frames import Frame

MAX_TEXT_CHARS = 255  # of a host's name, or a reason
_MAX_PACKET_BYTES = 2**17
_MAX_FRAMES = 128  # of one packet; none is longer than 1,000 bytes
_MAX_QUEUED_FRAMES = 2**16  # a side that takes none of so many is as good as dead

Taken = TypeVar("Taken", bound=Frame)


class FrameSocket(Generic[Taken]):
    """Keeps the order of frames. Every error of the other side's is a ConnectionError."""

    def __init__(self, sock: socket.socket, taken: Any) -> None:
        """`sock`: a SOCK_SEQPACKET. `taken`: the union of frames that the other side may send."""
        sock.setblocking(False)
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[list[Taken]] = msgspec.msgpack.Decoder(list[taken])
        self._encoder = msgspec.msgpack.Encoder()
        self._queue: deque[Frame] = deque()

    def fileno(self) -> int:
        """For a selector."""
        return self._sock.fileno()

    def put(self, frame: Frame) -> None:
        """Send it with the next `flush`."""
        if len(self._queue) >= _MAX_QUEUED_FRAMES:
            raise ConnectionError("the other side takes no frames")
        self._queue.append(frame)

    def flush(self) -> bool:
        """Send what the other side's buffer takes; whether that was all."""
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
        """The frames of the next packet; none where none has come."""
        try:
            packet = self._sock.recv(_MAX_PACKET_BYTES)
        except BlockingIOError:
            return []
        if not packet:
            raise ConnectionError("the other side has ended")
        try:
            frames = self._decoder.decode(packet)
        except msgspec.DecodeError as error:
            raise ConnectionError(f"the other side talks nonsense: {error}") from error
        return frames

    def close(self) -> None:
        """What is queued is lost."""
        self._sock.close()
