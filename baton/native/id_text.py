"""Reads JSON lists of token ids without creating an object for each: ten times as fast for 30,000 ids.

This works only if the compiled version is installed (`build`), and only for a plain list of integers, or a list of
such lists. For anything else it returns None, and the caller uses a general JSON parser, which also reports errors. The
compiled version releases the GIL, so it does not hold up an event loop if it is called in a thread.
"""

import ctypes
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

from baton.native import build

MAX_LISTS = 2**11

Ids: TypeAlias = "array[int] | list[array[int]]"
"""The ids of a list or, of a list of lists, those of each."""
Read = Callable[[bytes, int, int, int], "tuple[Ids, int] | None"]
"""(text, start, limit, room) -> (the ids of what begins at `start`, the position after its end).

None if there is anything but a list, or a list of at most MAX_LISTS lists, of at least one integer below `limit`, or if
there are more than `room` integers."""


def load() -> Read | None:
    """Return the compiled version; None if it is not installed."""
    try:
        compiled = ctypes.CDLL(str(build.library(build.ID_TEXT))).baton_read_ids
    except OSError:
        return None
    size = ctypes.c_size_t
    of_sizes = ctypes.POINTER(size)
    compiled.argtypes = [ctypes.c_char_p, size, ctypes.c_uint32, ctypes.c_void_p, size, of_sizes, size, of_sizes]
    compiled.restype = ctypes.c_int64

    def read(text: bytes, start: int, limit: int, room: int) -> "tuple[Ids, int] | None":
        ids, ends, num_lists = array("I", (0,)) * room, (size * MAX_LISTS)(), size()
        at = ids.buffer_info()[0]
        end = compiled(text, start, limit, at, room, ends, MAX_LISTS, ctypes.byref(num_lists))
        if end < 0:
            return None
        if num_lists.value:
            return [ids[i:j] for i, j in pairwise([0, *ends[: num_lists.value]])], end
        del ids[ends[0] :]
        return ids, end

    return read
