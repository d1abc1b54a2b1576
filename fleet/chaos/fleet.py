"""The fleets of `baton chaos`: their interface, and local fleets, each with a BATON_HOME of its own.

The acts against them are in `acts` and `network`.
"""

import os
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from baton.errors import BatonError
from baton.net.failure import reason
from bench import _fleets
from fleet import state
from fleet.admin_client import AdminClient
from fleet.home import Home
from fleet.http_ask import scrape

_SCRAPE_TIMEOUT_S = 2.0
_PATIENCE_S = 30.0  # for services that are too busy to answer, or have just died
_HELD_BLOCKS = r'baton_kv_blocks\{[^}]*state="(?:running|leased)"[^}]*\}'
_REQUESTS = ("baton_requests_running", "baton_requests_waiting", "baton_router_requests_in_flight")
_FAILOVERS = r'baton_router_failovers_total\{(?![^}]*reason="refused")[^}]*\}'
_BLOCKS = r"baton_kv_blocks\{[^}]*\}"
_LEAKS = r"baton_kv_block_leaks_total(?:\{[^}]*\})?"


class PrivateFleet(ABC):
    """A running fleet that may be damaged."""

    def __init__(self, endpoint: str, model: str, token: str = "") -> None:
        """Take the endpoint, the served model, and the service token for scraping metrics."""
        self.endpoint, self.model, self.token = endpoint, model, token

    @property
    @abstractmethod
    def redis_url(self) -> str:
        """The URL of its Redis, with the password."""

    @abstractmethod
    def services(self, role: str = "") -> list[state.ProcessState]:
        """Return the services of a role, or all."""

    def is_whole(self, without: Set[int]) -> bool:
        """Return whether every service is ready, and none has a pid in `without`, whose processes were killed."""
        return all(process.state == "ready" and process.pid not in without for process in self.services())

    def signal(self, role: str, index: int, number: signal.Signals) -> int:
        """Signal a service's process group; return its pid."""
        services = self.services(role)
        pid = services[index % len(services)].pid
        if pid is None:
            raise BatonError(f"{role}-{index} is not running")
        os.killpg(pid, number)
        return pid

    def held(self) -> dict[str, tuple[int, int]]:
        """Return the KV blocks held and the requests known by each ready service. Raises OSError if one is silent."""
        return {
            name: (_sum(_HELD_BLOCKS, page), sum(_sum(rf"{metric}(?:\{{[^}}]*\}})?", page) for metric in _REQUESTS))
            for name, page in self._pages()
        }

    def num_failovers(self) -> int:
        """Return how many attempts failed and were repeated."""
        return sum(_sum(_FAILOVERS, page) for page in self._pages_of_all().values())

    def num_leaks(self) -> int:
        """Return how many leaked blocks the nodes report."""
        return sum(_sum(_LEAKS, page) for page in self._pages_of_all().values())

    def num_blocks(self) -> dict[str, int]:
        """Return the number of KV blocks of each service, in any state."""
        return {name: _sum(_BLOCKS, page) for name, page in self._pages_of_all().items() if "baton_kv_blocks" in page}

    def trace(self, request_id: str) -> dict[str, Any]:
        """Return a request's trace, as for `baton trace`. Raises BatonError if no router knows the request."""
        urls = [one.metrics.removesuffix("/metrics") for one in self.services("router") if one.metrics]
        return AdminClient(urls, self.token).get(f"/admin/trace/{quote(request_id, safe='')}", "events")

    def _pages_of_all(self) -> dict[str, str]:
        """Return the metrics page of each service; retries if one does not answer."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return dict(self._pages())
            except OSError as error:
                if time.monotonic() > until:
                    raise BatonError(f"a service does not answer on its metrics port: {reason(error)}") from None
                time.sleep(0.2)

    def _pages(self) -> Iterator[tuple[str, str]]:
        for process in self.services():
            if process.metrics and process.state == "ready":
                yield process.id, scrape(process.metrics, self.token, _SCRAPE_TIMEOUT_S)


class LocalFleet(PrivateFleet):
    """A fleet of `baton up`, whose processes are listed in its BATON_HOME."""

    def __init__(self, home: Path) -> None:
        self.home = Home(home)
        now = state.running(self.home)
        super().__init__(now.endpoint, now.served_model_name[0])

    @property
    def redis_url(self) -> str:
        """See `PrivateFleet`."""
        return state.running(self.home).redis_url

    def services(self, role: str = "") -> list[state.ProcessState]:
        """See `PrivateFleet`."""
        return [process for process in state.running(self.home).processes if role in ("", process.role)]


@contextmanager
def started(home: Path, *flags: str) -> Iterator[LocalFleet]:
    """Start a fleet on a free port with these flags of `baton up`; stop it afterwards."""
    with _fleets.started(home, *flags):
        yield LocalFleet(home)


def _sum(pattern: str, page: str) -> int:
    return round(sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", page, re.MULTILINE)))
