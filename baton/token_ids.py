"""Token ids as sent between services: packed little-endian uint32, so that a long prompt is copied, not iterated."""

import sys
from array import array
from collections.abc import Sequence

from baton.errors import InvalidRequest

_ITEM_BYTES = 4


def packed(token_ids: Sequence[int]) -> "array[int]":
    """Return the ids as an array of uint32, which is cheap to slice, hash and send. An array is returned unchanged."""
    return token_ids if isinstance(token_ids, array) else array("I", token_ids)


def to_bytes(token_ids: Sequence[int]) -> bytes:
    """Encode the ids for the wire. For an array, this is a single copy."""
    items = packed(token_ids)
    if sys.byteorder == "big":
        items = items[:]
        items.byteswap()
    return items.tobytes()


def from_bytes(data: bytes) -> list[int]:
    """Decode ids from the wire. Raises InvalidRequest for an incomplete id. The engine checks the range of ids."""
    if len(data) % _ITEM_BYTES:
        raise InvalidRequest(
            f"token ids are cut off: {len(data)} bytes is not a multiple of {_ITEM_BYTES}", param="prompt"
        )
    items = array("I")
    items.frombytes(data)
    if sys.byteorder == "big":
        items.byteswap()
    return items.tolist()
