"""Runs a service process, from its flags to its exit code.

The first SIGTERM or SIGINT asks the service to drain, the second ends the process at once. A ConfigError is printed as
one line on stderr, with exit code 1. With BATON_DIE_WITH_PARENT set (to 1, or to the parent's process id) the process
ends when its parent does, however the parent died. What a drain means is up to the service.
"""

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

import uvloop

from baton.errors import ConfigError
from baton.process.config import add_flags, from_args
from baton.process.logs import log_to_stderr
from baton.process.settings import misspelt
from baton.process.threads import started_pool

Config = TypeVar("Config")
Loaded = TypeVar("Loaded")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1
_HARD_EXIT_S = 3.0  # how long clean-up may take after a second signal
_NUM_THREADS = 4  # in the event loop's default executor, for occasional blocking calls

_log = logging.getLogger(__name__)


class Shutdown:
    """Tells a service to drain or, by cancelling its task, to end at once."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None  # the service's task
        self._requested = asyncio.Event()
        self._parent = os.getppid()

    @property
    def requested(self) -> bool:
        """Whether a drain has begun."""
        return self._requested.is_set()

    async def wait(self) -> None:
        """Wait until a drain is requested."""
        await self._requested.wait()

    def request(self) -> None:
        """Handle a signal: request a drain at the first; end at the second, or at the first if the parent is dead."""
        orphaned = "BATON_DIE_WITH_PARENT" in os.environ and os.getppid() != self._parent
        if self.requested or orphaned:
            self._end_now()
        self._requested.set()

    def _end_now(self) -> None:
        if self.task is not None:
            self.task.cancel()
        watchdog = threading.Timer(_HARD_EXIT_S, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()


class _Stopped(BaseException):
    """Raised when a signal comes while the service is still loading."""


def main(
    prog: str,
    config_type: type[Config],
    load: Callable[[Config], Loaded],
    serve: Callable[[Config, Loaded, Shutdown], Awaitable[None]],
    argv: Sequence[str] | None = None,
    complete: Callable[[Config], Config] = lambda config: config,
) -> int:
    """Run a service and return its exit code.

    `complete` fills in the config, then `load` loads what the service needs, blocking the main thread; `serve` runs in
    the event loop.
    """
    parser = argparse.ArgumentParser(prog=prog, description=config_type.__doc__)
    add_flags(parser, config_type)
    args = parser.parse_args(argv)
    try:
        config = from_args(config_type, args)
        log_to_stderr(getattr(config, "log_level", "info"), getattr(config, "log_format", "text"))
        for warning in misspelt(os.environ):
            _log.warning(warning)
        return _run(config, complete, load, serve)
    except ConfigError as error:
        sys.stderr.write(f"{prog}: error: {error.message}\n")
        return 1
    except _Stopped:
        return 0


def die_with_parent() -> None:
    """Make Linux send this process SIGTERM when its parent dies, if the environment asks for it."""
    asked = os.environ.get("BATON_DIE_WITH_PARENT", "")
    if not asked or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if asked != "1" and os.getppid() != int(asked):  # the parent died before the call above
        raise _Stopped


def _run(
    config: Config,
    complete: Callable[[Config], Config],
    load: Callable[[Config], Loaded],
    serve: Callable[[Config, Loaded, Shutdown], Awaitable[None]],
) -> int:
    for number in _SIGNALS:
        signal.signal(number, _stop_loading)
    die_with_parent()
    config = complete(config)
    loaded = load(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, loaded, serve))


def _stop_loading(number: int, frame: FrameType | None) -> None:
    raise _Stopped


async def _serve(config: Config, loaded: Loaded, serve: Callable[[Config, Loaded, Shutdown], Awaitable[None]]) -> int:
    shutdown = Shutdown()
    task = shutdown.task = asyncio.ensure_future(serve(config, loaded, shutdown))
    loop = asyncio.get_running_loop()
    loop.set_default_executor(started_pool(_NUM_THREADS, "aside"))
    for number in _SIGNALS:
        loop.add_signal_handler(number, shutdown.request)
    try:
        await task
    except asyncio.CancelledError:
        _log.warning("ended without a drain")
        return 130
    except ConfigError:
        raise
    except Exception:  # an edge: the process ends, and its log says why
        _log.exception("service failed")
        return 2
    return 0
