"""Which transport is used, and what is said where it is not the wished-for one."""

import builtins
import os
import subprocess
import sys

import pytest

from baton.errors import ConfigError
from kv_transfer import ucx
from kv_transfer.choose import choose, make
from kv_transfer.faults import Faults


def test_auto_is_ucx_where_it_loads():
    assert choose("auto") == ("ucx", "")
    assert choose("ucx") == ("ucx", "")
    assert choose("tcp") == ("tcp", "")


def test_without_ucx_auto_warns_and_ucx_is_an_error(monkeypatch):
    load = builtins.__import__

    def without_ucxx(name, *args, **kwargs):
        if name.partition(".")[0] == "ucxx":
            raise ImportError("libucp.so.0: cannot open shared object file")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ucxx)
    name, warning = choose("auto")
    assert name == "tcp"
    assert "libucp.so.0" in warning
    with pytest.raises(ConfigError, match=r"libucp\.so\.0"):
        choose("ucx")


def test_unknown_transports_are_refused():
    with pytest.raises(ConfigError, match="pigeon"):
        make("pigeon", "127.0.0.1")


def test_what_the_operator_sets_for_ucx_stays():
    """In a process of its own, because UCX reads its environment once."""
    code = "import os; from kv_transfer import choose; choose('ucx'); print([os.environ[f'UCX_RNDV_{n}'] for n in "
    code += "('THRESH', 'SCHEME', 'FRAG_MEM_TYPE')])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    environment["UCX_RNDV_THRESH"] = "1m"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['1m', 'put_zcopy', 'host']"


def test_ucx_opens_ports_on_the_host_s_device_alone(monkeypatch):
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ucx, "_has_rdma", lambda: False)
    assert ucx._options("127.0.0.1") == {"TLS": "tcp", "NET_DEVICES": "lo"}
    assert ucx._options("localhost") == {"TLS": "tcp", "NET_DEVICES": "lo"}
    assert ucx._options("0.0.0.0") == {"TLS": "tcp"}
    monkeypatch.setenv("UCX_NET_DEVICES", "eth7")
    assert ucx._options("127.0.0.1") == {"TLS": "tcp"}
    monkeypatch.setattr(ucx, "_has_rdma", lambda: True)
    assert ucx._options("127.0.0.1") == {}


def test_faults_happen_as_often_as_they_are_armed():
    faults = Faults("corrupt_message:2,crash_mid_transfer")
    assert [faults.fires("corrupt_message") for _ in range(3)] == [True, True, False]
    assert faults.fires("crash_mid_transfer")
    assert not Faults().fires("corrupt_message")
    with pytest.raises(ValueError, match="no fault is named"):
        Faults("typo")
