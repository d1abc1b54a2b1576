"""What an item of the scorecard is: a name, whether a fleet can go without it, and how to check it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fleet.scorecard.client import Client
from fleet.state import FleetState

SMALLEST_VOCABULARY = 256  # tokens that every model has


@dataclass(frozen=True)
class Result:
    """`unknown` could not be checked; the text says what is missing."""

    verdict: Literal["pass", "fail", "unknown"]
    text: str


@dataclass(frozen=True)
class Context:
    """The fleet under examination. `local` and `logs` are there for a fleet of this machine."""

    client: Client
    model: str
    local: FleetState | None = None
    logs: Path | None = None
    admin: str = ""
    loadtest_report: Path | None = None
    destructive: bool = False


@dataclass(frozen=True)
class Item:
    """One of the twenty."""

    name: str
    critical: bool
    check: Callable[[Context], Result]


def passed(text: str) -> Result:
    """It holds."""
    return Result("pass", text)


def failed(text: str) -> Result:
    """It does not."""
    return Result("fail", text)


def unknown(text: str) -> Result:
    """Nobody has looked."""
    return Result("unknown", text)


def when(holds: bool, good: str, bad: str) -> Result:
    """One or the other."""
    return passed(good) if holds else failed(bad)
