"""`baton up` and its companions with stand-ins for the services: processes, signals and files are real."""

import json
import re
import socket
import stat
import subprocess

import psutil

from tests.unit.fleet.up.stand_in_fleet import Bench, assert_nothing_left


def test_up_shows_its_progress_and_then_commands_to_paste(standing: Bench):
    for name in ("redis", "prefill-0", "decode-0", "router-0"):
        assert f"{name}: ready" in standing.said
    curl = re.search(r"^  (curl .*)$", standing.said, re.MULTILINE)
    assert curl is not None
    assert standing.state()["endpoint"] in curl[1]
    subprocess.run(curl[1], shell=True, check=True, capture_output=True, timeout=10)


def test_a_colocated_fleet_has_only_decode_nodes(bench: Bench):
    bench.start("--colocated", "--decode", "2")
    assert set(bench.processes()) == {"redis", "router-0", "decode-0", "decode-1"}
    assert "no prefill nodes" in bench.baton("scale", "prefill=1").stderr


def test_a_service_that_cannot_start_is_one_line_and_exit_code_1(bench: Bench):
    done = bench.baton("up", "--model", str(bench.model), "--port", "0", BATON_FAULT_FAIL="prefill-0")
    assert done.returncode == 1
    assert done.stderr == "baton: error: prefill-0: the checkpoint is broken\n"
    assert_nothing_left(bench, [])


def test_an_occupied_port_is_reported_before_anything_starts(bench: Bench):
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


def test_an_existing_redis_is_used(bench: Bench, redis_url: str):
    bench.start("--redis-url", redis_url)
    assert bench.state()["redis_url"] == redis_url
    assert {process["role"] for process in bench.processes().values()} == {"router", "prefill", "decode"}
    assert "prefill-0" not in bench.processes()  # another fleet may have a process of that name
    assert "started prefill-1-" in bench.baton("scale", "prefill=2").stdout


def test_a_second_fleet_in_the_same_home_is_refused_and_one_beside_it_is_not(standing: Bench, bench: Bench):
    endpoint = standing.state()["endpoint"]
    for port in ("0", endpoint.rpartition(":")[2]):
        again = standing.baton("up", "--model", str(standing.model), "--port", port)
        assert again.returncode == 1
        assert f"a fleet is already running at {endpoint}" in again.stderr
    bench.start()
    assert standing.state()["endpoint"] != bench.state()["endpoint"]
    assert bench.baton("down").stdout == "stopped\n"
    assert {p["state"] for p in standing.processes().values()} == {"ready"}


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
    assert up.stderr == "baton: error: decode-0: the checkpoint is broken\n"


def test_down_ends_a_frozen_supervisor_too(bench: Bench):
    bench.baton("up", "--model", str(bench.model), "--port", "0", "--detach")
    supervisor = psutil.Process(bench.state()["pid"])
    children = supervisor.children(recursive=True)
    supervisor.suspend()
    assert bench.baton("down").stdout == "stopped\n"
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_down_without_a_fleet_is_not_an_error(bench: Bench):
    done = bench.baton("down")
    assert done.returncode == 0
    assert "no fleet is running" in done.stdout


def test_status_lists_the_nodes(standing: Bench):
    status = json.loads(standing.baton("status", "--json").stdout)
    assert status["endpoint"] == standing.state()["endpoint"]
    assert {node["id"]: node["state"] for node in status["nodes"]} == dict.fromkeys(
        ("prefill-0", "prefill-1", "decode-0", "router-0"), "ready"
    )
    assert all(node["metrics"].endswith("/metrics") for node in status["nodes"])
    assert "decode-0" in standing.baton("status").stdout


def test_only_their_owner_can_read_logs_and_state(standing: Bench):
    for path in [standing.home, *standing.home.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert {path.name for path in (standing.home / "logs").iterdir()} >= {"redis.log", "decode-0.log", "router-0.log"}


def test_the_environment_sets_flags_too(standing: Bench):
    assert "prefill-1" in standing.processes()
    assert "--max-num-seqs 9" in (standing.home / "logs" / "decode-0.log").read_text()


def test_a_full_disk_is_an_error_at_the_start_and_harmless_later(bench: Bench):
    (bench.home / "fleet.json.partial").mkdir(parents=True)  # so that not even root can write there
    done = bench.baton("up", "--model", str(bench.model), "--port", "0", "--detach")
    assert done.returncode == 1
    assert "cannot write" in done.stdout + done.stderr
    assert "Is a directory" in done.stdout + done.stderr
    (bench.home / "fleet.json.partial").rmdir()
    bench.start()
    (bench.home / "fleet.json.partial").mkdir()
    assert bench.baton("scale", "decode=2").stdout.startswith("started decode-1")
    (bench.home / "fleet.json.partial").rmdir()
