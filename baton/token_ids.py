"""Token ids as they travel: little-endian uint32, packed, so that a long prompt is copied and never walked through."""

import sys
from array import array
from collections.abc import Sequence

from baton.errors import InvalidRequest

_ITEM_BYTES = 4


def packed(token_ids: Sequence[int]) -> "array[int]":
    """The same ids as an array of uint32, which is cheap to slice, to hash and to send; an array is taken as it is."""
    return token_ids if isinstance(token_ids, array) else array("I", token_ids)


def to_bytes(token_ids: Sequence[int]) -> bytes:
    """The ids as the wire carries them. An array is copied as it is."""
    items = packed(token_ids)
    if sys.byteorder == "big":
        items = items[:]
        items.byteswap()
    return items.tobytes()


def from_bytes(data: bytes) -> list[int]:
    """From the wire. Raises InvalidRequest for a part of an id; how large ids may be, the engine checks."""
    if len(data) % _ITEM_BYTES:
        raise InvalidRequest("token ids are cut off", param="prompt")
    items = array("I")
    items.frombytes(data)
    if sys.byteorder == "big":
        items.byteswap()
    return items.tolist()
