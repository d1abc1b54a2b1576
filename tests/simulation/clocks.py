"""Puts the clock of the simulated loop in place of the machine's clocks."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from tests.simulation.loop import current_process

WALL_S = 1e9


def replace_clocks(now: Callable[[], float], rooms: Sequence[str], stack: contextlib.ExitStack) -> None:
    """`time` as a module, and as the default of a parameter."""
    real = time.monotonic
    for name in ("monotonic", "perf_counter", "time"):
        stack.enter_context(mock.patch.object(time, name, now))
    stack.enter_context(mock.patch.object(time, "time_ns", _in_nanoseconds(now)))
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] in rooms]:
        for kind in [value for value in vars(module).values() if isinstance(value, type)]:
            _replace_defaults(stack, kind, real, now)


def _in_nanoseconds(clock: Callable[[], float]) -> Callable[[], int]:
    """Of the wall clock, which began long ago, and may be wrong."""
    return lambda: int((clock() + WALL_S + current_process().clock_error_s) * 1e9)


def _replace_defaults(stack: contextlib.ExitStack, kind: type, old: Any, new: Any) -> None:
    """Of the parameters of a class."""
    function = vars(kind).get("__init__")
    defaults = getattr(function, "__defaults__", None)
    if defaults and old in defaults:
        replaced = tuple(new if value == old else value for value in defaults)
        stack.enter_context(mock.patch.object(function, "__defaults__", replaced))
