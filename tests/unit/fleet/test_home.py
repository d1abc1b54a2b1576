import os
import stat
from pathlib import Path

import pytest

from baton.errors import ConfigError
from fleet import state
from fleet.home import Home, remove_run_dir


def a_state(run_dir: Path, **changes: object) -> state.FleetState:
    values: dict = {"pid": 1, "state": "ready", "endpoint": "http://127.0.0.1:1", "redis_url": "unix:///x?password=y"}
    values |= {"run_dir": str(run_dir), "model": "/m", "served_model_name": ("m",)}
    return state.FleetState(**(values | changes))


def test_the_variable_names_the_folder_and_the_default_is_in_the_users_home(tmp_path: Path):
    assert Home.from_env({"BATON_HOME": str(tmp_path)}).path == tmp_path
    assert Home.from_env({"BATON_HOME": ""}).path == Path.home() / ".baton"


def test_only_its_owner_can_read_it(tmp_path: Path):
    home = Home(tmp_path / "home")
    home.create()
    run_dir = home.make_run_dir()
    state.write(home, a_state(run_dir))
    for folder in (home.path, home.logs, run_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.state_file.stat().st_mode) == 0o600


def test_a_home_that_cannot_be_written_is_a_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to BATON_HOME"):
        Home(tmp_path / "file" / "home").create()


@pytest.mark.parametrize("phase", ["starting", "stopping"])
def test_a_command_that_needs_a_ready_fleet_says_that_it_is_not_ready(tmp_path: Path, phase: str):
    home = Home(tmp_path)
    home.create()
    state.write(home, a_state(tmp_path, state=phase))
    held = home.lock()
    assert held is not None
    with pytest.raises(ConfigError, match=f"the fleet is {phase}: `baton status` says when it is ready"):
        state.serving(home)
    state.write(home, a_state(tmp_path))
    assert state.serving(home).pid == 1
    os.close(held)


def test_logs_that_cannot_be_written_are_a_clear_error(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / ".trial").symlink_to("/dev/full")  # like a separate disk that is full
    with pytest.raises(ConfigError, match=f"cannot write to BATON_HOME {tmp_path}: No space left on device"):
        Home(tmp_path).create()


def test_a_home_that_cannot_be_used_is_a_clear_error(tmp_path: Path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(ConfigError, match=f"cannot use BATON_HOME {tmp_path}: Is a directory"):
        Home(tmp_path).is_locked()


def test_the_lock_is_held_by_one_at_a_time(tmp_path: Path):
    home = Home(tmp_path)
    assert not home.is_locked()
    lock = home.lock()
    assert lock is not None
    assert home.is_locked()
    assert home.lock() is None
    os.close(lock)
    assert not home.is_locked()


def test_a_long_path_gets_its_sockets_elsewhere(tmp_path: Path):
    home = Home(tmp_path / ("x" * 100))
    home.create()
    run_dir = home.make_run_dir()
    try:
        assert len(str(run_dir / "control.sock")) < 100
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    finally:
        remove_run_dir(run_dir)
    assert not run_dir.exists()


def test_a_written_state_is_read_back(tmp_path: Path):
    home = Home(tmp_path)
    written = a_state(tmp_path, processes=[state.ProcessState("decode-0", "decode", 7, "ready", epoch=3)])
    state.write(home, written)
    assert state.read(home) == written


def test_no_fleet_or_half_a_file_is_no_fleet(tmp_path: Path):
    home = Home(tmp_path)
    assert state.read(home) is None
    home.state_file.write_text('{"pid": 1')
    assert state.read(home) is None


def test_a_fleet_whose_supervisor_is_gone_is_not_running(tmp_path: Path):
    home = Home(tmp_path)
    state.write(home, a_state(tmp_path))
    with pytest.raises(ConfigError, match=f"no fleet is running .*{tmp_path}.*baton up"):
        state.running(home)


def test_logs_of_the_previous_fleet_are_kept(tmp_path: Path):
    home = Home(tmp_path)
    home.create()
    for text in ("old", "new"):
        (home.logs / "decode-0.log").write_text(text)
        home.rotate_logs()
    assert [(path.name, path.read_text()) for path in home.logs.iterdir()] == [("decode-0.log.1", "new")]
