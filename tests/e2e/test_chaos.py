"""`baton chaos --short`: nodes and Redis die or freeze under load, and every answer is what it would have been."""

import os
import subprocess
import sys

import pytest


@pytest.mark.timeout(330)
def test_no_request_fails_or_differs_whatever_dies():
    env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    argv = [
        sys.executable,
        "-m",
        "fleet",
        "chaos",
        "--short",
        "--streams",
        "6",
        "--max-stall-s",
        "15",
    ]  # others run beside it
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=310)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all guarantees held" in done.stdout
    rows = {line[:22].strip(): line[22:].split() for line in done.stdout.splitlines()}
    assert {"prefill killed", "decode killed", "decode frozen for 4 s", "router killed", "redis killed"} <= rows.keys()
    num_failovers = {name: int(row[1]) for name, row in rows.items() if name.startswith("decode") and len(row) == 9}
    assert sum(num_failovers.values()), "no stream ran on what died"
