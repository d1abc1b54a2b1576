"""A sender's KV pool on a GPU: blocks are read out of it by the receiver's GPU."""

import logging
import struct
from collections.abc import Callable, Sequence

from baton.errors import TransferError
from kv_transfer.cuda import driver
from kv_transfer.device_blocks import DeviceBlocks
from kv_transfer.transport import Slot

_POOL = struct.Struct(f"<{driver.HANDLE_BYTES}sQQ")  # handle of its allocation, where it begins there, places
_PLACE = struct.Struct("<I")

_log = logging.getLogger(__name__)


def exported(blocks: DeviceBlocks) -> bytes:
    """For a hello: by what another process opens this pool. TransferError where it cannot be shared."""
    try:
        allocation = driver.allocation_of(blocks.address)
        handle = driver.export(allocation)
    except OSError as error:
        raise TransferError(f"the KV pool cannot be shared with other processes: {error.strerror or error}") from error
    return _POOL.pack(handle, blocks.address - allocation.address, blocks.num_places)


def pack_places(places: Sequence[int]) -> bytes:
    """For a frame."""
    return struct.pack(f"<{len(places)}I", *places)


class DeviceMemory:
    """See `kv_transfer.shm.incoming.SenderMemory`. Both pools have the same layout: nodes compare it before.

    It stays readable when its owner has died, or given it back; it is freed when the last who opened it has closed it.
    """

    def __init__(self, blocks: DeviceBlocks, claim: bytes) -> None:
        """Raises OSError unless the pool can be read from here and is as large as it says."""
        if len(claim) != _POOL.size:
            raise ValueError("not a pool")
        handle, offset, self._num_places = _POOL.unpack(claim)
        self._blocks = blocks
        self._allocation = driver.open_handle(handle, blocks.device)
        self._address = self._allocation.address + offset
        if offset + self._num_places * blocks.block_bytes > self._allocation.num_bytes:
            self.close()
            raise PermissionError("its pool is not as large as it says")

    def size_of(self, source: bytes) -> int:
        """See `SenderMemory`."""
        if len(source) % _PLACE.size or any(place >= self._num_places for place in _places(source)):
            raise ValueError("a message names blocks that are not in the pool")
        return len(source) // _PLACE.size * self._blocks.block_bytes

    def fetch(self, source: bytes, slot: Slot, is_over: Callable[[], bool]) -> int:
        """See `SenderMemory`: one message takes far less than a step, so it is never stopped."""
        return self._blocks.fetch(self._address, _places(source), slot.places)

    def close(self) -> None:
        """See `SenderMemory`."""
        try:
            driver.close(self._allocation, self._blocks.device)
        except OSError as error:
            _log.warning("a prefill node's KV pool stays open: %s", error)


def _places(source: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(source) // _PLACE.size}I", source)
