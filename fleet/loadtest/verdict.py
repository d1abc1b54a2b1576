"""What became of a phase of `baton loadtest`: what had to hold, with figures, and what reports draw."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that has to hold, with the figure."""

    passed: bool
    text: str


@dataclass
class Verdict:
    """What became of a phase."""

    name: str
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)  # of ramp: figures of each level
    timeline: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, list[float]] = field(default_factory=dict)  # service -> bytes over time
    marks_s: list[float] = field(default_factory=list)  # moments to mark in the timeline

    @property
    def passed(self) -> bool:
        """Whether everything held."""
        return all(check.passed for check in self.checks)

    def check(self, passed: bool, text: str) -> None:
        """One more thing that had to hold."""
        self.checks.append(Check(passed, text))
