"""A sender's KV pool on a GPU, which the receiver's GPU reads blocks from."""

import logging
import struct
from collections.abc import Callable, Sequence

from baton.errors import TransferError
from kv_transfer.cuda import driver
from kv_transfer.device_blocks import DeviceBlocks
from kv_transfer.transport import Slot

_POOL = struct.Struct(f"<{driver.HANDLE_BYTES}sQQ")  # handle of its allocation, its offset there, number of places
_PLACE = struct.Struct("<I")

_log = logging.getLogger(__name__)


def exported(blocks: DeviceBlocks) -> bytes:
    """Return `Hello.memory`: what another process needs to open this pool. Raises TransferError if that fails."""
    try:
        allocation = driver.allocation_of(blocks.address)
        handle = driver.export(allocation)
    except OSError as error:
        raise TransferError(f"the KV pool cannot be shared with other processes: {error.strerror or error}") from error
    return _POOL.pack(handle, blocks.address - allocation.address, blocks.num_places)


def pack_places(places: Sequence[int]) -> bytes:
    """Encode places as the source of a frame."""
    return struct.pack(f"<{len(places)}I", *places)


class DeviceMemory:
    """See `kv_transfer.shm.incoming.SenderMemory`. Both pools have the same layout: Connect has compared them.

    The pool stays readable even when its owner has died or freed it: the driver frees it when the last process that
    opened it has closed it.
    """

    def __init__(self, blocks: DeviceBlocks, claim: bytes) -> None:
        """`blocks` are the receiver's, `claim` is the sender's `exported`.

        Raises OSError if the pool cannot be opened or is smaller than claimed, ValueError if the claim is malformed.
        """
        if len(claim) != _POOL.size:
            raise ValueError(f"not a pool: the claim has {len(claim)} bytes, not {_POOL.size}")
        handle, offset, self._num_places = _POOL.unpack(claim)
        self._blocks = blocks
        self._allocation = driver.open_handle(handle, blocks.device)
        self._address = self._allocation.address + offset
        if offset + self._num_places * blocks.block_bytes > self._allocation.num_bytes:
            self.close()
            raise PermissionError("the prefill node's KV pool is not as large as it claims")

    def size_of(self, source: bytes) -> int:
        """See `SenderMemory`."""
        if len(source) % _PLACE.size or any(place >= self._num_places for place in _places(source)):
            raise ValueError("a message names blocks that are not in the pool")
        return len(source) // _PLACE.size * self._blocks.block_bytes

    def fetch(self, source: bytes, slot: Slot, is_over: Callable[[], bool]) -> int:
        """See `SenderMemory`. Never stopped early: one message takes far less time than a step."""
        return self._blocks.fetch(self._address, _places(source), slot.places)

    def close(self) -> None:
        """See `SenderMemory`."""
        try:
            driver.close(self._allocation, self._blocks.device)
        except OSError as error:
            _log.warning("a prefill node's KV pool could not be closed and stays open: %s", error)


def _places(source: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(source) // _PLACE.size}I", source)
