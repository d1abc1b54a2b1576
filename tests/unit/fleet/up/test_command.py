"""`baton up` and its companions with stand-ins for the services: processes, signals and files are real."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

STAND_IN = Path(__file__).with_name("stand_in_baton.py")
READY_TIMEOUT_S = 30


class Bench:
    """One BATON_HOME and the `baton` that works in it."""

    def __init__(self, folder: Path) -> None:
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
        """`baton up` in the foreground; what it printed until it was ready."""
        argv = [sys.executable, str(STAND_IN), "up", "--model", str(self.model), "--port", "0", *args]
        self.up = subprocess.Popen(
            argv, env={**self.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        said = []
        assert self.up.stdout is not None
        for line in self.up.stdout:
            said.append(line)
            if "baton chat" in line:
                return "".join(said)
        raise AssertionError("".join(said) + self.up.communicate()[1])

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


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.baton("down")
    if bench.up is not None:
        bench.up.kill()
        bench.up.communicate()


def assert_nothing_left(bench: Bench, children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=1)
    assert alive == []
    assert not (bench.home / "fleet.json").exists()
    assert not list(bench.home.rglob("*.sock"))


def test_it_shows_the_start_and_ends_with_lines_to_paste(bench: Bench):
    said = bench.start()
    for name in ("redis", "prefill-0", "decode-0", "router-0"):
        assert f"{name}: ready" in said
    curl = re.search(r"^  (curl .*)$", said, re.MULTILINE)
    assert curl is not None
    assert bench.state()["endpoint"] in curl[1]
    subprocess.run(curl[1], shell=True, check=True, capture_output=True, timeout=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_all_of_it(bench: Bench, number: int):
    bench.start("--prefill", "2")
    assert bench.up is not None
    children = bench.children()
    assert len(children) == 5
    bench.up.send_signal(number)
    assert bench.up.wait(10) == 0
    assert_nothing_left(bench, children)


def test_services_have_their_own_process_groups(bench: Bench):
    bench.start()
    groups = [os.getpgid(child.pid) for child in bench.children()]
    assert len(set(groups)) == len(groups)
    assert os.getpgid(0) not in groups


def test_deaf_services_are_gone_within_ten_seconds(bench: Bench):
    bench.start(BATON_FAULT_DEAF="1")
    assert bench.up is not None
    children = bench.children()
    began = time.monotonic()
    bench.up.send_signal(signal.SIGTERM)
    bench.up.wait(15)
    assert time.monotonic() - began < 10
    assert_nothing_left(bench, children)


def test_a_second_signal_kills_at_once(bench: Bench):
    bench.start(BATON_FAULT_DEAF="1")
    assert bench.up is not None
    children = bench.children()
    bench.up.send_signal(signal.SIGINT)
    bench.until(lambda: bench.state()["state"] == "stopping")
    began = time.monotonic()
    bench.up.send_signal(signal.SIGINT)
    bench.up.wait(10)
    assert time.monotonic() - began < 6  # they are given ten seconds otherwise
    assert_nothing_left(bench, children)


def test_children_do_not_outlive_a_killed_supervisor_and_the_next_one_starts(bench: Bench):
    bench.start()
    assert bench.up is not None
    children = bench.children()
    bench.up.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert "no fleet is running" in bench.baton("status").stderr
    bench.up.communicate()
    bench.start()


def test_signal_during_the_start_stops_it(bench: Bench):
    argv = [sys.executable, str(STAND_IN), "up", "--model", str(bench.model), "--port", "0"]
    bench.up = subprocess.Popen(argv, env=bench.env, stdout=subprocess.PIPE, text=True)
    assert bench.up.stdout is not None
    assert "starting" in bench.up.stdout.readline()
    children = bench.children()
    bench.up.send_signal(signal.SIGTERM)
    assert bench.up.wait(10) in (0, 130)
    assert_nothing_left(bench, children)


def test_what_dies_comes_back(bench: Bench):
    bench.start()
    for name in ("decode-0", "redis", "router-0"):
        before = bench.processes()[name]
        os.kill(before["pid"], signal.SIGKILL)
        bench.until(lambda n=name: bench.processes()[n]["restarts"] == 1 and bench.processes()[n]["state"] == "ready")
        after = bench.processes()[name]
        assert after["pid"] != before["pid"]
    assert bench.processes()["decode-0"]["epoch"] != before["epoch"]
    redis_url = bench.state()["redis_url"]
    assert redis_url.startswith("unix://")


def test_what_dies_comes_back_also_where_nothing_can_be_written(bench: Bench):
    bench.start()
    first = bench.processes()["decode-0"]["pid"]
    (bench.home / "fleet.json.partial").mkdir()  # takes as little as a full disk
    os.kill(first, signal.SIGKILL)
    bench.until(lambda: any("decode-0" in child.cmdline() and child.pid != first for child in bench.children()))
    (bench.home / "fleet.json.partial").rmdir()


def test_scaling_up_waits_and_scaling_down_drains(bench: Bench):
    bench.start()
    grown = bench.baton("scale", "prefill=3", "decode=2")
    assert (grown.returncode, grown.stderr) == (0, "")
    assert "started prefill-1, prefill-2, decode-1" in grown.stdout
    assert {p["state"] for p in bench.processes().values()} == {"ready"}
    shrunk = bench.baton("scale", "prefill=1")
    assert "draining prefill-1, prefill-2" in shrunk.stdout
    bench.until(lambda: set(bench.processes()) == {"redis", "router-0", "prefill-0", "decode-0", "decode-1"})
    assert bench.baton("scale", "decode=2").stdout == "nothing to do\n"


def test_a_node_that_cannot_start_fails_the_scaling_and_nothing_else(bench: Bench):
    bench.start(BATON_FAULT_FAIL="decode-1")
    failed = bench.baton("scale", "decode=2", "prefill=2")
    assert failed.returncode == 1
    assert failed.stderr == "baton: error: decode-1: the checkpoint is broken\n"
    assert set(bench.processes()) == {"redis", "router-0", "prefill-0", "prefill-1", "decode-0"}


@pytest.mark.parametrize(
    ("pools", "complaint"),
    [("router=2", "no such pool"), ("decode=0", "between 1 and 64"), ("decode", "prefill=2"), ("decode=x", "decode=1")],
)
def test_senseless_scaling_is_refused(bench: Bench, pools: str, complaint: str):
    if pools.endswith(("0", "2")):
        bench.start()
    refused = bench.baton("scale", pools)
    assert refused.returncode == 1
    assert complaint in refused.stderr


def test_a_colocated_fleet_has_decode_nodes_alone(bench: Bench):
    bench.start("--colocated", "--decode", "2")
    assert set(bench.processes()) == {"redis", "router-0", "decode-0", "decode-1"}
    assert "no prefill nodes" in bench.baton("scale", "prefill=1").stderr


def test_a_service_that_cannot_start_is_one_line_and_exit_code_1(bench: Bench):
    done = bench.baton("up", "--model", str(bench.model), "--port", "0", BATON_FAULT_FAIL="prefill-0")
    assert done.returncode == 1
    assert done.stderr == "baton: error: prefill-0: the checkpoint is broken\n"
    assert_nothing_left(bench, [])


def test_an_occupied_port_is_told_before_anything_starts(bench: Bench):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = bench.baton("up", "--model", str(bench.model), "--port", str(port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "--port" in done.stderr
    assert done.stdout == ""


def test_a_redis_that_does_not_answer_is_one_line(bench: Bench):
    url = "redis://127.0.0.1:1/0"
    done = bench.baton("up", "--model", str(bench.model), "--port", "0", "--redis-url", url)
    assert done.returncode == 1
    assert re.fullmatch(r"baton: error: no Redis answers at 127\.0\.0\.1:1.*\n", done.stderr)


def test_a_real_redis_is_used_as_it_is(bench: Bench, redis_url: str):
    bench.start("--redis-url", redis_url)
    assert bench.state()["redis_url"] == redis_url
    assert {process["role"] for process in bench.processes().values()} == {"router", "prefill", "decode"}
    assert "prefill-0" not in bench.processes()  # another fleet may have one there
    assert "started prefill-1-" in bench.baton("scale", "prefill=2").stdout


def test_a_second_fleet_in_the_same_home_is_refused_and_one_beside_it_is_not(bench: Bench, tmp_path: Path):
    bench.start()
    again = bench.baton("up", "--model", str(bench.model), "--port", "0")
    assert again.returncode == 1
    assert bench.state()["endpoint"] in again.stderr
    (tmp_path / "beside").mkdir()
    beside = Bench(tmp_path / "beside")
    try:
        beside.start()
        assert beside.state()["endpoint"] != bench.state()["endpoint"]
    finally:
        beside.baton("down")
        assert beside.up is not None
        beside.up.communicate()
    assert {p["state"] for p in bench.processes().values()} == {"ready"}


def test_detached_it_returns_when_ready_and_down_stops_it(bench: Bench):
    up = bench.baton("up", "--model", str(bench.model), "--port", "0", "--detach")
    assert up.returncode == 0
    assert "baton chat" in up.stdout
    assert "decode-0: ready" in up.stdout
    children = psutil.Process(bench.state()["pid"]).children(recursive=True)
    down = bench.baton("down")
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    assert_nothing_left(bench, children)


def test_a_detached_start_that_fails_says_why(bench: Bench):
    argv = ("up", "--model", str(bench.model), "--port", "0", "--detach")
    up = bench.baton(*argv, BATON_FAULT_FAIL="decode-0")
    assert up.returncode == 1
    assert "baton: error: decode-0: the checkpoint is broken" in up.stdout + up.stderr


def test_down_ends_a_frozen_supervisor_too(bench: Bench):
    bench.baton("up", "--model", str(bench.model), "--port", "0", "--detach")
    supervisor = psutil.Process(bench.state()["pid"])
    children = supervisor.children(recursive=True)
    supervisor.suspend()
    assert bench.baton("down").stdout == "stopped\n"
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_down_without_a_fleet_is_no_error(bench: Bench):
    done = bench.baton("down")
    assert done.returncode == 0
    assert "no fleet is running" in done.stdout


def test_status_lists_the_nodes(bench: Bench):
    bench.start()
    status = json.loads(bench.baton("status", "--json").stdout)
    assert status["endpoint"] == bench.state()["endpoint"]
    assert {node["id"]: node["state"] for node in status["nodes"]} == {
        "prefill-0": "ready",
        "decode-0": "ready",
        "router-0": "ready",
    }
    assert all(node["metrics"].endswith("/metrics") for node in status["nodes"])
    assert "decode-0" in bench.baton("status").stdout


def test_logs_and_state_are_their_owners_alone(bench: Bench):
    bench.start()
    for path in [bench.home, *bench.home.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert {path.name for path in (bench.home / "logs").iterdir()} >= {"redis.log", "decode-0.log", "router-0.log"}


def test_the_environment_sets_flags_too(bench: Bench):
    bench.start(BATON_PREFILL="2", BATON_MAX_NUM_SEQS="9")
    assert "prefill-1" in bench.processes()
    assert "--max-num-seqs 9" in (bench.home / "logs" / "decode-0.log").read_text()


def test_a_disk_that_takes_nothing_is_said_at_the_start_and_later_does_no_harm(bench: Bench):
    (bench.home / "fleet.json.partial").mkdir(parents=True)  # nothing can be written there, not even by root
    done = bench.baton("up", "--model", str(bench.model), "--port", "0", "--detach")
    assert done.returncode == 1
    assert "cannot write" in done.stdout + done.stderr
    assert "Is a directory" in done.stdout + done.stderr
    (bench.home / "fleet.json.partial").rmdir()
    bench.start()
    (bench.home / "fleet.json.partial").mkdir()
    assert bench.baton("scale", "decode=2").stdout.startswith("started decode-1")
    (bench.home / "fleet.json.partial").rmdir()
