"""Writes the dashboards' JSON: `python deploy/grafana/build.py [FOLDER]`."""

import json
import sys
from pathlib import Path

from boards.fleet import FLEET
from boards.node import NODE_BOARD
from boards.pools import POOLS
from boards.tenants import TENANTS
from panels import render

DASHBOARDS = {"fleet": FLEET, "pools": POOLS, "node": NODE_BOARD, "tenants": TENANTS}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards"
    for name, dashboard in DASHBOARDS.items():
        (folder / f"{name}.json").write_text(json.dumps(render(dashboard), indent=2) + "\n")
