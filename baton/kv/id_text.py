"""Token ids out of a JSON list of them, without an object for each: 30,000 of them take a tenth of the time.

Only where it has been compiled (`native`), and only of a plain list: all else is left to whoever reads any JSON, and
tells what is wrong with it.
"""

import ctypes
from array import array
from collections.abc import Callable

from baton.kv import byte_count, native

Read = Callable[[bytes, int, int], "tuple[array[int], int] | None"]
"""(text, start, limit): the ids of the list that begins at `start`, all of them below the limit, and where it ends.

None where anything else is there."""


def load() -> Read:
    """The compiled one; where there is none, one that reads nothing."""
    try:
        compiled = ctypes.CDLL(str(native.library(native.ID_TEXT))).baton_read_ids
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
