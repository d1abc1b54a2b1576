"""Reads a JSON list of token ids without creating an object for each: ten times as fast for 30,000 ids.

This works only if the compiled version is installed (`build`), and only for a plain list of integers. For anything
else it returns None, and the caller uses a general JSON parser, which also reports errors.
"""

import ctypes
from array import array
from collections.abc import Callable

from baton.native import build, byte_count

Read = Callable[[bytes, int, int], "tuple[array[int], int] | None"]
"""(text, start, limit) -> (the ids of the list that begins at `start`, the position after its end).

None if there is anything but a non-empty list of integers below `limit`."""


def load() -> Read:
    """Return the compiled version or, if it is not installed, a function that always returns None."""
    try:
        compiled = ctypes.CDLL(str(build.library(build.ID_TEXT))).baton_read_ids
    except OSError:
        return lambda *_: None
    count, size = byte_count.fastest(), ctypes.c_size_t
    compiled.argtypes = [ctypes.c_char_p, size, ctypes.c_uint32, ctypes.c_void_p, size, ctypes.POINTER(size)]
    compiled.restype = ctypes.c_int64

    def read(text: bytes, start: int, limit: int) -> "tuple[array[int], int] | None":
        room, num = count(text, b",")[0] + 1, size()
        ids = array("I", bytes(4 * room))
        end = compiled(text, start, limit, ids.buffer_info()[0], room, ctypes.byref(num))
        del ids[num.value :]
        return None if end < 0 else (ids, end)

    return read
