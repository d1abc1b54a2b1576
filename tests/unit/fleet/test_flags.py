"""The flags of all commands and benchmarks: each is described, and no number is taken without bounds."""

import argparse
import importlib
import pkgutil

import pytest

import bench
from baton.process.bounds import Bounded
from fleet import cli

BENCHMARKS = [module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_")]


def of_command(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    importlib.import_module(cli.COMMANDS[name][0]).add_arguments(parser)
    return parser


def of_benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Its parser, at the moment when it would parse."""
    parsers = []

    class Parsed(Exception):
        pass

    def stop(self, argv):
        parsers.append(self)
        raise Parsed

    module = importlib.import_module(f"bench.{name}")
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            module.main([])
    return parsers[0]


def check(parser: argparse.ArgumentParser) -> None:
    assert [action.dest for action in parser._actions if not action.help] == []
    assert [action.dest for action in parser._actions if action.type in (int, float)] == []
    for action in parser._actions:
        if isinstance(action.type, Bounded):
            for text in ("-1", "nan", "inf", "1e400", "9" * 5000, "", *["0"] * (action.type.least > 0)):
                with pytest.raises(argparse.ArgumentTypeError):
                    action.type(text)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_flags_of_a_command(name: str) -> None:
    check(of_command(name))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_flags_of_a_benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(of_benchmark(name, monkeypatch))


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("transfer", ["--megabytes", "0"], "argument --megabytes: 0: expected a whole number from 1 to 65,536"),
        ("kernels", ["--threads", "0"], "argument --threads: 0: expected a whole number from 1 to 1,024"),
        ("kernels", ["--repeats", "0"], "argument --repeats: 0: expected a whole number from 1 to 1,000,000"),
        ("engine", ["--batch-sizes", "999"], "--num-steps must be above an eighth of --batch-sizes"),
    ],
)
def test_a_number_that_makes_no_sense_ends_in_one_line(
    name: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"bench.{name}").main(flags)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"baton bench {name}: error: {message}")
