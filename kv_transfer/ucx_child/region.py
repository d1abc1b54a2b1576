"""The memory that a node and its UCX process share, as each of the two sees it."""

import contextlib
import mmap


def mapped(descriptor: int, num_bytes: int) -> memoryview:
    """The region, in huge pages where the system has them for shared memory."""
    region = mmap.mmap(descriptor, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            region.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(region)
