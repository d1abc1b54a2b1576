"""Computations without Python between their ops: the calls that they make are kept once, and made again.

What is kept are addresses and numbers. So a computation that is to be made again reads its inputs where they lay, and
its results come to lie where they lay: in a few buffers for each size of row, taken in turn.
"""

import itertools
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_float
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kernels.cpu.library import OPS, Library

_NUM_BUFFERS = 8  # of one size: a result is overwritten when so many others of its size have come
_VIEWS = {"view", "__getitem__", "contiguous", "float", "long"}  # or copies, which are found out
_QUESTIONS = {"__get__", "data_ptr", "stride", "is_contiguous"}

_NAMES = list(OPS)

Compute = Callable[[], Tensor]


class NotRecordable(Exception):
    """The computation takes more than compiled kernels, or its results live too long."""


class Recorder:
    """Of computations that never run at the same time, of at most `max_rows` rows: they share their buffers."""

    def __init__(self, library: Library, max_rows: int) -> None:
        self.library = library
        self._max_rows = max_rows
        self._buffers: dict[tuple[Any, ...], Iterator[Tensor]] = {}
        self._is_checked = False

    def __call__(self, compute: Compute) -> "Recording":
        """What makes the calls of `compute` again; the first result is there. Raises NotRecordable.

        Each result is overwritten by the next, also of others that are recorded here. The first recording is checked,
        which costs computing it twice more: what comes later differs in its number of rows.
        """
        expected = None if self._is_checked else compute().clone()
        calls: list[tuple[int, Sequence[Any]]] = []
        watch = _ViewsOnly()
        with self._recording(calls, watch), watch:
            result = compute()
        recording = Recording(self, compute, b"".join(itertools.starmap(_slots, calls)), len(calls), result)
        if expected is not None:
            if not torch.equal(result, expected) or not torch.equal(recording(), expected):
                raise NotRecordable("computed again, it is something else")
            self._is_checked = True
        return recording

    @contextmanager
    def _recording(self, calls: list[tuple[int, Sequence[Any]]], watch: "_ViewsOnly") -> Iterator[None]:
        """The library's ops, called by this thread, are noted; and it has results lie in our buffers."""
        library, thread = self.library, threading.get_ident()

        def noted(number: int, op: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: Any) -> None:
                op(*arguments)
                if threading.get_ident() == thread:
                    calls.append((number, arguments))

            return call

        def result(rows: int, *size: int, dtype: torch.dtype) -> Tensor:
            if threading.get_ident() == thread:
                with watch.aside():
                    return self._take(rows, size, dtype)
            return torch.empty(rows, *size, dtype=dtype)

        with library.recording:
            own = {name: getattr(library, name) for name in (*OPS, "result")}
            library.use({name: noted(number, own[name]) for number, name in enumerate(OPS)} | {"result": result})
            try:
                yield
            finally:
                library.use(own)

    def _take(self, rows: int, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        buffers = self._buffers.get((size, dtype))
        if buffers is None:
            made = [torch.empty(self._max_rows, *size, dtype=dtype) for _ in range(_NUM_BUFFERS)]
            buffers = self._buffers[size, dtype] = itertools.cycle(made)
        return next(buffers)[:rows]


@dataclass(frozen=True, slots=True)
class Recording:
    """A computation, and its latest result."""

    recorder: Recorder  # holds the results
    compute: Compute  # holds the inputs
    slots: bytes
    num_calls: int
    result: Tensor

    def __call__(self) -> Tensor:
        """Compute it again."""
        self.recorder.library.replay(self.slots, self.num_calls)
        return self.result


class _ViewsOnly(TorchFunctionMode):
    """Raises NotRecordable when torch computes something, allocates, or tells what a tensor holds."""

    def __init__(self) -> None:
        super().__init__()
        self._is_aside = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done meanwhile is our own."""
        self._is_aside = True
        try:
            yield
        finally:
            self._is_aside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (
            self._is_aside
            or func.__name__ in _QUESTIONS
            or (func.__name__ in _VIEWS and _memory(result) == _memory(args[0]))
        ):
            return result
        raise NotRecordable(f"{func.__name__} is no compiled kernel")


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _slots(number: int, arguments: Sequence[Any]) -> bytes:
    """As kernels.cpp's `replay` reads them."""
    types = OPS[_NAMES[number]]
    values = (argument or 0 for argument in arguments)  # None is the null pointer
    return struct.pack("q" + "".join("d" if type_ is c_float else "q" for type_ in types), number, *values)
