"""Renders dashboards as the JSON that Grafana reads. `boards/` defines their panels."""

from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 8, 8  # of a panel, where a row is 24 wide
Target = dict[str, str]  # legend -> query


@dataclass(frozen=True)
class Panel:
    """One panel. A `conditional` panel may be empty: it shows hardware or events that not every fleet has."""

    title: str
    unit: str
    queries: Target
    help: str
    kind: str = "timeseries"  # or stat, gauge, bargauge
    thresholds: tuple[float, ...] = ()  # yellow, red
    maximum: float | None = None
    conditional: bool = False


@dataclass(frozen=True)
class Dashboard:
    """A dashboard; a row is a title and its panels, three in a line."""

    uid: str
    title: str
    rows: dict[str, tuple[Panel, ...]]
    variables: dict[str, str] = field(default_factory=dict)  # name -> metric and label, as `baton_build_info, track`


def render(dashboard: Dashboard) -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in dashboard.rows.items():
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})
        y += 1
        for index, panel in enumerate(row):
            place = {"x": index % 3 * WIDTH, "y": y + index // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_panel(panel) | {"gridPos": place})
        y += -(-len(row) // 3) * HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["baton"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_variable(*item) for item in dashboard.variables.items()]},
        "links": [{"type": "dashboards", "tags": ["baton"], "title": "Baton", "asDropdown": True}],
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    colors = ("green", "yellow", "red")
    steps = [{"color": c, "value": v} for c, v in zip(colors, (None, *panel.thresholds), strict=False)]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries" and panel.thresholds:
        defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
    options = {"tags": ["conditional"]} if panel.conditional else {}
    return options | {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "legendFormat": legend, "expr": query, "exemplar": panel.kind == "timeseries"}
            for i, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _variable(name: str, values: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "query": {"query": f"label_values({values})", "refId": name},
        "refresh": 2,
        "sort": 1,
        "includeAll": name != "node",
        "multi": name != "node",
        "current": {} if name == "node" else {"text": "All", "value": "$__all"},
    }
