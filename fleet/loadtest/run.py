"""A running load test: the fleet, the load, and the figures that later phases need from earlier ones."""

import itertools
import random
import time
from dataclasses import dataclass
from typing import Any

from bench._load import arrivals, workload
from bench._load.driver import Driver
from bench._load.figures import figures
from bench._load.sse_client import Stream
from bench._load.workload import Shape
from fleet.loadtest.site import Site

PHASES = {"baseline": 5.0, "ramp": 10.0, "sustained": 60.0, "overload": 15.0, "chaos": 10.0}  # shares of the time


@dataclass(frozen=True)
class Settings:
    """The load, and the duration of all phases together."""

    shape: Shape
    concurrency: int
    timeout_s: float
    total_s: float
    phases: tuple[str, ...] = tuple(PHASES)

    def seconds(self, name: str) -> float:
        """Return the duration of one phase."""
        return self.total_s * PHASES[name] / sum(PHASES[phase] for phase in self.phases)


class Run:
    """The state that the phases share."""

    def __init__(self, site: Site, settings: Settings) -> None:
        self.site, self.settings = site, settings
        self.normal_ttft_s = 0.0  # p95 of one request at a time
        self.peak: dict[str, Any] = {}  # figures at the target
        self._conversations = workload.conversations(settings.shape, random.Random())  # noqa: S311

    def driver(self) -> Driver:
        """Return a new driver."""
        return Driver(self.site.target, self.settings.timeout_s)

    async def closed(self, concurrency: int, seconds: float) -> tuple[list[Stream], float, float]:
        """Run a closed loop; return its streams, when it began, and how long it took."""
        driver, began_s = self.driver(), time.monotonic()
        await driver.closed(self._conversations, concurrency, began_s + seconds)
        return driver.streams, began_s, time.monotonic() - began_s

    async def open(self, rate: float, seconds: float) -> tuple[list[Stream], list[Stream], float]:
        """Run an open loop; return the streams that ended, those cut off at its end, and when it began."""
        driver, began_s = self.driver(), time.monotonic()
        due = itertools.takewhile(lambda at_s: at_s < seconds, arrivals.times(rate, 1.0, random.Random()))  # noqa: S311
        await driver.open(zip(due, self._conversations, strict=False), finish=False)
        return driver.streams, driver.hung_up, began_s

    async def need_normal(self) -> None:
        """Measure `normal_ttft_s`, if no earlier phase has."""
        if not self.normal_ttft_s:
            streams, _, took_s = await self.closed(1, 3.0)
            self.normal_ttft_s = figures(streams, took_s)["ttft_p95_s"]

    async def need_peak(self) -> None:
        """Measure `peak`, if no earlier phase has."""
        if not self.peak:
            streams, _, took_s = await self.closed(self.settings.concurrency, 5.0)
            self.peak = figures(streams, took_s)
