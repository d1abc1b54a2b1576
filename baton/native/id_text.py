"""Reads a JSON list of token ids without creating an object for each: ten times as fast for 30,000 ids.

This works only if the compiled version is installed (`build`), and only for a plain list of integers. For anything
else it returns None, and the caller uses a general JSON parser, which also reports errors.
"""

import ctypes
from array import array
from collections.abc import Callable

from baton.native import build

Read = Callable[[bytes, int, int], "tuple[array[int], int] | None"]
"""(text, start, limit) -> (the ids of the list that begins at `start`, the position after its end).

None if there is anything but a non-empty list of integers below `limit`."""


def load() -> Read:
    """Return the compiled version or, if it is not installed, a function that always returns None."""
    try:
        compiled = ctypes.CDLL(str(build.library(build.ID_TEXT)))
    except OSError:
        return lambda *_: None
    parse, count_commas, size = compiled.baton_read_ids, compiled.baton_count_commas, ctypes.c_size_t
    parse.argtypes = [ctypes.c_char_p, size, ctypes.c_uint32, ctypes.c_void_p, size, ctypes.POINTER(size)]
    parse.restype = ctypes.c_int64
    count_commas.argtypes, count_commas.restype = [ctypes.c_char_p, size], size

    def read(text: bytes, start: int, limit: int) -> "tuple[array[int], int] | None":
        room, num = count_commas(text, len(text)) + 1, size()
        ids = array("I", bytes(4 * room))
        end = parse(text, start, limit, ids.buffer_info()[0], room, ctypes.byref(num))
        del ids[num.value :]
        return None if end < 0 else (ids, end)

    return read
