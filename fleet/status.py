"""`baton status`: shows the nodes of the running fleet, from the supervisor's fleet.json and Redis' registry.

fleet.json lists the processes, the registry has their load. Without Redis only the load is unknown. If the supervisor
is frozen or cannot write, for example because the disk is full, the output says how old its list of processes is.
"""

import argparse
import asyncio
import json
import sys
from typing import Any

from rich.console import Console

from baton.net import redis_client
from baton.net.registry import NodeRecord, list_nodes
from fleet import state
from fleet.fitting_table import Column, fitting
from fleet.home import Home

_REDIS_TIMEOUT_S = 0.25
_WIDTH = 160  # if the output is not a terminal
_OLD_S = 10.0  # the supervisor confirms fleet.json every two seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the status."""
    home = Home.from_env()
    fleet = state.running(home)
    status = describe(fleet, asyncio.run(_records(fleet.redis_url)), state.age_s(home))
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        _show(status, home, Console(width=None if sys.stdout.isatty() else _WIDTH))
    return 0


def describe(fleet: state.FleetState, records: list[NodeRecord] | None, age_s: float = 0.0) -> dict[str, Any]:
    """Return the output of `baton status --json`; `records` is None if Redis did not answer.

    `age_s` is the age of `fleet`.
    """
    by_pid = {record.pid: record for record in records or ()}
    redis = next((p for p in fleet.processes if p.role == "redis"), None)
    return {
        "endpoint": fleet.endpoint,
        "state": fleet.state,
        "model": fleet.model,
        "served_model_name": list(fleet.served_model_name),
        "nodes": [
            _node(p, by_pid.get(p.pid or 0), others_are_heard=bool(records))
            for p in fleet.processes
            if p.role != "redis"
        ],
        "redis": {"pid": redis.pid if redis else None, "answers": records is not None},
        "supervisor": {"pid": fleet.pid, "age_s": round(age_s, 1)},
    }


async def _records(url: str) -> list[NodeRecord] | None:
    redis = redis_client.connect(url, timeout_s=_REDIS_TIMEOUT_S)
    try:
        return await list_nodes(redis)
    except redis_client.REDIS_ERRORS:
        return None
    finally:
        await redis.aclose()


def _node(process: state.ProcessState, record: NodeRecord | None, *, others_are_heard: bool) -> dict[str, Any]:
    node: dict[str, Any] = {
        "id": process.id,
        "role": process.role,
        "pid": process.pid,
        "state": process.state,
        "epoch": process.epoch,
        "address": process.address,
        "metrics": process.metrics,
        "kv_usage": None,
        "running": None,
        "waiting": None,
        "restarts": process.restarts,
    }
    if record is None:
        if others_are_heard and process.state == "ready":
            node["state"] = "silent"  # frozen, or cut off from Redis: it does not renew its registration
        return node
    node |= {"epoch": record.epoch, "address": record.address, "metrics": record.metrics_url or process.metrics}
    node |= {"running": record.num_running, "waiting": record.num_waiting, "num_blocks": record.num_blocks}
    if process.state == "ready":
        node["state"] = record.state
    if record.num_blocks:
        node["kv_usage"] = round(1 - record.num_free_blocks / record.num_blocks, 4)
    return node


_COLUMNS = ("id", "role", "pid", "state", "epoch", "address", "kv_usage", "running", "waiting")
_LEAST = (4, 5, 2, 1)  # columns omitted on narrow terminals, in this order


def _show(status: dict[str, Any], home: Home, console: Console) -> None:
    columns: list[Column] = [
        (column.replace("_", " ").upper(), "left" if column in _COLUMNS[:6] else "right") for column in _COLUMNS
    ]
    rows = [[_cell(column, node[column]) for column in _COLUMNS] for node in status["nodes"]]
    does = "serves" if status["state"] == "ready" else f"is {status['state']}:"
    console.print(f"{status['endpoint']}/v1 {does} {', '.join(status['served_model_name'])}", highlight=False)
    console.print(fitting(console, columns, rows, _LEAST))
    if (age_s := status["supervisor"]["age_s"]) > _OLD_S:
        console.print(
            f"The list of processes is {_duration(age_s)} old: the supervisor (process {status['supervisor']['pid']}) "
            f"is frozen, or cannot write to {home.path}.",
            style="yellow",
            soft_wrap=True,
        )
    if not status["redis"]["answers"]:
        console.print("Redis does not answer: load is unknown, and new nodes are not found.", style="yellow")


def _duration(seconds: float) -> str:
    for unit, length_s in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if column == "kv_usage" else str(value)
