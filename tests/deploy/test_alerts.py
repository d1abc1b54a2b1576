"""Every alert, at every level, has a case in which it fires and one in which it does not; `promtool test rules` judges.

A group takes promtool a third of a second: cases share them.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.alert_cases import CASES, NODE, SLOW, WHOLE, Series
from tests.deploy.tools import DEPLOY, ROOT, run

RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yaml"))
URL = "https://example.com/baton/runbooks"


def alerts() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def promtool_tests() -> dict[str, list[dict[str, Any]]]:
    """Return interval -> test groups. Cases that share a group are separate fleets in it."""
    groups: dict[str, list[dict[str, Any]]] = {"15s": [], "1m": []}
    shared = {interval: {"interval": interval, "input_series": [], "promql_expr_test": []} for interval in groups}
    for (alert, severity), (firing, quiet, at) in CASES.items():
        interval = "1m" if alert in SLOW else "15s"
        for series, fires in ((firing, True), (quiet, False)):
            alone = not all('track="stable"' in name for name in series) or (alert, severity) in WHOLE
            group = {"interval": interval, "input_series": [], "promql_expr_test": []} if alone else shared[interval]
            if alone:
                groups[interval].append(group)
            track = "stable" if alone else f"{alert}-{severity}-{fires}"
            add_case(group, alert, severity, relabelled(series, track), at, "" if alone else track, fires=fires)
    for interval, group in shared.items():
        groups[interval].append(group)
    return groups


def relabelled(series: Series, track: str) -> Series:
    return {name.replace('track="stable"', f'track="{track}"'): values for name, values in series.items()}


def add_case(
    group: dict[str, Any], alert: str, severity: str, series: Series, at: str, track: str, *, fires: bool
) -> None:
    """Query ALERTS, because promtool's list of alerts would also require all annotations here."""
    of_track = f',track="{track}"' if track else ""
    firing = f'ALERTS{{alertname="{alert}",severity="{severity}",alertstate="firing"{of_track}}}'
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if fires else []
    asked = {"expr": f"count by (alertname) ({firing}) > bool 0", "eval_time": at, "exp_samples": samples}
    group["input_series"] += [{"series": name, "values": values} for name, values in series.items()]
    group["promql_expr_test"].append(asked)


def test_every_alert_has_cases():
    assert {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()} == set(CASES)


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path):
    for interval, groups in promtool_tests().items():
        check(groups, tmp_path, interval)


@pytest.mark.parametrize(
    ("external", "where"), [({}, "docs/runbooks"), ({"runbooks": ""}, "docs/runbooks"), ({"runbooks": URL}, URL)]
)
def test_an_alert_names_its_node_value_and_runbook(tmp_path: Path, external: dict[str, str], where: str):
    annotations = {"summary": "KV blocks of decode-0 are 96.5% full", "runbook_url": f"{where}/kv-usage.md"}
    labels = {"track": "stable", "role": "decode", "node_id": "decode-0"}
    expected = [
        {"exp_labels": labels | {"severity": s}, "exp_annotations": annotations} for s in ("warning", "critical")
    ]
    case = {
        "interval": "15s",
        "external_labels": external,
        "input_series": [{"series": f"baton_kv_usage_ratio{{{NODE}}}", "values": "0.965x40"}],
        "alert_rule_test": [{"eval_time": "5m", "alertname": "BatonKVUsageHigh", "exp_alerts": expected}],
    }
    check([case], tmp_path)


def check(tests: list[dict[str, Any]], folder: Path, interval: str = "15s") -> None:
    path = folder / "tests.yaml"
    content = {"rule_files": [str(rules) for rules in RULES], "evaluation_interval": interval, "tests": tests}
    path.write_text(yaml.safe_dump(content))
    run("promtool", "test", "rules", str(path))


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_every_alert_has_a_level_and_a_runbook(rule: dict[str, Any]):
    assert rule["labels"]["severity"] in ("warning", "critical")
    where, _, page = rule["annotations"]["runbook_url"].rpartition("/")
    assert where == "{{ with $externalLabels.runbooks }}{{ . }}{{ else }}docs/runbooks{{ end }}"
    assert (ROOT / "docs/runbooks" / page).is_file()
    assert rule["annotations"]["summary"]
