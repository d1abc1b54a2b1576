"""A fleet that exports its spans, and the collector that gets them."""

import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from engine import random_checkpoint

TOKEN = "canary-of-the-fleets-token"
PROMPT = "canaries sing in the mine " * 8
SPAN_ID = "00f067aa0ba902b7"


class Collector:
    """A small OTLP/HTTP collector."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []  # service.name, span
        spans = self.spans

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {a.key: a.value.string_value for a in group.resource.attributes}
                    spans.extend((names["service.name"], s) for scope in group.scope_spans for s in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace_id: str) -> list[tuple[str, Any]]:
        return [(service, span) for service, span in list(self.spans) if span.trace_id.hex() == trace_id]


class Fleet:
    """Two routers, a prefill and a decode node."""

    def __init__(self, folder: Path, collector: Collector) -> None:
        self.home = folder / "home"
        own = {"BATON_HOME": str(self.home), "NO_COLOR": "1", "BATON_SERVICE_TOKEN": TOKEN}
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")} | own
        model = random_checkpoint.write(folder / "random-llama")
        flags = ["--model", model, "--port", "0", "--kv-memory", "8MiB", "--routers", "2", "--detach"]
        self.up = self.baton("up", *map(str, flags), "--log-format", "json", "--otlp-endpoint", collector.url)
        assert self.up.returncode == 0, self.up.stdout + self.up.stderr + self.logs()
        self.status = json.loads(self.baton("status", "--json").stdout)
        self.metrics = {node["id"]: node["metrics"] for node in self.status["nodes"]}
        self.admins = [self.metrics[name].removesuffix("/metrics") for name in ("router-0", "router-1")]

    def baton(self, *args: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "fleet", *args]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=200)

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in (self.home / "logs").iterdir())

    def ask(self, request_id: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        body = {"model": "random-llama", "prompt": prompt_of(request_id), "max_tokens": 24, "ignore_eos": True}
        headers |= {"content-type": "application/json", "x-request-id": request_id}
        return get(f"{self.status['endpoint']}/v1/completions", json.dumps(body).encode(), **headers)

    def ship(self, name: str) -> str:
        """Ask until a prompt was computed on the prefill node, of which the id; the decode node may take short ones."""
        for number in range(100):
            request_id = f"{name}-{number}"
            status, headers, _ = self.ask(request_id, traceparent=f"00-{trace_id_of(request_id)}-{SPAN_ID}-01")
            assert (status, headers["x-request-id"]) == (200, request_id)
            if any(event["name"] == "transferred" for event in self.trace(self.admins[0], request_id)["events"]):
                return request_id
        raise AssertionError("no prompt was ever shipped")

    def trace(self, admin: str, request_id: str) -> dict[str, Any]:
        status, _, body = get(f"{admin}/admin/trace/{request_id}")
        assert status == 200, body
        return json.loads(body)


def prompt_of(request_id: str) -> str:
    """One that no cache knows, so that it is computed and shipped; a token per character."""
    return f"{request_id}: {PROMPT}"


def trace_id_of(request_id: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, request_id).hex


def get(url: str, data: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()
