"""A thread for work that comes before the first step.

libgomp keeps a team of workers for every thread that has ever computed in parallel. With the team of the thread that
loaded the model around, idle as it is, there are more workers than cores; libgomp then takes the machine for
overcommitted, and lets workers sleep at each of the hundred barriers of a step. A thread that ends takes its team
along.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def run(function: Callable[[], Result]) -> Result:
    """`function()`, in a thread that has ended when this returns; its result or error.

    An exception raised here meanwhile, as by a signal's handler, does not wait for it.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # the caller's, whatever it is
            future.set_exception(error)

    thread = threading.Thread(target=work, name="load", daemon=True)
    thread.start()
    thread.join()
    return future.result()
