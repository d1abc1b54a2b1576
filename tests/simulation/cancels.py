"""Cancellation at every await: each call of a coroutine is cancelled from another one of its suspensions on."""

import contextlib
import itertools
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any
from unittest import mock


class _Cancelled:
    """Awaits a coroutine; `cancel` is called when it is suspended for the `number`th time, and each time after that."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, cancel: Callable[[], object]) -> None:
        self._coroutine, self._number, self._cancel = coroutine, number, cancel

    def __await__(self) -> Generator[Any, Any, Any]:
        walk = self._coroutine.__await__()
        step: Callable[[], Any] = lambda: walk.send(None)  # noqa: E731
        for number in itertools.count(1):
            try:
                waited = step()
            except StopIteration as end:
                return end.value
            if number >= self._number:
                self._cancel()
            try:
                yield waited
            except BaseException as error:
                step = lambda error=error: walk.throw(error)  # noqa: E731
            else:
                step = lambda: walk.send(None)  # noqa: E731


class Cancels:
    """Of the coroutine `name` of a class: its first call from the first suspension on, the next from the second, and so
    on. With the call that ends before that it begins anew.
    """

    def __init__(self, kind: type, name: str, cancel: Callable[..., object]) -> None:
        """`cancel` gets what the call got."""
        self.numbers: list[int] = []  # of the suspensions from which on a call was cancelled
        self._kind, self._name, self._cancel = kind, name, cancel
        self._next = 1

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """As long as it lasts."""
        original = getattr(self._kind, self._name)

        async def call(owner: Any, *args: Any) -> Any:
            number, is_cancelled = self._next, False
            self._next += 1

            def cancel() -> None:
                nonlocal is_cancelled
                is_cancelled = True
                self._cancel(owner, *args)

            try:
                return await _Cancelled(original(owner, *args), number, cancel)
            finally:
                if is_cancelled:
                    self.numbers.append(number)
                else:
                    self._next = 1

        with mock.patch.object(self._kind, self._name, call):
            yield
