"""`baton top`: the dashboard in a terminal, updated every second; `--once` prints it once, for pipes and programs."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baton.errors import BatonError
from baton.process.bounds import real
from fleet import admin_client
from fleet.admin_client import AdminClient
from fleet.fitting_table import Column, fitting

_PATH, _KEY = "/admin/fleet", "bottleneck"
_WIDTH = 150  # if the output is not a terminal
_SPARKS = "▁▂▃▄▅▆▇█"
_NUM_SPARKS = 40
_COLORS = {"prefill": "dark_orange", "decode": "deep_sky_blue3", "router": "medium_purple"}
_STATES = {"ready": "green", "draining": "yellow", "starting": "yellow", "stuck": "red", "lost": "red"}
_VERDICTS = {"none": "green", "prefill": "dark_orange", "decode": "deep_sky_blue3", "down": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the router to query and the interval."""
    parser.add_argument("--once", action="store_true", help="print the dashboard once and exit")
    parser.add_argument(
        "--interval", type=real(0, 3600), default=1.0, metavar="S", help="seconds between updates (default: 1)"
    )
    admin_client.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show the dashboard until Ctrl-C; once with --once, or if the output is not a terminal."""
    last, stale = AdminClient.from_args(args).get(_PATH, _KEY), ""  # an error at the start ends the command
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    if args.once or not sys.stdout.isatty():
        console.print(render(last, console))
        return 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(Group(Text(stale, "red"), render(last, console)), refresh=True)
            time.sleep(max(args.interval, 0.2))
            last, stale = look(args, last)


def look(args: argparse.Namespace, last: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the present report and ""; if no router answers, the last report and a message that says why."""
    try:
        return AdminClient.from_args(args).get(_PATH, _KEY), ""
    except BatonError as error:
        return last, f"Out of date: {error.message}. Retrying."


def render(fleet: dict[str, Any], console: Console) -> RenderableType:
    """Render a report of `/admin/fleet`."""
    verdict = fleet["bottleneck"]
    models = ", ".join(fleet["models"])
    redis = "" if fleet["redis"]["answers"] else "   Redis does not answer"
    return Group(
        Text.assemble(("Baton ", "bold"), models, (redis, "red")),
        Text.assemble(("● ", _VERDICTS[verdict["pool"]]), verdict["words"]),
        Text(""),
        _now(fleet["now"], fleet["history"], console.width),
        Text(""),
        _services(fleet, console),
        _transfers(fleet["transfers"]),
    )


def _now(now: dict[str, Any], history: dict[str, Any], width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    hits, percentiles = now["cache_hit_ratio"], "p50 / p95 / p99"
    rows = [
        ("requests/s", f"{now['requests_per_s']:.1f}", history["requests_per_s"]),
        ("output tok/s", f"{now['output_tokens_per_s']:.0f}", history["output_tokens_per_s"]),
        (f"TTFT ms, {percentiles}", _percentiles(now["ttft_ms"]), [row[0] for row in history["ttft_ms"]]),
        (f"TPOT ms, {percentiles}", _percentiles(now["tpot_ms"]), [row[0] for row in history["tpot_ms"]]),
        ("cache hits", "-" if hits is None else f"{hits:.0%}", []),
        ("errors/s", f"{now['errors_per_s']:.2f} ({now['refused_per_s']:.2f} refused)", history["errors_per_s"]),
    ]
    taken = sum(max(len(row[i]) for row in rows) + 2 for i in (0, 1))
    for name, value, column in rows:
        table.add_row(Text(name, "dim"), Text(value, "bold"), Text(sparks(column, width - taken), "dim"))
    return table


_SERVICES: tuple[Column, ...] = (
    *((name, "left") for name in ("NODE", "STATE", "", "KV")),
    *((n, "right") for n in ("RUN", "WAIT", "OUT TOK/S", "PROMPT TOK/S", "HITS", "STEP MS", "PREEMPT/MIN", "EPOCH")),
)
_LEAST = (11, 2, 10, 7, 8, 9, 6)  # columns omitted on narrow terminals, in this order: first the epoch, then the bar


def _services(fleet: dict[str, Any], console: Console) -> Table:
    rows = [*map(_router, fleet["routers"]), *map(_node, fleet["nodes"])]
    return fitting(console, _SERVICES, rows, _LEAST)


def _router(router: dict[str, Any]) -> list[RenderableType]:
    state = router["state"] if router["answers"] else "lost"
    in_flight, waiting, rate = (router.get(key) for key in ("num_in_flight", "num_waiting", "requests_per_s"))
    name, throughput = _name(router["node_id"], "router"), "-" if rate is None else f"{rate:.1f} req/s"
    return [name, Text(state, _STATES.get(state, "")), "", "", _text(in_flight), _text(waiting), throughput, *[""] * 5]


def _node(node: dict[str, Any]) -> list[RenderableType]:
    hits = node["cache_hit_ratio"]
    return [
        _name(node["node_id"], node["role"]),
        Text(node["state"], _STATES.get(node["state"], "")),
        Text(_bar(node["kv_usage"]), _COLORS.get(node["role"], "")),
        f"{node['kv_usage']:.0%}",
        str(node["num_running"]),
        str(node["num_waiting"]),
        f"{node['output_tokens_per_s']:.0f}",
        f"{node['prompt_tokens_per_s']:.0f}",
        "-" if hits is None else f"{hits:.0%}",
        f"{node['step_ms']:.1f}",
        f"{node['preemptions_per_min']:.0f}",
        str(node["epoch"]),
    ]


def _transfers(transfers: Sequence[dict[str, Any]]) -> Text:
    if not transfers:
        return Text("no recent KV transfers", "dim")
    links = (f"{t['prefill']} → {t['decode']} {t['bytes_per_s'] / 1e6:.2f} MB/s" for t in transfers)
    return Text("KV  " + "   ".join(links), "dim")


def sparks(column: Sequence[float | None], width: int = _NUM_SPARKS) -> str:
    """Draw the last values as a row of bars, with blanks for missing values."""
    values = list(column)[-min(width, _NUM_SPARKS) :] if width > 0 else []
    top = max((value for value in values if value), default=0)
    if not top:
        return ""
    return "".join(" " if v is None else _SPARKS[round((len(_SPARKS) - 1) * v / top)] for v in values)


def _percentiles(values: Sequence[float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:g}" for value in values)


def _bar(share: float, width: int = 16) -> str:
    full = round(share * width)
    return "█" * full + "░" * (width - full)


def _name(node_id: str, role: str) -> Text:
    return Text.assemble(("▌", _COLORS.get(role, "")), node_id.partition(".")[0])


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
