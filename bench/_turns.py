"""Measures servers in turns, so that disturbances of the machine affect all of them."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from bench import _command


class Named(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str:
        """The name shown in the progress bar."""


AnyNamed = TypeVar("AnyNamed", bound=Named)


def in_turns(servers: Sequence[AnyNamed], rounds: int) -> Iterator[AnyNamed]:
    """Yield each server in every round; show progress on a terminal."""
    with _command.progress() as progress:
        task = progress.add_task("", total=rounds * len(servers))
        for _ in range(rounds):
            for server in servers:
                progress.update(task, description=server.name)
                yield server
                progress.advance(task)
