"""Servers that are measured in turns, so that what a machine does in the meantime meets all of them."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from bench import _command


class Named(Protocol):
    """What is measured."""

    @property
    def name(self) -> str:
        """For the bar."""


AnyNamed = TypeVar("AnyNamed", bound=Named)


def in_turns(servers: Sequence[AnyNamed], rounds: int) -> Iterator[AnyNamed]:
    """Each of them in every round; a terminal sees how far it has come."""
    with _command.progress() as progress:
        task = progress.add_task("", total=rounds * len(servers))
        for _ in range(rounds):
            for server in servers:
                progress.update(task, description=server.name)
                yield server
                progress.advance(task)
