import argparse
import errno
import os
import subprocess
import sys

import pytest

from baton.process.help import HelpFormatter
from fleet import cli


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("baton 0.")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for name in (*cli.COMMANDS, *cli.SERVICES):
        assert f"  {name} " in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        cli.main([name, "--help"])
    assert exit_.value.code == 0
    assert f"baton {name}" in capsys.readouterr().out


def test_help_shows_the_type_and_the_default_of_a_flag(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["loadtest", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--concurrency INT target number of concurrent requests (default: 16)" in out
    assert "--base-url STR endpoint of a running fleet (default: start a local one)" in out
    assert "--kill-command STR command that kills a node, if the fleet is not local; run without a shell --json" in out


def test_a_default_with_a_percent_sign_is_shown_as_it_is():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--loads", nargs="+", default=["50%", "9"], help="N%% of the capacity")
    assert "N% of the capacity (default: 50% 9)" in parser.format_help()


@pytest.mark.parametrize("name", ["router", "decode"])
def test_help_of_a_service_says_what_it_is(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    out = capsys.readouterr().out
    assert "\nRun one " in out
    assert "(default: True)" not in out


def test_help_of_up_names_flags_with_their_variables(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["up", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for flag in ("--served-model-name", "--prefill", "--colocated", "--kv-memory", "--api-key-file", "--detach"):
        assert flag in out
    assert "[BATON_MAX_MODEL_LEN]" in out


@pytest.mark.parametrize("command", ["up", "router"])
def test_a_terminal_without_unicode_gets_help_too(command: str):
    argv = [sys.executable, "-m", "fleet", command, "--help"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<think>?</think>" in done.stdout


def test_an_unknown_command_is_one_line_that_names_those_there_are(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["fly"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("baton: error: no such command: fly (there are up, status, ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("description", [description for _, description in cli.COMMANDS.values()])
def test_descriptions_end_without_a_full_stop(description: str):
    assert description[-1].isalnum()


def test_an_invalid_flag_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATON_MAX_NUM_SEQS", "many")
    assert cli.main(["up"]) == 1
    assert capsys.readouterr().err == ("baton: error: --max-num-seqs (BATON_MAX_NUM_SEQS): 'many' is not a valid int\n")


def test_a_service_gets_its_own_flags(monkeypatch: pytest.MonkeyPatch):
    from types import SimpleNamespace

    got: list[list[str]] = []
    monkeypatch.setattr(
        cli.importlib, "import_module", lambda name: SimpleNamespace(main=lambda argv: got.append([name, *argv]) or 7)
    )
    assert cli.main(["prefill", "--port", "1"]) == 7
    assert got == [["prefill_node.__main__", "--port", "1"]]


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--block-size", "0"], "--block-size (BATON_BLOCK_SIZE) must be at least 1, not 0"),
        (["--kv-memory", "lots"], "--kv-memory: 'lots' is not a size"),
        (["--redis-url", "http://127.0.0.1"], "redis url: "),
        (["--model", "/nowhere"], "no such model: /nowhere"),
        (["--host", "0.0.0.0"], "refusing to listen on 0.0.0.0 without a service token"),
        (["--tls-cert", "/nowhere"], "TLS between services needs --tls-key, --tls-ca too"),
    ],
)
def test_a_node_that_cannot_start_says_so_before_it_loads_torch(role: str, argv: list[str], message: str):
    code = "import sys, fleet.cli; sys.exit(fleet.cli.main(sys.argv[1:]) + ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, role, *argv], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"baton {role}: error: {message}")
    assert done.stderr.count("\n") == 1


def test_help_is_quick_because_it_imports_nothing():
    code = "import sys, fleet.cli; fleet.cli.main(['--help']); sys.exit(bool({'rich', 'redis'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("number", "path", "line"),
    [
        (errno.ENOSPC, ["/full/report.json"], "[Errno 28] No space left on device: '/full/report.json'"),
        (errno.EADDRINUSE, [], "[Errno 98] Address already in use"),
    ],
)
def test_an_error_of_the_machine_is_one_line(
    number: int, path: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(args: argparse.Namespace) -> int:
        raise OSError(number, os.strerror(number), *path)

    monkeypatch.setattr("fleet.down.run", fail)
    assert cli.main(["down"]) == 1
    assert capsys.readouterr().err == f"baton: error: {line}\n"


def test_an_error_that_only_a_bug_explains_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(args: argparse.Namespace) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("fleet.down.run", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["down"])


def test_bench_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench"]) == 0
    assert "serve" in capsys.readouterr().out
    assert cli.main(["bench", "nonsense"]) == 1
    assert "no such benchmark: nonsense" in capsys.readouterr().err


def test_bench_passes_flags_on():
    done = subprocess.run([sys.executable, "-m", "fleet", "bench", "serve", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--output-tokens" in done.stdout
