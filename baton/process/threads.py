"""Pools of threads that are all there from the start.

A plain ThreadPoolExecutor starts its threads as work comes. Where the system has no more to give, `submit` raises with
the work already in its queue: another thread does it later, nobody awaits it, and its memory may be another's by then.
"""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor


def started_pool(num_threads: int, name: str) -> ThreadPoolExecutor:
    """Raises OSError where the system has no more threads: a limit of its user, or of its container."""
    pool, all_there = ThreadPoolExecutor(num_threads, thread_name_prefix=name), threading.Event()
    try:
        for _ in range(num_threads):
            pool.submit(all_there.wait)  # each takes a thread of its own
    except RuntimeError as error:
        pool.shutdown(wait=False, cancel_futures=True)
        raise OSError(errno.EAGAIN, f"no thread can be started ({os.strerror(errno.EAGAIN)})") from error
    finally:
        all_there.set()
    return pool
