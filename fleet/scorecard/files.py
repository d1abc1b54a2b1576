"""Items of the scorecard about operations: metrics, alerts, dashboards, headroom, load tests."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fleet.http_ask import scrape
from fleet.scorecard.item import Context, Item, Result, failed, passed, unknown, when

DEPLOY = Path(__file__).parents[2] / "deploy"
_OF_ROUTERS = ("baton_requests_total", "baton_time_to_first_token_seconds", "baton_time_per_output_token_seconds")
_OF_NODES = ("baton_requests_running", "baton_requests_waiting", "baton_kv_blocks", "baton_kv_usage_ratio")
_TIMEOUT_S = 3.0
_MAX_AGE_S = 30 * 86400
_MAX_KV_USAGE = 0.85
_MIN_MEMORY = 0.1
_ALERT, _RUNBOOK = re.compile(r"^\s*- alert: (\S+)", re.MULTILINE), re.compile(r"runbook_url: .*/([\w.-]+)")


def metrics_are_there(context: Context) -> Result:
    """Check the metrics of the router, and of each node of a local fleet."""
    page = context.client.ask("GET", "/metrics")
    lacking = [name for name in _OF_ROUTERS if page.status != 200 or f"{name}".encode() not in page.body]
    num_nodes = 0
    for text in _node_pages(context):
        num_nodes += 1
        lacking += [name for name in _OF_NODES if name not in text]
    if lacking:
        return failed(f"not on the metrics pages: {', '.join(sorted(set(lacking)))}")
    nodes = f"and {num_nodes} nodes expose" if num_nodes else "exposes"
    unseen = "" if num_nodes else "; its nodes are not local, so they were not checked"
    return passed(f"the router {nodes} the metrics that alerts use{unseen}")


def alerts_lead_somewhere(context: Context) -> Result:
    """Check that alert rules exist, and that each names an existing runbook."""
    del context
    text = (DEPLOY / "prometheus" / "rules" / "alerts.yaml").read_text()
    alerts, books = _ALERT.findall(text), _RUNBOOK.findall(text)
    lost = sorted({book for book in books if not (DEPLOY.parent / "docs" / "runbooks" / book).is_file()})
    if lost or len(alerts) != len(books):
        missing = f"; there is no {', '.join(lost)}" if lost else ""
        return failed(f"{len(alerts)} alert rules, of which {len(books)} name a runbook{missing}")
    return passed(f"{len(alerts)} rules for {len(set(alerts))} alerts, each with a runbook")


def dashboards_are_there(context: Context) -> Result:
    """Check that Grafana's dashboards exist, as JSON with panels."""
    del context
    counts = {
        path.stem: len(json.loads(path.read_text())["panels"])
        for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    }
    listed = ", ".join(f"{name} ({count} panels)" for name, count in counts.items())
    lacking = f"a dashboard without panels: {listed}" if counts else "no dashboards in deploy/grafana/dashboards"
    return when(bool(counts) and all(counts.values()), listed, lacking)


def there_is_room(context: Context) -> Result:
    """Check that KV pools are below 85 %, and a tenth of the memory is free, at this moment."""
    usages = [
        float(value)
        for text in _node_pages(context)
        for value in re.findall(r"^baton_kv_usage_ratio\{[^}]*\} (\S+)$", text, re.MULTILINE)
    ]
    if not usages:
        return unknown("check baton_kv_usage_ratio, and the memory of each host")
    memory = psutil.virtual_memory()
    free = memory.available / memory.total
    measured = f"KV pools {max(usages):.0%} full at most, {free:.0%} of memory free"
    return when(max(usages) < _MAX_KV_USAGE and free >= _MIN_MEMORY, measured, measured)


def load_was_tested(context: Context) -> Result:
    """Check that a recent load test passed all five phases."""
    path = context.loadtest_report
    if path is None:
        return unknown("run `baton loadtest --json FILE`, then pass --loadtest-report FILE")
    try:
        phases = json.loads(path.read_text())["phases"]
        good = {phase["name"] for phase in phases if all(check["passed"] for check in phase["checks"])}
        age_s = time.time() - path.stat().st_mtime
    except OSError as error:
        return failed(f"cannot read {path}: {error.strerror}")
    except (ValueError, LookupError, TypeError):
        return failed(f"{path} is not a report of `baton loadtest --json`")
    if lacking := sorted({"baseline", "ramp", "sustained", "overload", "chaos"} - good):
        return failed(f"phases that did not pass, or did not run: {', '.join(lacking)}")
    return when(
        age_s <= _MAX_AGE_S,
        f"all five phases passed, {age_s / 86400:.0f} days ago",
        f"all five phases passed, but {age_s / 86400:.0f} days ago: repeat the load test",
    )


def _node_pages(context: Context) -> Iterator[str]:
    for process in context.local.processes if context.local else ():
        if process.role in ("prefill", "decode") and process.metrics:
            yield scrape(process.metrics, "", _TIMEOUT_S)


ITEMS = (
    Item("metrics", True, metrics_are_there),
    Item("alerts", True, alerts_lead_somewhere),
    Item("dashboards", False, dashboards_are_there),
    Item("headroom", False, there_is_room),
    Item("load test", True, load_was_tested),
)
