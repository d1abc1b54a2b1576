#!/usr/bin/env python3
"""Prints the Prometheus targets of a local fleet: `baton status --json | file_sd.py > targets/local.json`.

For several hosts, write such a file by hand: host:port of each node's --metrics-port and each router's --admin-port.
"""

import json
import sys
from typing import Any
from urllib.parse import urlsplit


def targets(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one group of targets for each service in `baton status --json` that has metrics."""
    groups = []
    for node in status["nodes"]:
        if node["metrics"]:
            labels = {"role": node["role"], "node_id": node["id"], "track": "stable"}
            groups.append({"targets": [urlsplit(node["metrics"]).netloc], "labels": labels})
    return groups


if __name__ == "__main__":
    try:
        json.dump(targets(json.load(sys.stdin)), sys.stdout, indent=2)
    except (ValueError, LookupError, TypeError):
        sys.exit("file_sd.py: what it reads is not the output of `baton status --json`")
