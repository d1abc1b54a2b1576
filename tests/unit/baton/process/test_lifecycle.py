"""Real processes: what signals, errors and a dead parent do to a service."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

SERVICE = Path(__file__).with_name("service_under_test.py")
_WAIT_S = 20


class Started:
    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVICE), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def line(self) -> str:
        return self.stdout.readline().strip()

    def end(self) -> tuple[int, str]:
        """(exit code, the rest of stderr)"""
        _, errors = self.process.communicate(timeout=_WAIT_S)
        return self.process.returncode, errors


@pytest.fixture
def start() -> Iterator[type[Started]]:
    started: list[Started] = []

    class Recorded(Started):
        def __init__(self, *args: str) -> None:
            super().__init__(*args)
            started.append(self)

    yield Recorded
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(start: type[Started], number: signal.Signals) -> None:
    service = start()
    assert service.line() == "ready"
    service.process.send_signal(number)
    assert [service.line(), service.line()] == ["draining", "closed"]
    assert service.end()[0] == 0


def test_the_second_signal_ends_at_once_but_closes(start: type[Started]) -> None:
    service = start("--mode", "slow-drain")
    assert service.line() == "ready"
    service.process.send_signal(signal.SIGTERM)
    assert service.line() == "draining"
    service.process.send_signal(signal.SIGTERM)
    assert service.line() == "closed"
    assert service.end()[0] == 130


def test_a_signal_while_loading_ends_at_once(start: type[Started]) -> None:
    service = start("--mode", "slow-load")
    assert service.line() == "loading"
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == (0, "")


def test_a_config_error_is_one_line(start: type[Started]) -> None:
    assert start("--mode", "unloadable").end() == (1, "service: error: no such model: nowhere\n")


def test_an_unexpected_exception_is_logged_with_its_traceback(start: type[Started]) -> None:
    code, errors = start("--mode", "broken").end()
    assert code == 2
    assert "RuntimeError: a bug" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_service_dies_with_its_parent(start: type[Started]) -> None:
    parent = start("parent")
    assert parent.line().startswith("child ")
    assert parent.line() == "ready"
    parent.process.kill()
    assert parent.line() == "closed"  # the child, whose stdout is the same pipe; it does not drain
    assert parent.stdout.read() == ""  # nobody holds the pipe any more


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_service_whose_parent_died_early_does_not_start(
    start: type[Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_DIE_WITH_PARENT", "999999999")
    assert start().end()[0] == 0
