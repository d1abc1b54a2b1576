"""An item of the scorecard: its name, whether it is critical, and how to check it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fleet.scorecard.client import Client
from fleet.state import FleetState

SMALLEST_VOCABULARY = 256  # tokens that every model has


@dataclass(frozen=True)
class Result:
    """The result of a check; `unknown` if it could not be made, and the text then says how to make it."""

    verdict: Literal["pass", "fail", "unknown"]
    text: str


@dataclass(frozen=True)
class Context:
    """The fleet being checked. `local` and `logs` are set only for a fleet on this machine."""

    client: Client
    model: str
    local: FleetState | None = None
    logs: Path | None = None
    loadtest_report: Path | None = None
    destructive: bool = False


@dataclass(frozen=True)
class Item:
    """One of the twenty items."""

    name: str
    critical: bool
    check: Callable[[Context], Result]


def passed(text: str) -> Result:
    """Return the result of an item that holds."""
    return Result("pass", text)


def failed(text: str) -> Result:
    """Return the result of an item that does not hold."""
    return Result("fail", text)


def unknown(text: str) -> Result:
    """Return the result of an item that could not be checked."""
    return Result("unknown", text)


def when(holds: bool, good: str, bad: str) -> Result:
    """Return `passed(good)` if it holds, else `failed(bad)`."""
    return passed(good) if holds else failed(bad)
