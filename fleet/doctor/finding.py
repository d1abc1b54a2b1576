"""The findings of `baton doctor`: one line each, with advice."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A finding. `broken`: a fleet cannot run; `warning`: it is slower or lacks a feature."""

    level: Literal["ok", "warning", "broken"]
    name: str
    text: str
    advice: str = ""


def ok(name: str, text: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding("ok", name, text)


def warning(name: str, text: str, advice: str) -> Finding:
    """Return a finding that costs speed or a feature."""
    return Finding("warning", name, text, advice)


def broken(name: str, text: str, advice: str) -> Finding:
    """Return a finding that keeps a fleet from running."""
    return Finding("broken", name, text, advice)
