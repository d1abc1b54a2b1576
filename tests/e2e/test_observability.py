"""What a fleet says of itself: traces, spans, logs, metrics, `baton top`, and the dashboard in a real browser."""

import concurrent.futures
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.local_fleet import until
from tests.e2e.observed_fleet import PROMPT, SPAN_ID, Collector, Fleet, get, prompt_of, trace_id_of

pytestmark = pytest.mark.timeout(240)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=4000"
)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("observed"), collector)
    yield fleet
    fleet.baton("down")


def test_a_request_is_traced_from_any_router(fleet: Fleet) -> None:
    request_id = fleet.ship("traced")
    until(lambda: any(e["name"] == "decode steps" for e in fleet.trace(fleet.admins[0], request_id)["events"]))
    first, second = (fleet.trace(admin, request_id) for admin in fleet.admins)
    assert first["router_id"] == second["router_id"]  # of the one that served it
    events = {(event["where"].partition(".")[0].rstrip("01"), event["name"]): event for event in first["events"]}
    for where, name in [
        ("router-", "parse and tokenize"),
        ("router-", "route"),
        ("prefill-", "prefill chunk"),
        ("prefill-", "transfer"),
        ("decode-", "wait for blocks"),
        ("decode-", "wait for KV"),
        ("decode-", "admission"),
        ("decode-", "first step"),
        ("decode-", "decode steps"),
    ]:
        assert (where, name) in events, sorted(events)
    assert events["prefill-", "transfer"]["attributes"]["num_bytes"] > 0
    assert events["prefill-", "prefill chunk"]["attributes"]["num_tokens"] == len(prompt_of(request_id))
    assert events["decode-", "decode steps"]["attributes"]["num_steps"] == 22  # the first two tokens came before
    order = ["route", "prefill chunk", "first step", "decode steps"]
    starts = [next(e["start_s"] for (_, name), e in events.items() if name == wanted) for wanted in order]
    assert starts == sorted(starts)
    assert all(-0.001 <= e["start_s"] <= e["end_s"] <= first["total_s"] + 0.05 for e in first["events"])
    assert not first["silent_nodes"]


def test_baton_trace_and_baton_top_show_it(fleet: Fleet) -> None:
    shown = fleet.baton("trace", fleet.ship("shown"))
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"prefill-0 +prefill chunk", shown.stdout)
    assert fleet.baton("trace", "nobody-knows").returncode == 1
    top = fleet.baton("top", "--once")
    assert top.returncode == 0, top.stderr
    assert all(name in top.stdout for name in ("router-0", "router-1", "prefill-0", "decode-0", "TTFT ms", "pool"))


def test_one_trace_goes_through_all_hops(fleet: Fleet, collector: Collector) -> None:
    trace_id = trace_id_of(fleet.ship("spans"))

    def complete() -> bool:
        found = {(service, span.name) for service, span in collector.of(trace_id)}
        return {"baton-router", "baton-prefill", "baton-decode"} == {s for s, _ in found} and (
            "baton-router",
            "POST /v1/completions",
        ) in found

    until(complete)
    spans = collector.of(trace_id)
    root = next(span for _, span in spans if span.name == "POST /v1/completions")
    assert root.parent_span_id.hex() == SPAN_ID
    by_id = {span.span_id: span for _, span in spans}
    for service, span in spans:
        assert span is root or span.parent_span_id in by_id, f"{service} {span.name} hangs in the air"
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert abs(span.start_time_unix_nano - root.start_time_unix_nano) < 20e9
    decode = next(span for service, span in spans if service == "baton-decode" and span.name == "decode")
    assert decode.parent_span_id == root.span_id
    assert any(a.key == "baton.num_bytes" for _, s in spans if s.name == "transfer" for a in s.attributes)


