"""Memory of a fleet's processes during `baton chaos`, by incarnation: those that do not live long are not judged."""

import contextlib
from collections import defaultdict

import psutil

from fleet.memory import Growth, growth, resident_bytes
from fleet.state import ProcessState


class Memory:
    """Samples per incarnation of a service."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, int], list[float]] = defaultdict(list)  # bytes

    def sample(self, services: list[ProcessState]) -> None:
        """Look at all of them now."""
        for service in services:
            with contextlib.suppress(psutil.Error):
                if service.pid is not None and service.state == "ready":
                    size = resident_bytes(service.pid)
                    self.samples[service.id, service.pid].append(size)

    def growth(self) -> list[tuple[str, Growth]]:
        """Of those that lived long enough."""
        found = ((name, growth(samples)) for (name, _), samples in sorted(self.samples.items()))
        return [(name, grown) for name, grown in found if grown is not None]

    def grown(self) -> list[str]:
        """A line for each service that takes more and more."""
        return [
            f"{name} grew from {_mib(grown.before)} to {_mib(grown.after)}"
            for name, grown in self.growth()
            if grown.is_too_much
        ]

    def described(self) -> list[str]:
        """A line for each of `growth`."""
        return [f"{name}: {_mib(grown.before)}, in the end {_mib(grown.after)}" for name, grown in self.growth()]


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
