"""The units, as far as systemd can check them without being the host's init."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from baton.process.config import env_name
from baton.process.settings import NodeConfig, RouterConfig
from tests.deploy.tools import DEPLOY

UNIT = DEPLOY / "systemd" / "baton@.service"


def analyze(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here: part of the package systemd")
    return subprocess.run([program, *args], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the unit, changed as if Baton were installed where it expects it."""
    shutil.copytree(UNIT.parent / "baton@router.service.d", tmp_path / "baton@router.service.d")
    (tmp_path / "baton@.service").write_text(UNIT.read_text().replace("/opt/baton/.venv/bin/baton", "/bin/true"))
    return tmp_path


@pytest.mark.parametrize("service", ["router", "prefill", "decode"])
def test_systemd_accepts(folder: Path, service: str):
    done = analyze("verify", f"./baton@{service}.service", folder=folder)
    complaints = [line for line in done.stderr.splitlines() if line.startswith("baton@")]
    assert not complaints


def test_a_service_is_not_exposed(folder: Path):
    done = analyze("security", "--offline=yes", "./baton@decode.service", folder=folder)
    if "Unknown" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge offline: it came with 250")
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) < 3


def test_a_drain_fits_into_a_stop():
    timeout = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert timeout is not None
    assert int(timeout[1]) >= NodeConfig().drain_timeout_s + 10


def test_the_page_names_flags_that_exist():
    page = (DEPLOY / "systemd" / "README.md").read_text()
    known = {env_name(name) for config in (NodeConfig, RouterConfig) for name in config.__dataclass_fields__}
    assert set(re.findall(r"\bBATON_\w+", page)) <= known


def test_systemd_reads_variables_as_written_on_the_page():
    """To systemd, a # after a value is part of the value."""
    page = (DEPLOY / "systemd" / "README.md").read_text()
    lines = re.findall(r"^ *((?:BATON|UCX)_\w+=.*)$", page, re.MULTILINE)
    assert len(lines) > 10
    assert not [line for line in lines if "#" in line]
