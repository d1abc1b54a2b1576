"""What `baton doctor` finds: one line each, with what to do about it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`broken` is something a fleet cannot do without; `warning` costs speed or a feature."""

    level: Literal["ok", "warning", "broken"]
    name: str
    text: str
    advice: str = ""


def ok(name: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", name, text)


def warning(name: str, text: str, advice: str) -> Finding:
    """Works, with a loss."""
    return Finding("warning", name, text, advice)


def broken(name: str, text: str, advice: str) -> Finding:
    """A fleet cannot run."""
    return Finding("broken", name, text, advice)
