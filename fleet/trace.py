"""`baton trace REQUEST_ID`: shows where a request spent its time, on a timeline of all processes involved."""

import argparse
import json
import sys
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleet import admin_client
from fleet.admin_client import AdminClient

_WIDTH = 150
_BAR = 36  # maximum width in characters
_TEXT = 84  # width of all other columns
_HIDDEN = {"attempt"}  # shown only if there was more than one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the request id and the flags."""
    parser.add_argument("request_id", help="the x-request-id of an answer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    admin_client.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the trace. Raises ConfigError if no router remembers the request."""
    trace = AdminClient.from_args(args).get(f"/admin/trace/{quote(args.request_id, safe='')}", "events")
    if args.json:
        print(json.dumps(trace, indent=2))
    else:
        show(trace, Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False))
    return 0


def show(trace: dict[str, Any], console: Console) -> None:
    """Print a trace as a table, one event per row."""
    facts = ", ".join(f"{name} {value}" for name, value in trace["attributes"].items() if value != "")
    over = "" if trace["complete"] else " so far"
    console.print(
        Text.assemble((f"{trace['name']}  ", "bold"), f"{1000 * trace['total_s']:.1f} ms{over}", (f"  {facts}", "dim"))
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("AT MS", "right"), ("TOOK MS", "right"), ("WHERE", "left"), ("WHAT", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type] # one of its literals
    width = max(0, min(_BAR, console.width - _TEXT))
    table.add_column("", no_wrap=True, min_width=width)
    table.add_column("")
    several = len({e["attributes"].get("attempt") for e in trace["events"] if e["name"] == "route"}) > 1
    for event in trace["events"]:
        table.add_row(*_row(event, trace["total_s"], set() if several else _HIDDEN, width))
    if trace["events"]:
        console.print(table)
    if trace["silent_nodes"]:
        console.print(f"No answer from {', '.join(trace['silent_nodes'])}: gone, or restarted since.", style="yellow")


def _row(event: dict[str, Any], total_s: float, hidden: set[str], width: int) -> tuple[str, str, str, Text, str, Text]:
    took_s = event["end_s"] - event["start_s"]
    details = {key: value for key, value in event["attributes"].items() if key not in hidden}
    return (
        f"{1000 * event['start_s']:.1f}",
        f"{1000 * took_s:.1f}" if took_s > 0 else "",
        event["where"].partition(".")[0],
        Text(event["name"], "bold"),
        _bar(event["start_s"], event["end_s"], total_s, width),
        Text(_details(details), "dim"),
    )


def _bar(start_s: float, end_s: float, total_s: float, width: int) -> str:
    """Draw the position of an event within the whole request."""
    if total_s <= 0 or width <= 0:
        return ""
    first, last = (min(max(round(width * at / total_s), 0), width) for at in (start_s, end_s))
    if last == first:
        at = min(first, width - 1)
        return " " * at + ("▏" if end_s <= start_s else "▎") + " " * (width - at - 1)
    return " " * first + "█" * (last - first) + " " * (width - last)


def _details(attributes: dict[str, Any]) -> str:
    return ", ".join(f"{name.removeprefix('num_')} {_value(name, value)}" for name, value in attributes.items())


def _value(name: str, value: Any) -> str:
    if name == "num_bytes":
        return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
    return str(value)
