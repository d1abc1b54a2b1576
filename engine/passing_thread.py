"""Run a function on a thread that then ends: for parallel work before the first step.

libgomp keeps a team of workers for every thread that has ever computed in parallel. If the team of the thread that
loaded the model stayed around, there would be more workers than cores, even though it is idle. libgomp then assumes
that the machine is oversubscribed, and lets workers sleep at each of the hundred barriers of a step. A thread that ends
takes its team with it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def run(function: Callable[[], Result]) -> Result:
    """Run `function` on a thread of its own, which has ended on return; return its result, or raise its error.

    An exception that is raised in the caller meanwhile, as by a signal handler, does not wait for the function.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # passed on to the caller, whatever it is
            future.set_exception(error)

    thread = threading.Thread(target=work, name="load", daemon=True)
    thread.start()
    thread.join()
    return future.result()
