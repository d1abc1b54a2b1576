"""The verdict on a phase of `baton loadtest`: its checks with figures, and the data for plots."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """A condition of a phase, described with its figure."""

    passed: bool
    text: str


@dataclass
class Verdict:
    """The result of a phase."""

    name: str
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)  # of the ramp: figures of each level
    timeline: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, list[float]] = field(default_factory=dict)  # service -> bytes over time
    marks_s: list[float] = field(default_factory=list)  # times to mark in the timeline

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def check(self, passed: bool, text: str) -> None:
        """Add a check."""
        self.checks.append(Check(passed, text))
