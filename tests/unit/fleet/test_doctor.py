import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.doctor import command as doctor
from fleet.doctor import compute as doctor_compute
from fleet.doctor import network as doctor_network
from fleet.doctor.finding import Finding, broken, ok, warning
from fleet.home import Home


def test_a_free_port_is_fine_and_a_taken_one_gives_advice(tmp_path: Path):
    home = Home(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = doctor_network.port("127.0.0.1", taken.getsockname()[1], home)
        assert found.level == "warning"
        assert "--port" in found.advice
    assert doctor_network.port("127.0.0.1", 0, home).level == "ok"


def test_redis_is_found_and_a_dead_one_is_broken():
    assert doctor_network.redis("").level == "ok"
    found = doctor_network.redis("redis://127.0.0.1:1/0")
    assert found.level == "broken"
    assert "127.0.0.1:1" in found.text


def test_a_redis_server_that_does_not_run_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\nexit 127\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor_network.redis("").level == "broken"


def test_the_transports_of_the_ucx_that_nodes_load_are_listed():
    pytest.importorskip("libucx", reason="UCX comes in a wheel for Linux on x86_64 only")
    assert "tcp" in doctor_network.ucx().text


def test_without_ucx_there_is_advice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor_network, "_ucx_info", lambda: ("", {}))
    found = doctor_network.ucx()
    assert (found.level, bool(found.advice)) == ("warning", True)


@pytest.mark.parametrize(
    ("wanted", "missing", "level", "text"),
    [
        ("auto", {}, "ok", "nodes on one host use shm, on two hosts ucx over"),
        ("auto", {"ucx": "no UCX library"}, "warning", "nodes on one host use shm, on two hosts tcp"),
        ("auto", {"shm": "not permitted"}, "warning", "nodes on one host use ucx over"),
        ("shm", {}, "ok", "must be on one host"),
        ("shm", {"shm": "not permitted"}, "broken", "not permitted"),
        ("ucx", {}, "ok", "nodes on one host use ucx over"),
        ("ucx", {"ucx": "no UCX library"}, "broken", "no UCX library"),
        ("tcp", {}, "ok", "nodes on one host use tcp, on two hosts tcp"),
    ],
)
def test_the_transport_is_the_one_that_nodes_would_choose(monkeypatch, wanted, missing, level, text):
    monkeypatch.setattr("kv_transfer.probe.missing", lambda _: missing)
    found = doctor_network.transport(wanted)
    assert found.level == level
    assert text in found.text
    if level == "warning":
        assert next(iter(missing.values())) in found.advice


def test_a_home_that_cannot_be_written_is_broken(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert doctor_network.home(Home(tmp_path / "file" / "x")).level == "broken"


@pytest.mark.parametrize(
    ("prefix", "flags", "level"),
    [
        ("/home/me/.pyenv/versions/3.12.1", "'--enable-shared'", "warning"),
        ("/home/me/.pyenv/versions/3.12.1", "'--enable-optimizations' '--with-lto'", "ok"),
        ("/usr", None, "ok"),
    ],
)
def test_an_unoptimized_python_is_reported(monkeypatch, prefix, flags, level):
    monkeypatch.setattr("sys.base_prefix", prefix)
    monkeypatch.setattr("sysconfig.get_config_var", {"CONFIG_ARGS": flags}.get)
    found = doctor_compute.python()
    assert (found.level, "--enable-optimizations" in found.advice) == (level, level == "warning")


def test_this_python_and_this_torch_pass():
    assert doctor_compute.python().level in ("ok", "warning")
    assert doctor_compute.torch().level == "ok"
    assert doctor_compute.gpu().level in ("ok", "warning")


def test_a_missing_torch_is_broken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor_compute.torch().level == "broken"


def test_a_model_is_checked(tmp_path: Path):
    assert doctor_compute.checkpoint(str(tmp_path)).level == "warning"
    (tmp_path / "config.json").write_text("{}")
    assert doctor_compute.checkpoint(str(tmp_path)) == ok("model", str(tmp_path))


@pytest.mark.parametrize(
    ("finding", "code"), [(ok("a", "b"), 0), (warning("a", "b", "c " * 60), 0), (broken("a", "b", "c"), 1)]
)
def test_only_what_is_broken_fails(
    finding: Finding, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from fleet.cli import main

    monkeypatch.setattr(doctor, "examine", lambda config: iter([finding]))
    assert main(["doctor"]) == code
    assert finding.advice in capsys.readouterr().out


def test_the_findings_are_available_as_json(tmp_path: Path):
    env = {**os.environ, "BATON_HOME": str(tmp_path), "BATON_TRANSPORT": "tcp"}
    argv = [sys.executable, "-m", "fleet", "doctor", "--json", "--port", "0"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert {"python", "torch", "ucx", "kv transport", "redis", "gpu", "port"} <= set(found)
    assert done.returncode == any(finding["level"] == "broken" for finding in found.values())
