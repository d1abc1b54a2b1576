"""`python -m router` as an operator meets it: what it says when it cannot start, and how it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from tokenizers import Tokenizer, models

from tests.conftest import free_port


@pytest.fixture
def model_dir(tmp_path):
    path = tmp_path / "some-model"
    path.mkdir()
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path / "tokenizer.json"))
    (path / "config.json").write_text('{"vocab_size": 2, "max_position_embeddings": 64, "eos_token_id": 1}')
    return path


def command(*flags):
    return [sys.executable, "-m", "router", *map(str, flags)]


def start(redis_url, *flags, **env):
    env = {**os.environ, "BATON_REDIS_URL": redis_url, **env}
    return subprocess.Popen(command(*flags), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def started(redis_url, *flags, **env):
    process = start(redis_url, *flags, **env)
    try:
        line = process.stdout.readline()
        assert line.startswith("ready "), process.stderr.read()
        yield process, json.loads(line.removeprefix("ready "))
    finally:
        process.kill()
        process.communicate()


def get(address, path, **headers):
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{address}{path}", headers=headers), timeout=5
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def failure(redis_url, *flags, **env):
    process = start(redis_url, *flags, **env)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert len(said.splitlines()) == 1, said
    return said


def test_starts_serves_and_ends(redis_url, model_dir):
    with started(redis_url, "--model", model_dir, "--port", 0) as (process, facts):
        address = facts["address"]
        assert get(address, "/health") == (200, b'{"status":"ok"}')
        assert get(address, "/ready")[0] == 503  # there are no nodes
        assert json.loads(get(address, "/v1/models")[1])["data"][0]["id"] == "some-model"
        assert (
            b"baton_requests" in get(facts["metrics"].removeprefix("http://").removesuffix("/metrics"), "/metrics")[1]
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_loads_in_a_second_and_without_torch(redis_url, model_dir):
    code = "import router.server, sys; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    began = time.process_time(), os.times().children_user
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert os.times().children_user - began[1] < 2.0  # about half of it on a quiet machine


def test_two_routers_share_a_port(redis_url, model_dir):
    port = free_port()
    flags = ("--model", model_dir, "--port", port)
    with started(redis_url, *flags) as (first, _), started(redis_url, *flags) as (_, facts):
        assert facts["address"] == f"127.0.0.1:{port}"
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=10) == 0
        assert get(facts["address"], "/health")[0] == 200


def test_a_second_router_on_an_admin_port_is_refused(redis_url, model_dir):
    port = free_port()
    flags = ("--model", model_dir, "--port", 0, "--admin-port", port)
    with started(redis_url, *flags):
        said = failure(redis_url, *flags)
    assert said == f"baton router: error: admin port: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_of_two_routers_that_start_at_once_one_gets_the_admin_port(redis_url, model_dir):
    flags = ("--model", model_dir, "--port", 0, "--admin-port", free_port())
    both = [start(redis_url, *flags) for _ in range(2)]
    try:
        lines = [process.stdout.readline() for process in both]  # the one that is refused ends without any
        assert sorted(line[:6] for line in lines) == ["", "ready "]
    finally:
        for process in both:
            process.kill()
    assert sum("error: admin port: cannot listen" in process.communicate()[1] for process in both) == 1


def test_a_router_of_another_fleet_does_not_share_the_port(redis_url, redis_server, model_dir):
    port = free_port()
    flags = ("--model", model_dir, "--port", port)
    with started(redis_url, *flags):
        said = failure(redis_server.url, *flags)
    assert f"127.0.0.1:{port}: a process that is not a router of this fleet listens there; choose another port" in said


def test_a_frozen_router_does_not_keep_others_from_its_port(redis_url, redis_server, model_dir):
    port = free_port()
    flags = ("--model", model_dir, "--port", port)
    with started(redis_url, *flags) as (frozen, _):
        frozen.send_signal(signal.SIGSTOP)
        try:
            with started(redis_server.url, *flags) as (_, facts):  # where the frozen one is not registered either
                assert facts["address"] == f"127.0.0.1:{port}"
        finally:
            frozen.send_signal(signal.SIGCONT)


def test_an_occupied_port_is_one_clear_line(redis_url, model_dir):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = failure(redis_url, "--model", model_dir, "--port", port)
    assert f"127.0.0.1:{port}" in said
    assert "in use" in said


def test_what_cannot_work_is_one_clear_line(redis_url, model_dir):
    assert "redis url" in failure("http://127.0.0.1", "--model", model_dir, "--port", 0)
    (model_dir / "tokenizer.json").unlink()
    assert "tokenizer.json" in failure(redis_url, "--model", model_dir, "--port", 0)


def test_started_while_redis_is_away_it_serves_once_redis_is_there(redis_server, model_dir):
    redis_server.kill()
    process = start(redis_server.url, "--model", model_dir, "--port", 0)
    try:
        assert "no Redis answers" in process.stderr.readline()
        redis_server.start()
        assert process.stdout.readline().startswith("ready ")
    finally:
        process.kill()
        process.communicate()


def test_a_signal_ends_a_node_that_waits_for_redis(redis_server, model_dir):
    redis_server.kill()
    process = start(redis_server.url, "--model", model_dir, "--port", 0)
    assert "no Redis answers" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (0, "")


def test_keys_come_from_the_environment(redis_url, model_dir):
    with started(redis_url, "--model", model_dir, "--port", 0, BATON_API_KEY="sk-canary") as (process, facts):
        assert get(facts["address"], "/v1/models")[0] == 401
        assert get(facts["address"], "/v1/models", Authorization="Bearer sk-canary")[0] == 200
        assert get(facts["address"], "/health")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert "canary" not in process.stderr.read()


def test_the_admin_port_wants_a_key_and_gives_a_cookie_for_it(redis_url, model_dir):
    flags = ("--model", model_dir, "--port", 0, "--node-id", "router-7")
    with started(redis_url, *flags, BATON_API_KEY="sk-canary", BATON_SERVICE_TOKEN="tok-canary") as (process, facts):
        admin = facts["metrics"].removeprefix("http://").removesuffix("/metrics")
        for path in ("/metrics", "/admin/fleet", "/admin/router", "/admin/trace/x", "/nothing"):
            assert get(admin, path)[0] == 401, path
            assert get(admin, path, Authorization="Bearer sk-wrong")[0] == 401, path
        assert b"Sign in" in get(admin, "/dashboard")[1]  # sent on to the login
        assert post(admin, "/login", {"key": "sk-wrong"})[0] == 401
        assert post(admin, "/login", ["sk-canary"])[0] == 400
        status, cookie = post(admin, "/login", {"key": "sk-canary"})
        assert (status, "sk-canary" in cookie) == (200, False)
        cookie = cookie.partition(";")[0]
        assert b"Time to first token" in get(admin, "/dashboard", Cookie=cookie)[1]
        fleet = json.loads(get(admin, "/admin/fleet", Cookie=cookie)[1])
        assert fleet["bottleneck"] == {"pool": "down", "words": "No decode node is ready."}
        assert fleet["routers"][0]["node_id"].startswith("router-7.")
        assert b'role="router"' in get(admin, "/metrics", Authorization="Bearer tok-canary")[1]
        assert get(admin, "/admin/trace/unknown", Cookie=cookie)[0] == 404
        assert get(admin, "/nothing", Cookie=cookie)[0] == 404
        assert post(admin, "/admin/fleet", {}, Cookie=cookie)[0] == 405
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert "canary" not in process.stderr.read()


def test_an_open_admin_port_is_for_this_host_alone(redis_url, model_dir):
    with started(redis_url, "--model", model_dir, "--port", 0) as (_, facts):
        admin = facts["metrics"].removeprefix("http://").removesuffix("/metrics")
        assert get(admin, "/admin/fleet")[0] == 200
        assert get(admin, "/admin/fleet", Host="rebound.example")[0] == 403
    said = failure(redis_url, "--model", model_dir, "--port", 0, "--admin-host", "0.0.0.0")
    assert "admin port" in said


def post(address, path, body, **headers):
    """Status, and the cookie that was set."""
    headers |= {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers.get("Set-Cookie", "")
    except urllib.error.HTTPError as error:
        return error.code, ""
