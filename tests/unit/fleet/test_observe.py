"""`baton top` and `baton trace`, on a router's admin port simulated by the test."""

import argparse
import http.server
import json
import threading

import pytest
from rich.console import Console

from baton.errors import ConfigError
from fleet import top, trace
from fleet.admin_client import AdminClient

NODE = {
    "node_id": "decode-0", "role": "decode", "state": "ready", "epoch": 17, "kv_usage": 0.5, "num_running": 3,
    "num_waiting": 1, "output_tokens_per_s": 120.0, "prompt_tokens_per_s": 0.0, "cache_hit_ratio": None,
    "step_ms": 10.5, "preemptions_per_min": 2.0,
}  # fmt: skip
FLEET = {
    "models": ["tiny"],
    "redis": {"answers": False},
    "bottleneck": {"pool": "decode", "words": "Decode is the bottleneck."},
    "routers": [
        {"node_id": "router-0.ab12", "state": "ready", "answers": True, "num_in_flight": 4, "num_waiting": 0,
         "requests_per_s": 2.5},
        {"node_id": "router-1.cd34", "state": "ready", "answers": False},
    ],
    "nodes": [NODE],
    "transfers": [{"prefill": "prefill-0", "decode": "decode-0", "bytes_per_s": 2.5e6}],
    "now": {
        "requests_per_s": 2.5, "errors_per_s": 0.0, "refused_per_s": 0.5, "output_tokens_per_s": 120.0,
        "cache_hit_ratio": 0.25, "ttft_ms": [30.0, 80.5, None], "tpot_ms": [None, None, None],
    },
    "history": {
        "requests_per_s": [0, 1, 2], "errors_per_s": [0, 0], "output_tokens_per_s": [5],
        "ttft_ms": [[None] * 3], "tpot_ms": [],
    },
}  # fmt: skip
TRACE = {
    "request_id": "r 1", "name": "POST /v1/completions", "complete": True, "total_s": 0.2,
    "attributes": {"status": 200},
    "events": [
        {"where": "router-0.ab12", "name": "route", "start_s": 0.001, "end_s": 0.002, "attributes": {"attempt": 0}},
        {"where": "prefill-0", "name": "transfer", "start_s": 0.05, "end_s": 0.1,
         "attributes": {"num_bytes": 3_000_000}},
    ],
    "silent_nodes": ["decode-9"],
}  # fmt: skip


@pytest.fixture
def admin():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = {"/admin/fleet": FLEET, "/admin/trace/r%201": TRACE}
            if self.headers["Authorization"] != "Bearer sk-one":
                status, body = 401, {"error": {"message": "a key is needed"}}
            elif self.path in known:
                status, body = 200, known[self.path]
            elif self.path == "/admin/trace/page":
                status, body = 200, "a page of somebody else"
            else:
                status, body = 404, {"error": {"message": "No router remembers this request"}}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def args(admin, tmp_path):
    (tmp_path / "keys").write_text("# ours\nsk-one\n")

    def make(**more):
        given = {"admin": f"{admin}/dashboard", "api_key_file": str(tmp_path / "keys"), "once": True, "json": False}
        return argparse.Namespace(**given | more)

    return make


def test_top_once_prints_the_dashboard(args, capsys):
    assert top.run(args()) == 0
    said = capsys.readouterr().out
    for part in ("Decode is the bottleneck.", "Redis does not answer", "30 / 80.5 / -", "█" * 8, "2.50 MB/s", "▁▅█"):
        assert part in said, part
    assert "router-1  lost" in said
    assert "ab12" not in said


def test_top_survives_a_router_restart(args):
    assert top.look(args(), {}) == (FLEET, "")
    assert top.look(args(admin="http://127.0.0.1:1"), FLEET)[0] == FLEET
    assert "no admin port answers" in top.look(args(admin="http://127.0.0.1:1"), FLEET)[1]


def test_trace_prints_a_table_of_events(args, capsys):
    assert trace.run(args(request_id="r 1")) == 0
    said = capsys.readouterr().out
    assert "200.0 ms" in said
    assert "bytes 3.00 MB" in said
    assert "No answer from decode-9" in said
    assert trace.run(args(request_id="r 1", json=True)) == 0
    assert json.loads(capsys.readouterr().out) == TRACE


def test_errors_are_reported(args, admin):
    with pytest.raises(ConfigError, match="/admin/trace/unknown answers 404: No router remembers"):
        trace.run(args(request_id="unknown"))
    with pytest.raises(ConfigError, match="'ftp://x' is not the address of an HTTP endpoint"):
        trace.run(args(request_id="r 1", admin="ftp://x"))
    with pytest.raises(ConfigError, match="401: a key is needed"):
        AdminClient([admin], "wrong").get("/admin/fleet", "nodes")
    with pytest.raises(ConfigError, match="/admin/trace/page answers 200: is it a router"):
        trace.run(args(request_id="page"))
    with pytest.raises(ConfigError, match="/admin/fleet answers 200: is it a router"):
        AdminClient([admin], "sk-one").get("/admin/fleet", "something else")
    with pytest.raises(ConfigError, match=r"no admin port answers \(http://127.0.0.1:1: Connection refused\)"):
        AdminClient(["http://127.0.0.1:1"]).get("/admin/fleet", "nodes")
    assert AdminClient(["http://127.0.0.1:1", admin], "sk-one").get("/admin/fleet", "nodes") == FLEET


@pytest.mark.parametrize("width", [60, 80, 150])
def test_nothing_is_cut_off_in_a_narrow_terminal(width, capsys):
    console = Console(width=width, highlight=False)
    console.print(top.render(FLEET, console))
    trace.show(TRACE, console)
    said = capsys.readouterr().out
    assert "…" not in said
    for part in ("decode-0  ready", "50%", "RUN", "30 / 80.5 / -", "prefill-0", "3.00 MB"):
        assert part in said, part
    assert ("EPOCH" in said) is (width == 150)


def test_sparklines_scale_to_their_largest_value():
    assert top.sparks([0, 1, None, 2]) == "▁▅ █"
    assert top.sparks([0, None]) == ""
    assert len(top.sparks(range(500))) == 40
