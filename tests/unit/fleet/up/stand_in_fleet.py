"""`baton up` with stand-ins for the services, in its own BATON_HOME. Processes, signals and files are real."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

STAND_IN = Path(__file__).with_name("stand_in_baton.py")


class Bench:
    """One BATON_HOME and the `baton` that works in it."""

    def __init__(self, folder: Path) -> None:
        self.said = ""
        self.home = folder / "home"
        self.model = folder / "tiny"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        self.env = {**os.environ, "BATON_HOME": str(self.home)}
        self.up: subprocess.Popen[str] | None = None

    def baton(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(STAND_IN), *args]
        return subprocess.run(argv, env={**self.env, **env}, capture_output=True, text=True, timeout=60)

    def start(self, *args: str, **env: str) -> str:
        """Run `baton up` in the foreground; return what it printed until it was ready."""
        argv = [sys.executable, str(STAND_IN), "up", "--model", str(self.model), "--port", "0", *args]
        self.up = subprocess.Popen(
            argv, env={**self.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        said = []
        assert self.up.stdout is not None
        for line in self.up.stdout:
            said.append(line)
            if "baton chat" in line:
                self.said = "".join(said)
                return self.said
        raise AssertionError("".join(said) + self.up.communicate()[1])

    def end(self) -> None:
        """Return the running processes."""
        if self.up is not None:
            self.up.terminate()
            try:
                self.up.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                self.up.kill()
                self.up.communicate()
        elif (self.home / "fleet.json").exists():
            self.baton("down")

    def state(self) -> dict[str, Any]:
        return json.loads((self.home / "fleet.json").read_text())

    def processes(self) -> dict[str, dict[str, Any]]:
        return {process["id"]: process for process in self.state()["processes"]}

    def children(self) -> list[psutil.Process]:
        assert self.up is not None
        return psutil.Process(self.up.pid).children(recursive=True)

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.state()
            time.sleep(0.02)


def assert_nothing_left(bench: Bench, children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=1)
    assert alive == []
    assert not (bench.home / "fleet.json").exists()
    assert not list(bench.home.rglob("*.sock"))
