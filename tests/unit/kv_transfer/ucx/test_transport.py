"""UCX's environment, and the error if it cannot be loaded. It is only ever loaded in other processes."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from baton.errors import TransferError
from kv_transfer.metrics import RESTARTS
from kv_transfer.ucx import transport as ucx


def test_the_node_itself_never_loads_it():
    code = "import sys, kv_transfer.choose, kv_transfer.sender; print([m for m in sys.modules if 'ucxx' in m])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_it_is_available():
    pytest.importorskip("libucx", reason="UCX comes in a wheel for Linux on x86_64 only")
    assert ucx.why_unavailable() == ""


@pytest.fixture
def without_ucxx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ucxx.py").write_text("raise ImportError('libucp.so.0: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ucx, "why_unavailable", ucx.why_unavailable.__wrapped__)


@pytest.mark.usefixtures("without_ucxx")
def test_the_reason_if_it_is_unavailable():
    assert ucx.why_unavailable() == "ucxx cannot be loaded (libucp.so.0: cannot open shared object file)"


@pytest.mark.usefixtures("without_ucxx")
def test_a_process_that_cannot_load_it_is_not_restarted():
    async def main():
        before = RESTARTS._value.get()
        transport = ucx.UcxTransport("127.0.0.1")
        async with asyncio.timeout(20):
            for _ in range(2):
                with pytest.raises(TransferError, match=r"libucp\.so\.0"):
                    await transport.connect("127.0.0.1", 1, b"x" * 32, lambda: None)
            await transport.close()
        assert RESTARTS._value.get() == before

    asyncio.run(main())


def test_options_set_by_the_operator_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ucx, "_has_rdma", lambda: False)
    monkeypatch.setenv("UCX_RNDV_THRESH", "1m")
    monkeypatch.setenv("UCX_NET_DEVICES", "eth7")
    found = ucx.environment("127.0.0.1")
    assert [found[f"UCX_{name}"] for name in ("RNDV_THRESH", "RNDV_SCHEME", "TLS")] == ["1m", "put_zcopy", "tcp"]
    assert found["UCX_NET_DEVICES"] == "eth7"


def test_ports_are_opened_on_the_host_s_device_alone(monkeypatch: pytest.MonkeyPatch):
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ucx, "_has_rdma", lambda: False)
    assert ucx.environment("127.0.0.1")["UCX_NET_DEVICES"] == "lo"
    assert ucx.environment("localhost")["UCX_NET_DEVICES"] == "lo"
    assert "UCX_NET_DEVICES" not in ucx.environment("0.0.0.0")
    monkeypatch.setattr(ucx, "_has_rdma", lambda: True)
    assert not {"UCX_TLS", "UCX_RNDV_SCHEME"} & set(ucx.environment("127.0.0.1"))


def test_it_gets_no_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATON_SERVICE_TOKEN", "of this fleet")
    assert "of this fleet" not in ucx.environment("127.0.0.1").values()
