"""Prometheus accepts every configuration in deploy/prometheus."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import DEPLOY, run

FILE_SD = runpy.run_path(str(DEPLOY / "prometheus" / "file_sd.py"))


@pytest.mark.parametrize("name", ["prometheus.yml", "kubernetes.yml", "compose.yml"])
def test_prometheus_accepts(name: str, tmp_path: Path):
    folder = tmp_path / "prometheus"
    folder.mkdir()
    (folder / "rules").symlink_to(DEPLOY / "prometheus" / "rules")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "service-token").write_text("token")
    content = (DEPLOY / "prometheus" / name).read_text()
    config = yaml.safe_load(content.replace("/run/secrets/", "secrets/"))
    for job in config["scrape_configs"]:
        job.pop("kubernetes_sd_configs", None)  # Debian's Prometheus is built without it
    (folder / name).write_text(yaml.safe_dump(config))
    assert "2 rule files found" in run("promtool", "check", "config", str(folder / name))


@pytest.mark.parametrize("status", ["", "{}", "[]"])
def test_without_a_fleet_there_is_one_line(status: str):
    argv = [sys.executable, str(DEPLOY / "prometheus" / "file_sd.py")]
    done = subprocess.run(argv, input=status, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "file_sd.py: what it reads is not the output of `baton status --json`\n"


def test_targets_of_a_local_fleet_carry_the_labels_that_rules_group_by():
    node = {"id": "decode-0", "role": "decode", "metrics": "http://127.0.0.1:9001/metrics"}
    starting = {"id": "decode-1", "role": "decode", "metrics": None}
    assert json.loads(json.dumps(FILE_SD["targets"]({"nodes": [node, starting]}))) == [
        {
            "targets": ["127.0.0.1:9001"],
            "labels": {"role": "decode", "node_id": "decode-0", "track": "stable"},
        }
    ]
