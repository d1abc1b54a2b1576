"""Items of the scorecard on an endpoint that does everything wrong."""

import argparse
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench._load.target import Target
from fleet import state
from fleet.home import Home
from fleet.scorecard import command as scorecard
from fleet.scorecard import disaster as scorecard_disaster
from fleet.scorecard import files as scorecard_files
from fleet.scorecard import serving as scorecard_serving
from fleet.scorecard import trust as scorecard_trust
from fleet.scorecard.client import Client
from fleet.scorecard.item import Context, Item, Result
from fleet.state import FleetState


class Careless(http.server.BaseHTTPRequestHandler):
    """Answers 200 and the same body to every request."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        usage = {"prompt_tokens_details": {"cached_tokens": 0}}
        body = json.dumps({"data": [{"id": "m"}], "max_model_len": 64, "tokens": [1], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Logs nothing."""


@pytest.fixture
def context() -> Iterator[Context]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Context(Client(Target("127.0.0.1", server.server_address[1])), "m")
        server.shutdown()


def test_there_are_twenty_items_and_seventeen_are_critical():
    assert len(scorecard.ITEMS) == 20
    assert sum(item.critical for item in scorecard.ITEMS) == 17
    assert len({item.name for item in scorecard.ITEMS}) == 20


def test_every_item_is_in_the_docs():
    page = (Path(__file__).parents[3] / "docs" / "scorecard.md").read_text()
    for number, item in enumerate(scorecard.ITEMS, 1):
        assert f"| {number} | {item.name} | {'critical' if item.critical else ''} |" in page


def test_an_insecure_endpoint_fails(context: Context):
    assert scorecard_trust.routes_want_a_key(context).verdict == "fail"
    assert scorecard_trust.rates_are_limited(context).verdict == "fail"
    assert scorecard_serving.length_is_honoured(context).verdict == "fail"  # one token too many works as well
    assert scorecard_serving.prefixes_are_cached(context).verdict == "fail"
    assert scorecard_serving.structure_is_kept(context).verdict == "fail"
    assert scorecard_serving.ids_come_back(context).verdict == "fail"
    assert scorecard_files.metrics_are_there(context).verdict == "fail"
    assert scorecard_serving.probes_answer(context).verdict == "pass"


def test_what_cannot_be_checked_does_not_pass(context: Context):
    unseen = (
        scorecard_trust.keys_are_hidden,
        scorecard_trust.services_are_closed,
        scorecard_trust.prompts_are_not_logged,
        scorecard_serving.template_is_the_reference,
        scorecard_files.there_is_room,
        scorecard_files.load_was_tested,
        scorecard_disaster.a_dead_node_costs_nothing,
        scorecard_disaster.a_node_drains,
    )
    assert {check(context).verdict for check in unseen} == {"unknown"}


def test_plain_http_is_for_loopback_only():
    beyond = Context(Client(Target("fleet.example", 80)), "m")
    assert scorecard_trust.traffic_is_encrypted(beyond).verdict == "fail"
    assert scorecard_trust.traffic_is_encrypted(Context(Client(Target("127.0.0.1", 80)), "m")).verdict == "pass"


def test_alerts_and_dashboards_of_this_repository_pass(context: Context):
    assert scorecard_files.alerts_lead_somewhere(context).verdict == "pass"
    assert scorecard_files.dashboards_are_there(context).verdict == "pass"


def test_an_alert_without_a_runbook_fails(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "deploy" / "prometheus" / "rules").mkdir(parents=True)
    rules = "rules:\n  - alert: A\n    annotations:\n      runbook_url: docs/runbooks/nowhere.md\n"
    (tmp_path / "deploy" / "prometheus" / "rules" / "alerts.yaml").write_text(rules)
    monkeypatch.setattr(scorecard_files, "DEPLOY", tmp_path / "deploy")
    assert "nowhere.md" in scorecard_files.alerts_lead_somewhere(context).text


@pytest.mark.parametrize(("broken", "verdict"), [("", "pass"), ("chaos", "fail")])
def test_a_load_test_has_to_have_passed(tmp_path: Path, broken: str, verdict: str):
    names = ("baseline", "ramp", "sustained", "overload", "chaos")
    phases = [{"name": name, "checks": [{"passed": name != broken, "text": ""}]} for name in names]
    path = tmp_path / "load.json"
    path.write_text(json.dumps({"phases": phases}))
    context = Context(Client(Target("127.0.0.1", 1)), "m", loadtest_report=path)
    assert scorecard_files.load_was_tested(context).verdict == verdict


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "cannot read .*: No such file"), ("[1]", "is not a report"), ('{"phases": [{}]}', "is not a report")],
)
def test_a_load_test_report_that_cannot_be_read_is_a_clear_failure(tmp_path: Path, content: str | None, complaint: str):
    path = tmp_path / "load.json"
    if content is not None:
        path.write_text(content)
    context = Context(Client(Target("127.0.0.1", 1)), "m", loadtest_report=path)
    result = scorecard_files.load_was_tested(context)
    assert result.verdict == "fail"
    assert re.search(complaint, result.text)


def test_an_old_load_test_has_to_be_repeated(tmp_path: Path):
    path = tmp_path / "load.json"
    names = ("baseline", "ramp", "sustained", "overload", "chaos")
    path.write_text(json.dumps({"phases": [{"name": name, "checks": []} for name in names]}))
    os.utime(path, (0, 0))
    context = Context(Client(Target("127.0.0.1", 1)), "m", loadtest_report=path)
    result = scorecard_files.load_was_tested(context)
    assert result.verdict == "fail"
    assert "repeat the load test" in result.text


def key_that_is_sent(home: Path, *flags: str) -> str:
    """The key that `baton scorecard` with these flags uses for the fleet of this home."""
    parser = argparse.ArgumentParser()
    scorecard.add_arguments(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATON_HOME", str(home))
        return scorecard.context_of(parser.parse_args(flags)).client.target.api_key


def test_the_key_comes_from_the_flag_or_else_from_the_fleets_own_file(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BATON_API_KEY", "sk-env")
    monkeypatch.delenv("BATON_API_KEY_FILE", raising=False)
    own, other = tmp_path / "own", tmp_path / "other"
    own.write_text("sk-own\n")
    other.write_text("sk-other\n")
    home = Home(tmp_path / "home")
    home.create()
    url = context.client.target.url
    fleet = FleetState(0, "ready", url, "", "", "", ("m",), api_key_file=str(own))
    state.write(home, fleet)
    lock = home.lock()
    assert key_that_is_sent(home.path) == "sk-own"
    assert key_that_is_sent(home.path, "--api-key-file", str(other)) == "sk-other"
    assert key_that_is_sent(home.path, "--base-url", url) == "sk-env"
    assert key_that_is_sent(home.path, "--base-url", url, "--api-key-file", str(other)) == "sk-other"
    os.close(lock or 0)


def test_the_verdict_counts_critical_items_only():
    def item(critical: bool) -> Item:
        return Item("x", critical, lambda _: Result("pass", ""))

    good, bad = Result("pass", ""), Result("fail", "")
    assert scorecard.verdict([(item(True), good), (item(False), bad)]).startswith("ready: 1 of 1")
    assert scorecard.verdict([(item(True), good), (item(True), bad)]).startswith("NOT READY: 1 of 2")
    assert scorecard.verdict([(item(True), Result("unknown", ""))]).endswith("1 not checked")
