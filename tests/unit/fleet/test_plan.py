import json
from pathlib import Path

import pytest

from fleet import cli

NODE = ["--prefill-tokens-per-s", "10000", "--decode-base-ms", "10", "--decode-request-ms", "0.2"]
LOAD = ["--rate", "10", "--prompt-tokens", "400", "--output-tokens", "100"]


def plan(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    assert cli.main(["plan", *NODE, *args, "--json"]) == 0
    found: dict = json.loads(capsys.readouterr().out)
    return found


def test_nodes_cover_the_peak_plus_headroom(capsys: pytest.CaptureFixture[str]):
    found = plan(capsys, *LOAD, "--peak-factor", "2", "--headroom", "0.3")
    for pool in ("prefill", "decode"):
        without = found["without_headroom"][pool]
        assert without < found["size"][pool] <= without * 1.3 + 1
    single = plan(capsys, *LOAD, "--peak-factor", "1", "--headroom", "0")
    assert single["size"]["prefill"] <= found["size"]["prefill"]


def test_a_given_size_is_simulated_without_headroom(capsys: pytest.CaptureFixture[str]):
    found = plan(capsys, *LOAD, "--size", "2:3")
    assert found["size"] == {"prefill": 2, "decode": 3}
    assert found["outcome"]["requests_per_s"] == pytest.approx(10, rel=0.1)


def test_costs_and_gpus_are_counted(capsys: pytest.CaptureFixture[str]):
    prices = ["--cost-prefill-hour", "10", "--cost-decode-hour", "20", "--gpus-per-node", "8"]
    assert cli.main(["plan", *NODE, *LOAD, "--size", "1:2", *prices]) == 0
    out = capsys.readouterr().out
    assert "24 GPUs" in out
    assert "50.00 an hour" in out
    assert "13.89 per million" in out  # 1,000 tokens a second are 3.6 million an hour


def test_a_trace_is_simulated_hour_by_hour(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "trace.jsonl"
    times = [0, 60_000, 3_700_000, 3_760_000, 26 * 3_600_000]
    line = {"input_length": 600, "output_length": 20, "hash_ids": [1, 2]}
    path.write_text("".join(json.dumps({"timestamp": at, **line}) + "\n" for at in times))
    found = plan(capsys, "--trace", str(path), "--size", "1:1", "--trace-speed", "60")
    assert [hour["num_requests"] for hour in found["hours"]] == [2, 2]  # requests after the first day are left out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*NODE], "--rate"),
        ([*LOAD], "--prefill-tokens-per-s"),
        ([*NODE, *LOAD, "--size", "3"], "PREFILL:DECODE"),
        ([*NODE, *LOAD, "--slo-tpot-ms", "5"], "slo-tpot"),
        ([*LOAD, "--node", "/nowhere.json"], "--node: /nowhere.json: No such file"),
        ([*LOAD, "--fit", "http://127.0.0.1:1", "--node", "/nowhere/n.json"], "folder /nowhere does not exist"),
        ([*LOAD, "--fit", "http://127.0.0.1:1"], "http://127.0.0.1:1 does not answer: Connection refused"),
        ([*NODE, *LOAD, "--size", "²:1"], "PREFILL:DECODE"),
        ([*NODE, *LOAD, "--prompt-tokens", "long"], "'long' is not a length: expected N, uniform"),
    ],
)
def test_missing_flags_are_reported(args: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["plan", *args]) == 1
    assert message in capsys.readouterr().err
