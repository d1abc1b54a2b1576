"""Maps the memory that a node and its UCX process share; both processes use this."""

import contextlib
import mmap


def mapped(descriptor: int, num_bytes: int) -> memoryview:
    """Map the region, in huge pages if the system offers them for shared memory."""
    region = mmap.mmap(descriptor, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            region.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(region)
