"""Memory of a fleet's processes during `baton chaos`. Incarnations that do not live long are not judged."""

import contextlib
from collections import defaultdict

import psutil

from fleet.memory import Growth, growth, resident_bytes
from fleet.state import ProcessState


class Memory:
    """Memory samples for each incarnation of a service."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, int], list[float]] = defaultdict(list)  # bytes

    def sample(self, services: list[ProcessState]) -> None:
        """Take a sample of all services."""
        for service in services:
            with contextlib.suppress(psutil.Error):
                if service.pid is not None and service.state == "ready":
                    size = resident_bytes(service.pid)
                    self.samples[service.id, service.pid].append(size)

    def growth(self) -> list[tuple[str, Growth]]:
        """Return the growth of each incarnation that lived long enough."""
        growths = ((name, growth(samples)) for (name, _), samples in sorted(self.samples.items()))
        return [(name, grown) for name, grown in growths if grown is not None]

    def grown(self) -> list[str]:
        """Return a line for each service that grew too much."""
        return [
            f"{name} grew from {_mib(grown.before)} to {_mib(grown.after)}"
            for name, grown in self.growth()
            if grown.is_too_much
        ]

    def described(self) -> list[str]:
        """Return a line for each entry of `growth`."""
        return [f"{name}: {_mib(grown.before)}, at the end {_mib(grown.after)}" for name, grown in self.growth()]


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
