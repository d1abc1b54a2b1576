"""Writes the dashboards' JSON: `python deploy/grafana/build.py [FOLDER]`."""

import json
import sys
from pathlib import Path

from content import DASHBOARDS
from panels import render

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards"
    for name, dashboard in DASHBOARDS.items():
        (folder / f"{name}.json").write_text(json.dumps(render(dashboard), indent=2) + "\n")
