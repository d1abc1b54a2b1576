"""Thread pools whose threads are all started at once.

A plain ThreadPoolExecutor starts threads as work comes. If the system has no more threads, `submit` raises although the
work is queued already: another thread does it later, when nobody awaits it and its memory may have been reused.
"""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor


def started_pool(num_threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of running threads. Raises OSError if the user or the container may have no more threads."""
    pool, all_there = ThreadPoolExecutor(num_threads, thread_name_prefix=name), threading.Event()
    try:
        for _ in range(num_threads):
            pool.submit(all_there.wait)  # occupies a thread, so the next submit starts another one
    except RuntimeError as error:
        pool.shutdown(wait=False, cancel_futures=True)
        raise OSError(errno.EAGAIN, f"no thread can be started ({os.strerror(errno.EAGAIN)})") from error
    finally:
        all_there.set()
    return pool
