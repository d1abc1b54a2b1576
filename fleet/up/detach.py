"""`baton up --detach`: runs the supervisor in its own session; the starter shows the start and returns its result.

The starter forks before any thread or event loop exists. The supervisor reports through a pipe until it is ready, and
afterwards writes to logs/supervisor.log.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from baton.errors import BatonError, ConfigError
from fleet.home import Home
from fleet.up.console import Piped, Plain, Reporter, for_terminal, replay

OnStart = Callable[[int], None]


def run(home: Home, supervise: Callable[[Reporter, OnStart], int]) -> int:
    """Run `supervise` in a new process; return the exit code of the start."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _be_supervisor(home, write, supervise)
    os.close(write)
    return _follow(home, child, read)


def _follow(home: Home, child: int, read: int) -> int:
    reporter = for_terminal(sys.stdout)
    try:
        with os.fdopen(read) as events:
            code = replay(events, reporter)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGINT)
        os.waitpid(child, 0)
        return 130
    finally:
        reporter.close()
    if code is None:  # it died without reporting a code
        raise ConfigError(f"the supervisor ended before the fleet was ready: see {home.logs / 'supervisor.log'}")
    return code


def _be_supervisor(home: Home, write: int, supervise: Callable[[Reporter, OnStart], int]) -> None:
    """Become the supervisor; never returns."""
    code = 1
    try:
        os.setsid()
        log = os.open(home.logs / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        reporter = Piped(os.fdopen(write, "w"), then=Plain(sys.stdout))
        try:
            code = supervise(reporter, reporter.finish)
        except BatonError as error:
            reporter.fail(error.message)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
