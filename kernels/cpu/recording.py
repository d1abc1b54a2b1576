"""Replay of computations without Python between their ops: their library calls are recorded once and then repeated.

A recording consists of addresses and numbers. On replay a computation therefore reads its inputs from the same memory,
and writes its results to the same memory: a few buffers for each size of row, used in turn.
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

_NUM_BUFFERS = 8  # per size of row: a result is overwritten by the eighth result of its size after it
_VIEWS = {"view", "__getitem__", "contiguous", "float", "long"}  # may also copy, which is detected by the address
_QUESTIONS = {"__get__", "data_ptr", "stride", "is_contiguous"}

_NAMES = list(OPS)

Compute = Callable[[], Sequence[Tensor]]


class NotRecordable(Exception):
    """The computation does more than call compiled kernels, or uses a result after its buffer was overwritten."""


class Recorder:
    """Records computations of at most `max_rows` rows that never run at the same time and so share their buffers."""

    def __init__(self, library: Library, max_rows: int) -> None:
        self.library = library
        self._max_rows = max_rows
        self._buffers: dict[tuple[Any, ...], list[Tensor]] = {}
        self._next: dict[tuple[Any, ...], Iterator[Tensor]] = {}  # of the computation that is being recorded
        self._is_checked = False

    def __call__(self, compute: Compute) -> "Recording":
        """Run `compute` and return the recording of its calls, which holds the first results. Raises NotRecordable.

        Results are overwritten by the next ones, even of another recording made here. The first recording is verified,
        which costs two more computations; later ones are assumed to differ only in their number of rows.
        """
        expected = [] if self._is_checked else [result.clone() for result in compute()]
        calls: list[tuple[int, Sequence[Any]]] = []
        watch = _ViewsOnly()
        with self._recording(calls, watch), watch:
            results = compute()
        recording = Recording(self, compute, b"".join(itertools.starmap(_slots, calls)), len(calls), results)
        if not self._is_checked:
            if not (_equal(results, expected) and _equal(recording(), expected)):
                raise NotRecordable("replayed, the computation gives a different result")
            self._is_checked = True
        return recording

    @contextmanager
    def _recording(self, calls: list[tuple[int, Sequence[Any]]], watch: "_ViewsOnly") -> Iterator[None]:
        """Append this thread's calls of the library's ops to `calls`, and place their results in our buffers."""
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

        self._next.clear()
        with library.recording:
            own = {name: getattr(library, name) for name in (*OPS, "result")}
            library.use({name: noted(number, own[name]) for number, name in enumerate(OPS)} | {"result": result})
            try:
                yield
            finally:
                library.use(own)

    def _take(self, rows: int, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        key = (size, dtype)
        if key not in self._buffers:  # memory that no recording uses is never touched
            self._buffers[key] = [torch.empty(self._max_rows, *size, dtype=dtype) for _ in range(_NUM_BUFFERS)]
        if key not in self._next:
            self._next[key] = itertools.cycle(self._buffers[key])
        return next(self._next[key])[:rows]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded computation and its latest results."""

    recorder: Recorder  # keeps the result buffers alive
    compute: Compute  # keeps the inputs alive
    slots: bytes
    num_calls: int
    results: Sequence[Tensor]

    def __call__(self) -> Sequence[Tensor]:
        """Repeat the computation; returns `results`, overwritten."""
        self.recorder.library.replay(self.slots, self.num_calls)
        return self.results


class _ViewsOnly(TorchFunctionMode):
    """Raises NotRecordable when torch computes something, allocates, or reads a tensor's contents."""

    def __init__(self) -> None:
        super().__init__()
        self._is_aside = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Suspend the check, for what the recorder itself does with torch."""
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
        raise NotRecordable(f"{func.__name__} is not a compiled kernel")


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(itertools.starmap(torch.equal, zip(some, others, strict=True)))


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _slots(number: int, arguments: Sequence[Any]) -> bytes:
    """Encode one call as kernels.cpp's `replay` reads it: the op's number, then its arguments, 8 bytes each."""
    types = OPS[_NAMES[number]]
    values = (argument or 0 for argument in arguments)  # None is the null pointer
    return struct.pack("q" + "".join("d" if type_ is c_float else "q" for type_ in types), number, *values)
