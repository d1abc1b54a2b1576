"""`baton doctor`: checks what this machine offers a fleet, and says how to fix what is missing.

The exit code is 1 if something that a fleet requires is broken. The checks themselves are in `compute` and `network`.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from baton.process.config import add_flags, flag, from_args
from baton.process.settings import MAX_PORT, TRANSPORTS
from fleet.doctor import compute, network
from fleet.doctor.finding import Finding
from fleet.home import Home

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "broken": "[red]✗[/]"}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """The flags of `baton up` that the checks depend on."""

    model: str = flag("", "model to serve", metavar="DIR|HF_ID")
    host: str = flag("127.0.0.1", "address to listen on")
    port: int = flag(8000, "HTTP port", most=MAX_PORT)
    redis_url: str = flag("", "an existing Redis")
    transport: str = flag("auto", "KV transport", choices=TRANSPORTS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of DoctorConfig, and --json."""
    add_flags(parser, DoctorConfig)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the checks and print each finding; return the exit code."""
    findings = []
    console = Console()
    for finding in examine(from_args(DoctorConfig, args)):
        findings.append(finding)
        if not args.json:
            console.print(f"{_MARKS[finding.level]} [bold]{finding.name:<12}[/]", end=" ")
            console.print(finding.text, markup=False, highlight=False, soft_wrap=True)
            if finding.advice:
                advice = f"               → {finding.advice}"
                console.print(advice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    return 1 if any(finding.level == "broken" for finding in findings) else 0


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """Run the checks one after another, yielding their findings."""
    home = Home.from_env()
    yield compute.python()
    yield compute.memory()
    yield network.open_files()
    yield network.home(home)
    yield network.port(config.host, config.port, home)
    yield network.redis(config.redis_url)
    yield network.ucx()
    yield compute.torch()
    yield compute.kernels()
    yield compute.gpu()
    yield network.transport(config.transport)
    yield compute.checkpoint(config.model)
