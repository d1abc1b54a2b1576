import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from baton.errors import ConfigError
from baton.net import redis_client
from baton.net.registry import NodeRecord, Registration
from fleet import state
from fleet.home import Home
from fleet.status import describe
from fleet.up import embedded_redis


def a_fleet(*processes: state.ProcessState, redis_url: str = "") -> state.FleetState:
    return state.FleetState(
        pid=1,
        state="ready",
        endpoint="http://127.0.0.1:8000",
        redis_url=redis_url,
        run_dir="/run",
        model="/m",
        served_model_name=("m",),
        processes=list(processes),
    )


def a_record(**changes: object) -> NodeRecord:
    values: dict = {"node_id": "decode-0", "role": "decode", "epoch": 9, "address": "127.0.0.1:5", "pid": 42}
    values |= {"state": "ready", "num_blocks": 200, "num_free_blocks": 150, "num_running": 3, "num_waiting": 1}
    return NodeRecord(**values | changes)


DECODE = state.ProcessState("decode-0", "decode", 42, "ready", 9, "127.0.0.1:5", "http://127.0.0.1:6/metrics")


def test_a_node_is_shown_with_its_process_and_load():
    node = describe(a_fleet(DECODE), [a_record()])["nodes"][0]
    assert (node["id"], node["role"], node["pid"], node["state"], node["epoch"]) == (
        "decode-0",
        "decode",
        42,
        "ready",
        9,
    )
    assert (node["address"], node["metrics"]) == ("127.0.0.1:5", "http://127.0.0.1:6/metrics")
    assert (node["kv_usage"], node["running"], node["waiting"]) == (0.25, 3, 1)


def test_without_redis_the_processes_are_still_known():
    status = describe(a_fleet(DECODE), None)
    assert status["redis"]["answers"] is False
    assert status["nodes"][0]["state"] == "ready"
    assert status["nodes"][0]["kv_usage"] is None


def test_the_record_of_a_dead_incarnation_is_ignored():
    restarting = state.ProcessState("decode-0", "decode", None, "restarting", 9)
    node = describe(a_fleet(restarting), [a_record()])["nodes"][0]
    assert (node["state"], node["running"]) == ("restarting", None)


def test_a_node_that_does_not_renew_its_registration_is_silent():
    starting = state.ProcessState("decode-1", "decode", 43, "starting")
    nodes = describe(a_fleet(DECODE, starting), [a_record(pid=7)])["nodes"]
    assert [node["state"] for node in nodes] == ["silent", "starting"]


def test_a_draining_node_says_so_itself():
    assert describe(a_fleet(DECODE), [a_record(state="draining")])["nodes"][0]["state"] == "draining"


def test_redis_is_not_listed_as_a_node():
    status = describe(a_fleet(state.ProcessState("redis", "redis", 5, "ready"), DECODE), [])
    assert [node["id"] for node in status["nodes"]] == ["decode-0"]
    assert status["redis"]["pid"] == 5


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A private Redis, started as by the supervisor, in a folder whose name has special characters."""
    folder = tmp_path / 'a "?#%41{ä}'
    folder.mkdir()
    url = embedded_redis.new_url(folder)
    command = embedded_redis.command(url)
    process = subprocess.Popen(command.argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=command.env)
    assert process.stdin is not None
    process.stdin.write(command.stdin)
    process.stdin.close()
    asyncio.run(asyncio.wait_for(embedded_redis.answers(url), 10))
    yield url, process.pid
    process.kill()
    process.wait()


def baton_status(home: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "fleet", "status", "--json"]
    return subprocess.run(argv, env={**os.environ, "BATON_HOME": str(home)}, capture_output=True, text=True, timeout=30)


def test_status_answers_while_redis_hangs(tmp_path: Path, private_redis: tuple[str, int]):
    import json
    import signal

    url, pid = private_redis
    home = Home(tmp_path / "home")
    home.create()
    lock = home.lock()
    state.write(home, a_fleet(DECODE, redis_url=url))

    async def register() -> None:
        registration = Registration(redis_client.connect(url, timeout_s=2.0), a_record())
        await registration.start()

    asyncio.run(register())
    assert json.loads(baton_status(home.path).stdout)["nodes"][0]["running"] == 3
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        hung = json.loads(baton_status(home.path).stdout)
        assert time.monotonic() - began < 10
    finally:
        os.kill(pid, signal.SIGCONT)
        os.close(lock or 0)
    assert hung["nodes"][0]["pid"] == 42
    assert hung["redis"]["answers"] is False


@pytest.mark.parametrize(("phase", "does"), [("starting", "is starting:"), ("ready", "serves")])
def test_status_says_whether_the_endpoint_serves(tmp_path: Path, phase: str, does: str):
    home = Home(tmp_path)
    home.create()
    lock = home.lock()
    state.write(home, msgspec.structs.replace(a_fleet(DECODE, redis_url="redis://127.0.0.1:1"), state=phase))
    argv = [sys.executable, "-m", "fleet", "status"]
    done = subprocess.run(argv, env={**os.environ, "BATON_HOME": str(tmp_path)}, capture_output=True, text=True)
    os.close(lock or 0)
    assert done.stdout.startswith(f"http://127.0.0.1:8000/v1 {does} m\n")


def status_of_age(home: Home, age_s: float) -> str:
    home.create()
    lock = home.lock()
    state.write(home, a_fleet(DECODE, redis_url="redis://127.0.0.1:1"))
    then = time.time() - age_s
    os.utime(home.state_file, (then, then))
    argv = [sys.executable, "-m", "fleet", "status"]
    done = subprocess.run(argv, env={**os.environ, "BATON_HOME": str(home.path)}, capture_output=True, text=True)
    os.close(lock or 0)
    return done.stdout


@pytest.mark.parametrize(("age_s", "shown"), [(30, "3[0-9] s"), (400, "7 min"), (90000, "25 h")])
def test_status_says_how_old_it_is_when_the_supervisor_no_longer_writes(tmp_path: Path, age_s: float, shown: str):
    text = status_of_age(Home(tmp_path), age_s)
    assert re.search(rf"The list of processes is {shown} old: .*process 1.* cannot write to {tmp_path}\.", text)


def test_status_of_a_supervisor_that_writes_says_nothing_of_age(tmp_path: Path):
    assert " old" not in status_of_age(Home(tmp_path), 0)


def test_the_private_redis_requires_its_password_and_opens_no_port(private_redis: tuple[str, int]):
    import psutil

    url, pid = private_redis
    assert not psutil.Process(pid).net_connections(kind="inet")
    assert url.partition("password=")[2] not in " ".join(psutil.Process(pid).cmdline())
    with pytest.raises(ConfigError):
        asyncio.run(redis_client.check(url.partition("?")[0]))
    asyncio.run(redis_client.check(url))


def test_status_without_a_fleet_says_how_to_start_one(tmp_path: Path):
    done = baton_status(tmp_path)
    assert done.returncode == 1
    assert "no fleet is running" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_does_not_load_torch(tmp_path: Path):
    code = (
        "import sys, fleet.cli; fleet.cli.main(['status']); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    env = {**os.environ, "BATON_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 0
