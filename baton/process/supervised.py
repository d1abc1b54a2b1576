"""What a service reports to its supervisor: lines on standard output, which `fleet.up.process` reads."""

import sys
from typing import Any

import msgspec


def say_progress(fraction: float) -> None:
    """Report how much of the service has loaded, from 0 to 1."""
    _say(f"progress {fraction:.2f}")


def say_ready(facts: dict[str, Any]) -> None:
    """Report that the service is ready; `facts` are its id, addresses and the like."""
    _say(f"ready {msgspec.json.encode(facts).decode()}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
