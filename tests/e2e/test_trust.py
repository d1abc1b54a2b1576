"""`baton scorecard`, `loadtest`, `plan` and `bench serve` against a fleet that runs, as an operator has them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import random_checkpoint
from fleet import cli
from fleet.chaos.fleet import LocalFleet, started

KEY = "a-key-of-this-test"
LOAD = ("--prompt-tokens", "32", "--output-tokens", "16", "--vocab-size", "400")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    folder = tmp_path_factory.mktemp("trust")
    keys = folder / "keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    model = str(random_checkpoint.write(folder / "random"))
    flags = ("--model", model, "--kv-memory", "32MiB", "--prefill", "2", "--decode", "2", "--api-key-file", str(keys))
    with started(folder / "home", *flags) as running:
        yield running


@pytest.fixture(autouse=True)
def operator(fleet: LocalFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_HOME", str(fleet.home.path))
    monkeypatch.setenv("BATON_API_KEY", KEY)


def test_a_benchmark_with_a_report(fleet: LocalFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from bench import serve

    page, figures = tmp_path / "r.html", tmp_path / "r.json"
    flags = [
        "--base-url",
        f"{fleet.endpoint}/v1",
        "--rate",
        "20",
        "--burstiness",
        "4",
        "--requests",
        "20",
        "--turns",
        "2",
    ]
    assert serve.main([*flags, *LOAD, "--json", str(figures), "--html", str(page), "--slo-ttft-ms", "5000"]) == 0
    (run,) = json.loads(figures.read_text())["runs"]
    assert (run["requests"], run["failed"], run["output_tokens"]) == (40, 0, 40 * 16)
    assert run["good_share"] > 0.9
    assert page.read_text().count("<svg") == 2
    assert "client:" in capsys.readouterr().out


def test_a_load_test_passes_judgement(fleet: LocalFleet, tmp_path: Path):
    found = tmp_path / "load.json"
    flags = [
        "--base-url",
        fleet.endpoint,
        "--minutes",
        "0.1",
        "--concurrency",
        "4",
        "--only",
        "baseline",
        "ramp",
        "chaos",
    ]
    assert cli.main(["loadtest", *flags, *LOAD, "--json", str(found)]) == 1  # nothing says how to kill a node there
    phases = {phase["name"]: phase for phase in json.loads(found.read_text())["phases"]}
    verdicts = {name: [check["passed"] for check in phase["checks"]] for name, phase in phases.items()}
    assert verdicts == {"baseline": [True, True], "ramp": [True, True], "chaos": [False]}
    assert [level["concurrency"] for level in phases["ramp"]["curve"]] == [1, 2, 4]


def test_the_scorecard_finds_what_holds(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["scorecard", "--json", "--destructive"]) == 1  # without a load test nobody is ready
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["items"]}
    assert found["load test"]["verdict"] == "unknown"
    assert found["rate limits"]["verdict"] == "fail"
    for name in (
        *("authentication", "secrets", "closed services", "encryption", "private logs", "probes", "length limit"),
        *("request ids", "metrics", "chat template", "failover", "drain"),
    ):
        assert found[name]["verdict"] == "pass", found[name]
