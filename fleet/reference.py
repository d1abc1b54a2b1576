"""`python -m fleet.reference`: generates docs/reference from the code.

    metrics.md   every metric, where it is exposed, its labels and its meaning
    flags.md     every flag of `baton up` and of the services, with its variable and default
    errors.md    every error that a client can get, with status, type and code

`--check` writes nothing, and exits with 1 if a page differs.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from baton.errors import BatonError
from baton.net import redis_client
from baton.process.config import described
from baton.process.settings import FleetConfig, NodeConfig, RouterConfig
from baton.telemetry import gpu_metrics
from baton.telemetry.unlocked import Unlocked

FOLDER = Path(__file__).parent.parent / "docs" / "reference"

_KINDS = MetricWrapperBase, Unlocked  # prometheus_client's metrics, and our own
_NOTE = "<!-- Written by `python -m fleet.reference`. -->"
# Package that defines a metric -> who exposes it.
_ROUTER_ROOMS, _NODE_ROOMS = ("router",), ("baton.node.load", "kv_transfer", "engine", "prefill_node", "decode_node")
_IMPORTED = ("router.server", "prefill_node.node", "decode_node.node")
_CONFIGS = {"baton up": FleetConfig, "baton router": RouterConfig, "baton prefill, baton decode": NodeConfig}
_CODES_OF_PARAMETERS = {  # codes that some `invalid_value` errors have instead
    "invalid_type": "A parameter has the wrong type; `param` names it.",
    "missing_required_parameter": "A required parameter is missing; `param` names it.",
    "unknown_parameter": "A parameter does not exist; `param` names it.",
    "unsupported_parameter": "OpenAI supports this parameter or value, but Baton does not; `param` names it.",
}
_NEVER_SEEN = {"cancelled", "node_unavailable", "transfer_failed", "layout_mismatch", "client_gone"}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fleet.reference")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page differs")
    differing = []
    check = parser.parse_args(argv).check
    for name, text in pages().items():
        path = FOLDER / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        differing.append(name)
        if not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if check and differing:
        print(f"docs/reference: {', '.join(differing)} out of date: run python -m fleet.reference")
    return int(check and bool(differing))


def pages() -> dict[str, str]:
    """Return each page's name and content."""
    return {"metrics.md": _metrics_page(), "flags.md": _flags_page(), "errors.md": _errors_page()}


def metrics() -> Iterator[tuple[str, str, str, tuple[str, ...], str]]:
    """Yield (name as scraped, type, who exposes it, its own labels, meaning) of each metric."""
    for module in _IMPORTED:
        importlib.import_module(module)
    owners = _owners()
    for metric in sorted(set(REGISTRY._collector_to_names), key=str):
        if not isinstance(metric, _KINDS):
            continue
        (family,) = metric.describe()
        if family.name.startswith("baton_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = metric.labelnames if isinstance(metric, Unlocked) else metric._labelnames
            yield name, family.type, owners.get(id(metric), "all"), tuple(labels), family.documentation
    for name, text in gpu_metrics.FAMILIES.items():
        yield name, "gauge", "nodes with a GPU", ("gpu",), text


def _owners() -> dict[int, str]:
    """Return who exposes each metric (by its id), from the package of the first module that contains it."""
    owners: dict[int, str] = {}
    for name, module in sorted(sys.modules.items()):
        who = "routers" if _in(name, _ROUTER_ROOMS) else "nodes" if _in(name, _NODE_ROOMS) else ""
        for value in list(vars(module).values()) if who else ():
            inner = getattr(value, "_metric", value)  # a TokenCount wraps one
            if isinstance(inner, _KINDS) and not _is_shared(inner):
                owners.setdefault(id(inner), who)
    return owners


def _is_shared(metric: MetricWrapperBase | Unlocked) -> bool:
    return any(metric is value for value in vars(redis_client).values())


def _in(name: str, rooms: Iterable[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def _metrics_page() -> str:
    rows = sorted(set(metrics()), key=lambda row: (row[2] != "routers", row[2] != "nodes", row[2], row[0]))
    intro = (
        "Each process serves `GET /metrics`: nodes on `--metrics-port`, routers on the admin port and on the HTTP "
        "port. Every metric below also has its process's labels `role` (`router`, `prefill`, `decode`) and `node_id`. "
        "Histograms of request times carry exemplars with the `request_id`, for scrapers that accept OpenMetrics."
    )
    table = _table(
        ("metric", "type", "exposed by", "labels", "meaning"),
        (
            (f"`{n}`", kind, who, ", ".join(f"`{label}`" for label in labels), text)
            for n, kind, who, labels, text in rows
        ),
    )
    return f"{_NOTE}\n\n# Metrics\n\n{intro}\n\n{table}\n"


def _flags_page() -> str:
    parts = [
        _NOTE,
        "",
        "# Flags",
        "",
        "A flag takes precedence over its variable, which takes precedence over the default.",
        "",
    ]
    for command, config in _CONFIGS.items():
        rows = [
            (f"`--{name.replace('_', '-')}`" if not flag.secret else "", f"`{env}`", _shown(default), flag.description)
            for name, env, default, flag in described(config)
        ]
        parts += [f"## {command}", "", _table(("flag", "variable", "default", "meaning"), rows), ""]
    return "\n".join(parts)


def _errors_page() -> str:
    importlib.import_module("router.server")
    coded = (("400", "`invalid_request_error`", f"`{code}`", says) for code, says in _CODES_OF_PARAMETERS.items())
    kinds = (
        (str(kind.status), f"`{kind.type}`", f"`{kind.code}`", _first_sentence(kind.__doc__))
        for kind in _kinds(BatonError)
        if "code" in vars(kind) and kind.code not in _NEVER_SEEN and _in(kind.__module__, ("baton", "router"))
    )
    rows = sorted([*kinds, *coded])
    intro = (
        'Each error is `{"error": {"message", "type", "param", "code"}}`, with an `x-request-id`; 429 and 503 have '
        "`Retry-After`. In a stream that has begun, an error is the last `data:` event, and no `[DONE]` follows."
    )
    rows.append(("500", "`server_error`", "`internal_error`", "An unexpected error; the router's log has the details."))
    return f"{_NOTE}\n\n# Errors\n\n{intro}\n\n{_table(('status', 'type', 'code', 'meaning'), rows)}\n"


def _kinds(root: type[BatonError]) -> Iterator[type[BatonError]]:
    """Yield all subclasses of `root`, direct and indirect."""
    for kind in root.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _shown(default: Any) -> str:
    if default in (None, "", ()):
        return ""
    return f"`{'on' if default is True else 'off' if default is False else default}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
