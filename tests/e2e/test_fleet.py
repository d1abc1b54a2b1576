"""`baton up` as a user has it: real services, a small random model, requests through HTTP."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine import random_checkpoint
from tests.e2e.local_fleet import QUESTION, Load, LocalFleet, ask, started, until
from tests.e2e.streams import Newcomers, Stream


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    long = random_checkpoint.TINY | {"max_position_embeddings": 8192}  # for answers of many seconds
    return random_checkpoint.write(tmp_path_factory.mktemp("checkpoint") / "random-llama", long)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[LocalFleet]:
    fleet = started(tmp_path_factory.mktemp("fleet"), model)
    yield fleet
    fleet.baton("down")


def scrape(fleet: LocalFleet, metric: str) -> dict[str, float]:
    """Label text -> value of a metric, over all nodes."""
    found: dict[str, float] = {}
    for node in fleet.nodes().values():
        with urllib.request.urlopen(node.metrics or "", timeout=10) as answer:
            text = answer.read().decode()
        for labels, value in re.findall(rf"^{metric}(\{{.*\}})? (\S+)$", text, re.MULTILINE):
            found[labels] = found.get(labels, 0.0) + float(value)
    return found


def test_a_chat_is_answered_at_once_and_in_a_stream(fleet: LocalFleet):
    client = fleet.client()
    assert [model.id for model in client.models.list()] == ["random-llama"]
    whole = ask(client)
    stream = client.chat.completions.create(
        model="random-llama",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=24,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 3
    assert "".join(pieces) == whole


def test_kv_blocks_travel_through_shared_memory(fleet: LocalFleet):
    """Over ucx and tcp they travel in tests/integration/nodes."""
    before = scrape(fleet, "baton_kv_transfer_bytes_total")
    grown: set[str] = set()
    deadline = time.monotonic() + 10
    while not grown and time.monotonic() < deadline:  # one that costs less so is computed where it is decoded
        ask(fleet.client(), f"{time.time()} {QUESTION}")
        after = scrape(fleet, "baton_kv_transfer_bytes_total")
        grown = {labels for labels in after if after[labels] > before.get(labels, 0)}
    assert grown
    assert all('transport="shm"' in labels for labels in grown)


def test_status_says_what_there_is(fleet: LocalFleet):
    status = fleet.status()
    assert status["endpoint"].startswith("http://127.0.0.1:")
    nodes = {node["id"]: node for node in status["nodes"]}
    assert {node["role"] for node in status["nodes"]} == {"prefill", "decode", "router"}
    for name in ("prefill-0", "decode-0"):
        node = nodes[name]
        assert (node["state"], psutil.pid_exists(node["pid"])) == ("ready", True)
        assert isinstance(node["epoch"], int)
        assert re.fullmatch(r"127\.0\.0\.1:\d+", node["address"])
        assert 0 <= node["kv_usage"] <= 1
    deadline = time.monotonic() + 10
    while any(node.get("running") or node.get("waiting") for node in fleet.status()["nodes"]):
        assert time.monotonic() < deadline, "nodes tell twice a second what they have to do, and they have nothing"
        time.sleep(0.1)


def test_the_curl_line_works_as_pasted(fleet: LocalFleet):
    curl = re.search(r"^  (curl .*)$", fleet.welcome, re.MULTILINE)
    assert curl is not None
    answer = json.loads(subprocess.run(curl[1], shell=True, check=True, capture_output=True, timeout=60).stdout)
    assert answer["usage"]["completion_tokens"] > 0


def test_a_piped_question_is_answered(fleet: LocalFleet):
    done = fleet.baton("chat", "--temperature", "0", "--max-tokens", "24", stdin=QUESTION)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == ask(fleet.client(), QUESTION.strip()).strip()


def test_scaling_under_load_fails_no_request(fleet: LocalFleet):
    load = Load(fleet)
    load.more(4)
    up = fleet.baton("scale", "prefill=2", "decode=2")
    assert up.returncode == 0, up.stderr
    assert {"prefill-1", "decode-1"} <= set(fleet.nodes())
    load.more(8)
    down = fleet.baton("scale", "prefill=1", "decode=1")
    assert down.returncode == 0, down.stderr
    load.more(8)
    load.end()
    until(lambda: set(fleet.nodes()) == {"prefill-0", "decode-0", "router-0"})


@pytest.mark.parametrize("name", ["decode-0", "prefill-0"])
def test_a_killed_node_comes_back_and_no_request_fails(fleet: LocalFleet, name: str):
    load = Load(fleet)
    load.more(4)
    before = fleet.nodes()[name]
    os.kill(before.pid or 0, signal.SIGKILL)

    def is_back() -> bool:
        node = fleet.nodes()[name]
        return node.state == "ready" and node.epoch != before.epoch

    until(is_back)
    load.more(4)
    load.end()
    for text, answer in set(load.answers):  # greedy: the same question has one answer, killed in between or not
        assert {a for t, a in load.answers if t == text} == {answer}


def test_bench_serve_measures_the_fleet(fleet: LocalFleet, tmp_path: Path):
    out = tmp_path / "figures.json"
    flags = ["--concurrency", "1", "4", "--requests", "4", "--prompt-tokens", "48", "--output-tokens", "8"]
    flags += ["--vocab-size", "500", "--url", fleet.endpoint, "--json", str(out)]
    done = fleet.baton("bench", "serve", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(out.read_text())["runs"]
    assert [run["failed"] for run in runs] == [0, 0]
    assert {"queue", "prefill", "transfer", "first_decode"} >= set(runs[0]["phases_s"]) > set()


def test_a_colocated_fleet_says_the_same_and_does_not_outlive_a_killed_supervisor(
    fleet: LocalFleet, model: Path, tmp_path: Path
):
    colocated = started(tmp_path, model, "--colocated", "--decode", "2")
    processes = colocated.processes()
    try:
        assert {node.role for node in colocated.nodes().values()} == {"decode", "router"}
        texts = [f"{i} {QUESTION[i:]}" for i in range(4)]
        assert [ask(colocated.client(), text) for text in texts] == [ask(fleet.client(), text) for text in texts]
    finally:
        processes[0].kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


def test_down_ends_streams_well_or_says_so_and_leaves_nothing_behind(fleet: LocalFleet):
    """The last test of the fleet that all the others ask."""
    processes, shared = fleet.processes(), set()
    long, short = [Stream(fleet, 7000) for _ in range(3)], [Stream(fleet, 100) for _ in range(3)]
    until(lambda: all(stream.events for stream in long + short))
    for process in processes:
        shared |= {entry.path for entry in process.memory_maps() if entry.path.startswith("/dev/shm/")}
    newcomers = Newcomers(fleet)
    try:
        down = fleet.baton("down")
    finally:
        outcomes = newcomers.end()
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    _, alive = psutil.wait_procs(processes, timeout=2)
    assert alive == []
    assert [stream.end() for stream in short] == [{}] * 3
    assert [stream.end()["error"]["code"] for stream in long] == ["no_capacity"] * 3  # which a client may retry
    assert outcomes <= {"200", "503 again later", "refused"}
    assert not [path for path in shared if Path(path).exists()]
    assert not sysv_segments_of({process.pid for process in processes})
    assert {path.name for path in fleet.home.iterdir()} == {"logs", "lock"}


def sysv_segments_of(pids: set[int]) -> list[str]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [line for line in lines if int(line.split()[4]) in pids]


def test_a_broken_checkpoint_is_one_line(model: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fleet = LocalFleet(tmp_path, broken)
    done = fleet.baton("up", "--model", str(broken), "--port", "0", "--colocated")
    assert done.returncode == 1
    assert re.fullmatch(r"baton: error: \S+: .*model\.safetensors.*\n", done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert not (fleet.home / "fleet.json").exists()
