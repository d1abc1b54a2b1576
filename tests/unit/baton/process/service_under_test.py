"""An empty service for test_lifecycle: prints `ready`, waits for a drain, prints `drained`."""

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from baton.errors import ConfigError
from baton.process import lifecycle
from baton.process.config import flag


@dataclass(frozen=True)
class Config:
    mode: str = flag("", "what to do")


def say(line: str) -> None:
    print(line, flush=True)


def load(config: Config) -> str:
    if config.mode == "unloadable":
        raise ConfigError("no such model: nowhere")
    if config.mode == "slow-load":
        say("loading")
        time.sleep(60)
    return config.mode


async def serve(config: Config, mode: str, shutdown: lifecycle.Shutdown) -> None:
    if mode == "broken":
        raise RuntimeError("a bug")
    say("ready")
    try:
        await shutdown.wait()
        say("draining")
        if mode == "slow-drain":
            await asyncio.sleep(60)
    finally:
        say("closed")


def parent() -> None:
    """Start the service as a child, pass on its output, and wait to be killed."""
    env = os.environ | {"BATON_DIE_WITH_PARENT": str(os.getpid())}
    child = subprocess.Popen([sys.executable, __file__, "--mode", "slow-drain"], env=env)
    say(f"child {child.pid}")
    child.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["parent"]:
        parent()
    else:
        sys.exit(lifecycle.main("service", Config, load, serve))
