"""How a router process keeps its memory: what it will use again a moment later is not given back meanwhile."""

import contextlib
import ctypes
import gc

_YOUNG_OBJECTS = 20_000  # between two looks of the garbage collector, which are a request or two at Python's own 700
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 64 * 2**20  # free, at the end of the heap; glibc keeps 128 KiB
_LARGE_BYTES = 32 * 2**20  # from here on memory comes from the kernel, and goes back to it


def settle() -> None:
    """Once all that stays for good is there.

    The garbage collector is spared it, and looks less often: it took a tenth of all CPU. A long prompt lives in several
    buffers of a hundred kilobytes; the kernel's work for fresh ones took up to nine times as long as copying them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
