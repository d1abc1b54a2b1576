"""The fleets of `baton chaos`: what is asked of them, and those of this host, each in a BATON_HOME of its own.

What it leaves to others: what is done to them.
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
from bench import _fleets
from fleet import state
from fleet.admin_client import AdminClient
from fleet.home import Home
from fleet.metrics_page import scrape

_SCRAPE_TIMEOUT_S = 2.0
_PATIENCE_S = 30.0  # with services that are too busy to answer, or that died a moment ago
_HELD_BLOCKS = r'baton_kv_blocks\{[^}]*state="(?:running|leased)"[^}]*\}'
_REQUESTS = ("baton_requests_running", "baton_requests_waiting", "baton_router_requests_in_flight")
_FAILOVERS = r'baton_router_failovers_total\{(?![^}]*reason="refused")[^}]*\}'
_BLOCKS = r"baton_kv_blocks\{[^}]*\}"
_LEAKS = r"baton_kv_block_leaks_total(?:\{[^}]*\})?"


class PrivateFleet(ABC):
    """One that runs, and may be harmed."""

    def __init__(self, endpoint: str, model: str, token: str = "") -> None:
        """`token` is what scrapers need."""
        self.endpoint, self.model, self.token = endpoint, model, token

    @property
    @abstractmethod
    def redis_url(self) -> str:
        """Where its Redis is, password and all."""

    @abstractmethod
    def services(self, role: str = "") -> list[state.ProcessState]:
        """Those of a role, or all."""

    def is_whole(self, without: Set[int]) -> bool:
        """Whether every service is ready, and none of them is a process of `without`, which were killed."""
        return all(process.state == "ready" and process.pid not in without for process in self.services())

    def signal(self, role: str, index: int, number: signal.Signals) -> int:
        """Signal a service's process group; its pid."""
        services = self.services(role)
        pid = services[index % len(services)].pid
        if pid is None:
            raise BatonError(f"{role}-{index} does not run")
        os.killpg(pid, number)
        return pid

    def held(self) -> dict[str, tuple[int, int]]:
        """Service -> KV blocks held and requests known, of those that are ready. OSError where one does not answer."""
        return {
            name: (_sum(_HELD_BLOCKS, page), sum(_sum(rf"{metric}(?:\{{[^}}]*\}})?", page) for metric in _REQUESTS))
            for name, page in self._pages()
        }

    def num_failovers(self) -> int:
        """Attempts at requests that were lost with their nodes, and made again."""
        return sum(_sum(_FAILOVERS, page) for page in self._pages_of_all().values())

    def num_leaks(self) -> int:
        """Blocks that nodes themselves say are held by nobody."""
        return sum(_sum(_LEAKS, page) for page in self._pages_of_all().values())

    def num_blocks(self) -> dict[str, int]:
        """Service -> all of its KV blocks, whatever holds them."""
        return {name: _sum(_BLOCKS, page) for name, page in self._pages_of_all().items() if "baton_kv_blocks" in page}

    def trace(self, request_id: str) -> dict[str, Any]:
        """What `baton trace` shows of it. Raises BatonError where no router knows it."""
        urls = [one.metrics.removesuffix("/metrics") for one in self.services("router") if one.metrics]
        return AdminClient(urls, self.token).get(f"/admin/trace/{quote(request_id, safe='')}")

    def _pages_of_all(self) -> dict[str, str]:
        """By service; asked again where one does not answer."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return dict(self._pages())
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def _pages(self) -> Iterator[tuple[str, str]]:
        for process in self.services():
            if process.metrics and process.state == "ready":
                yield process.id, scrape(process.metrics, self.token, _SCRAPE_TIMEOUT_S)


class LocalFleet(PrivateFleet):
    """One of `baton up`, which says in its home what runs."""

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
    """A fleet with these flags of `baton up`, on any free port, which is gone afterwards."""
    with _fleets.started(home, *flags):
        yield LocalFleet(home)


def _sum(pattern: str, page: str) -> int:
    return round(sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", page, re.MULTILINE)))
