"""The running requests, oldest first, each with a row; and those that left while steps with them were under way.

A request that leaves keeps its row until those steps have landed (`let_go`), because they still write for it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engine.request import Request, RequestState
from engine.rows import Rows


class Running:
    """The running requests. Only this class takes rows and gives them back."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._requests: list[Request] = []
        self._newcomers: list[Request] = []
        self._ordered: tuple[list[Request], NDArray[np.int64]] | None = None
        self._departing: dict[int, Request] = {}  # by id(): in no further step, but in one under way

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def in_order(self) -> tuple[list[Request], NDArray[np.int64]]:
        """The requests and their rows [B]. Cached while they do not change, so the caller must not modify them."""
        if self._ordered is None:
            row = np.fromiter((request.row for request in self._requests), np.int64, len(self._requests))
            self._ordered = list(self._requests), row
        return self._ordered

    def from_latest(self, place: int) -> Iterator[Request]:
        """Yield the requests from the latest down to the one at that place."""
        return reversed(self._requests[place:])

    def add(self, request: Request) -> None:
        """Include a request, which has its blocks, in steps from now on."""
        request.state = RequestState.RUNNING
        self._rows.take(request)
        self._requests.append(request)
        self._newcomers.append(request)
        self._ordered = None

    def take_newcomers(self) -> list[Request]:
        """Return the requests that have begun to run since the last call, including preempted ones that resumed."""
        newcomers, self._newcomers = self._newcomers, []
        return newcomers

    def depart(self, request: Request) -> None:
        """Exclude a request whose last step is under way from further steps. `stop` follows when that has landed."""
        self._leave(request)
        self._departing[id(request)] = request

    def stop(self, request: Request) -> None:
        """Give the row back, now or when the steps under way have landed; their results for it are dropped."""
        if self._departing.pop(id(request), None) is None:
            self._leave(request)
        if self._rows.num_pending[request.row]:
            self._rows.has_left[request.row] = True
            self._departing[id(request)] = request
        else:
            self._rows.give_back(request)

    def departing(self) -> Iterator[Request]:
        """Yield the requests that have stopped running, but that steps under way still write for."""
        return iter(self._departing.values())

    def is_departing(self, request: Request) -> bool:
        """Whether the request is one of `departing`."""
        return id(request) in self._departing

    def let_go(self) -> list[Request]:
        """After a step has landed: free the rows of departing requests that no step needs, and return these."""
        over = [request for request in self._departing.values() if not self._rows.num_pending[request.row]]
        for request in over:
            del self._departing[id(request)]
            self._rows.give_back(request)
        return over

    def _leave(self, request: Request) -> None:
        self._requests.remove(request)
        self._ordered = None
