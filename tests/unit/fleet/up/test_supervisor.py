"""How the supervisor handles signals, dying services and scaling."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from fleet import state
from fleet.home import Home
from tests.unit.fleet.up.stand_in_fleet import STAND_IN, Bench, assert_nothing_left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_whole_fleet(bench: Bench, number: int):
    bench.start("--prefill", "2")
    assert bench.up is not None
    children = bench.children()
    assert len(children) == 5
    bench.up.send_signal(number)
    assert bench.up.wait(10) == 0
    assert_nothing_left(bench, children)


def test_services_have_their_own_process_groups(standing: Bench):
    groups = [os.getpgid(child.pid) for child in standing.children()]
    assert len(set(groups)) == len(groups)
    assert os.getpgid(0) not in groups


def test_services_that_ignore_signals_are_gone_within_ten_seconds(bench: Bench):
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
    assert time.monotonic() - began < 6  # otherwise they would get ten seconds
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


def test_a_signal_during_the_start_stops_it(bench: Bench):
    argv = [sys.executable, str(STAND_IN), "up", "--model", str(bench.model), "--port", "0"]
    bench.up = subprocess.Popen(argv, env=bench.env, stdout=subprocess.PIPE, text=True)
    assert bench.up.stdout is not None
    assert "starting" in bench.up.stdout.readline()
    children = bench.children()
    bench.up.send_signal(signal.SIGTERM)
    assert bench.up.wait(10) == 130
    assert bench.up.stdout.read().endswith("Stopped before all was ready.\n")
    assert_nothing_left(bench, children)


def test_services_that_die_are_restarted(bench: Bench):
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


def test_services_are_restarted_even_if_nothing_can_be_written(bench: Bench):
    bench.start()
    first = bench.processes()["decode-0"]["pid"]
    (bench.home / "fleet.json.partial").mkdir()  # acts like a full disk
    os.kill(first, signal.SIGKILL)
    bench.until(lambda: any(child.pid != first and "decode-0" in child.cmdline() for child in bench.children()))
    (bench.home / "fleet.json.partial").rmdir()


def test_the_age_of_the_state_shows_that_it_cannot_be_written_until_it_can(bench: Bench):
    bench.start()
    age_s = partial(state.age_s, Home(bench.home))
    time.sleep(4)
    assert age_s() < 3.5  # nothing has changed, but the supervisor confirms it
    (bench.home / "fleet.json.partial").mkdir()  # acts like a full disk
    first = bench.processes()["decode-0"]["pid"]
    os.kill(first, signal.SIGKILL)
    bench.until(lambda: age_s() > 4)
    assert bench.processes()["decode-0"]["pid"] == first
    (bench.home / "fleet.json.partial").rmdir()
    bench.until(lambda: age_s() < 1)
    assert bench.processes()["decode-0"]["pid"] != first


def test_scaling_up_waits_and_scaling_down_drains(bench: Bench):
    bench.start()
    grown = bench.baton("scale", "prefill=3", "decode=2")
    assert grown.returncode == 0
    assert "started prefill-1, prefill-2, decode-1" in grown.stdout
    assert {p["state"] for p in bench.processes().values()} == {"ready"}
    shrunk = bench.baton("scale", "prefill=1")
    assert "draining prefill-1, prefill-2" in shrunk.stdout
    bench.until(lambda: set(bench.processes()) == {"redis", "router-0", "prefill-0", "decode-0", "decode-1"})
    assert bench.baton("scale", "decode=2").stdout == "nothing to do\n"


def test_scaling_up_says_what_it_waits_for(bench: Bench):
    bench.start(BATON_FAULT_SLOW="decode-1")
    grown = bench.baton("scale", "decode=2")
    assert grown.stderr == "waiting for decode-1 (50 % of its weights loaded)\n"
    assert grown.stdout == "started decode-1.\n"


def test_scaling_under_a_frozen_supervisor_gives_up_and_says_why(bench: Bench):
    bench.start()
    assert bench.up is not None
    bench.up.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        scale = bench.baton("scale", "decode=2")
        assert time.monotonic() - began < 20
    finally:
        bench.up.send_signal(signal.SIGCONT)
    assert scale.returncode == 1
    assert "the fleet's supervisor has been silent for 10 s: it is frozen" in scale.stderr


def test_a_node_that_cannot_start_fails_only_the_scaling(bench: Bench):
    bench.start(BATON_FAULT_FAIL="decode-1")
    failed = bench.baton("scale", "decode=2", "prefill=2")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "baton: error: decode-1: the checkpoint is broken"
    assert set(bench.processes()) == {"redis", "router-0", "prefill-0", "prefill-1", "decode-0"}


@pytest.mark.parametrize(
    ("pools", "complaint"),
    [
        ("router=2", "no such pool"),
        ("decode=0", "from 1 to 64"),
        ("decode", "prefill=2"),
        ("decode=x", "decode=1"),
        ("decode=" + "9" * 5000, "decode=1"),
    ],
)
def test_invalid_scaling_is_refused(standing: Bench, pools: str, complaint: str):
    refused = standing.baton("scale", pools)
    assert refused.returncode == 1
    assert complaint in refused.stderr


def test_one_pool_with_two_sizes_is_refused(standing: Bench):
    refused = standing.baton("scale", "prefill=2", "prefill=3")
    assert refused.returncode == 1
    assert "prefill=2 and prefill=3: give only one size per pool" in refused.stderr
