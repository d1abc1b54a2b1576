"""The commands and queries in the runbooks, and the variables that they need."""

import os
import re
import sys
from pathlib import Path

from tests.deploy.fleet import KEY, TOKEN, Fleet, Prometheus
from tests.deploy.tools import ROOT, program

RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
ELSEWHERE = re.compile(
    r"kubectl|systemctl|journalctl|nvidia-smi|docker|ssh |baton doctor|dcgmi|redis-cli|…"
)  # not on a test machine

PROMTOOL = re.compile(r"promtool query instant \$PROMETHEUS '([^']+)'")


def commands() -> dict[str, str]:
    """Return command -> runbook, for all commands that work on a machine with a local fleet."""
    found = {}
    for path in RUNBOOKS:
        for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            whole = block.startswith("for ") or "\\\n" in block
            for command in [block] if whole else block.splitlines():
                if not ELSEWHERE.search(command):
                    found[command] = path.stem
    return found


def queries() -> dict[str, str]:
    """Return Prometheus query -> runbook."""
    return {match[1]: book for command, book in commands().items() if (match := PROMTOOL.fullmatch(command))}


def environment(fleet: Fleet, prometheus: Prometheus, folder: Path) -> dict[str, str]:
    """Return the variables that the first page sets, and a PATH with `baton`."""
    baton = folder / "baton"
    baton.write_text(f'#!/bin/sh\nexec {sys.executable} -m fleet "$@"\n')
    baton.chmod(0o755)
    metrics = {node["role"]: node["metrics"] for node in fleet.status()["nodes"]}
    return fleet.env | {
        "PATH": f"{folder}{os.pathsep}{Path(program('promtool')).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PROMETHEUS": prometheus.url,
        "BATON": f"http://127.0.0.1:{fleet.port}",
        "KEY": KEY,
        "TOKEN": TOKEN,
        "METRICS": metrics["decode"],
        "ADMIN": metrics["router"].removesuffix("/metrics"),
        "REQUEST_ID": fleet.request_id("a request to trace"),
    }