def test_logs_are_json_with_timings_and_nobody_says_a_secret(fleet: Fleet) -> None:
    logged = fleet.ship("logged")
    broken = b'{"prompt": "' + PROMPT.encode()
    _, _, refused = get(f"{fleet.status['endpoint']}/v1/completions", broken, **{"content-type": "application/json"})

    def entries() -> list[dict[str, Any]]:
        lines = [line for path in (fleet.home / "logs").glob("router-*.log") for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines if line]

    until(lambda: any(entry.get("request_id") == logged for entry in entries()))
    entry = next(entry for entry in entries() if entry.get("request_id") == logged)
    assert (entry["status"], entry["prompt_tokens"], entry["output_tokens"]) == (200, len(prompt_of(logged)), 24)
    assert entry["seconds"].keys() >= {"total", "ttft", "queue", "prefill", "transfer", "first_decode"}
    said = fleet.logs() + refused.decode() + fleet.up.stdout
    for url in fleet.metrics.values():
        said += get(url)[2].decode()
    for admin in fleet.admins:
        said += json.dumps(fleet.trace(admin, logged)) + get(f"{admin}/admin/fleet")[2].decode()
    assert "canar" not in said
    assert any(entry.get("code") == "invalid_value" and entry["status"] == 400 for entry in entries())


def test_every_documented_metric_is_exposed_and_labelled(fleet: Fleet) -> None:
    fleet.ask("measured-1")
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    documented = re.findall(r"^\| `(baton_\w+)` \| (\w+) \| (\w+[\w ]*) \|", page, re.MULTILINE)
    texts = {name: get(url)[2].decode() for name, url in fleet.metrics.items()}
    assert len(documented) > 30
    for name, kind, who in documented:
        if "GPU" in who:
            continue
        where = {"routers": texts["router-0"], "nodes": texts["decode-0"]}.get(who, texts["router-0"])
        assert f"# TYPE {name} {kind}" in where, name
    assert re.search(r'baton_kv_blocks{node_id="decode-0",role="decode",state="free"} [1-9]', texts["decode-0"])
    assert re.search(
        r'baton_router_nodes{node_id="router-0",pool="decode",role="router",state="ready"} 1.0', texts["router-0"]
    )
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    exemplars = "".join(get(f"{admin}/metrics", **accept)[2].decode() for admin in fleet.admins)
    assert re.search(r'baton_time_to_first_token_seconds_bucket{.*} \d+\.0 # {request_id="[\w-]+"}', exemplars)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_the_dashboard_lives_in_a_browser(fleet: Fleet, tmp_path: Path) -> None:
    stop = threading.Event()

    def load(client: int) -> None:
        turn = 0
        while not stop.is_set():
            fleet.ask(f"load-{client}-{turn}")
            turn += 1

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(load, client) for client in range(3)]
        try:
            until(lambda: b"prefill-0" in get(f"{fleet.admins[0]}/admin/fleet")[2])
            page = browse(f"{fleet.admins[0]}/dashboard", tmp_path, "--dump-dom")
            picture = tmp_path / "phone.png"
            browse(f"{fleet.admins[1]}/dashboard", tmp_path, "--window-size=500,1800", f"--screenshot={picture}")
        finally:
            stop.set()
    for worker in workers:
        worker.result()
    assert re.search(r'data-shown="[1-9]', page)
    assert 'class="silent"' not in page
    for text in ("router-0", "router-1", "prefill-0", "decode-0", "Redis", "random-llama", "Time to first token"):
        assert text in page, text
    assert re.search(r'class="flow kv on"', page)  # blocks flow from prefill-0 to decode-0
    assert re.search(r"<b>[\d.]+k?<span>tok/s</span></b>", page)
    assert picture.stat().st_size > 20_000


def browse(url: str, folder: Path, *flags: str) -> str:
    argv = [str(CHROMIUM), *CHROMIUM_FLAGS.split(), f"--user-data-dir={folder / 'profile'}", *flags, url]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "Refused to" not in done.stderr  # by the page's own policy
    shutil.rmtree(folder / "profile", ignore_errors=True)
    return done.stdout
