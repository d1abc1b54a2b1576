"""`baton up`: starts a fleet, shows its progress, keeps it running, and stops it on Ctrl-C or SIGTERM.

The first signal drains, a second one kills. With --detach the supervisor runs on in a session of its own, and this
command returns when the fleet is ready.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from baton import model_source
from baton.errors import ConfigError
from baton.model_source import Model
from baton.process.config import add_flags, from_args
from baton.process.settings import FleetConfig, misspelt
from fleet import control, state
from fleet.home import Home, remove_run_dir
from fleet.up import detach, embedded_redis, port
from fleet.up.console import Reporter, for_terminal
from fleet.up.services import Services
from fleet.up.supervisor import Fleet
from fleet.up.welcome import welcome

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of FleetConfig."""
    add_flags(parser, FleetConfig)


def run(args: argparse.Namespace) -> int:
    """Run the fleet; return its exit code when it has stopped, or, with --detach, when it is ready."""
    config = _checked(from_args(FleetConfig, args))
    for warning in misspelt(os.environ):
        print(f"baton: warning: {warning}", file=sys.stderr)
    home = Home.from_env()
    os.umask(0o077)
    home.create()
    if home.is_locked():  # report this rather than that the port is taken
        raise ConfigError(_runs_already(home))
    served = model_source.resolve(config.model, config.served_model_name)
    with contextlib.ExitStack() as held:
        reserved = held.enter_context(port.reserve(config.host, config.port))
        config = dataclasses.replace(config, port=port.number(reserved))
        admin_ports = tuple(port.number(held.enter_context(sock)) for sock in _admin_sockets(config))
        supervised = partial(_supervise, config, served, admin_ports, home)
        return (
            detach.run(home, supervised) if config.detach else supervised(for_terminal(sys.stdout), lambda code: None)
        )


def _admin_sockets(config: FleetConfig) -> Iterator[socket.socket]:
    """Reserve the routers' admin ports, so that restarted routers keep them."""
    for index in range(config.routers):
        wanted = config.admin_port + index if config.admin_port else 0
        yield port.reserve("127.0.0.1", wanted, "--admin-port", shared=False)


def _supervise(
    config: FleetConfig,
    served: Model,
    admin_ports: tuple[int, ...],
    home: Home,
    reporter: Reporter,
    on_start: detach.OnStart,
) -> int:
    """Run the fleet under the home's lock; return the exit code. `on_start` gets the exit code of the start."""
    lock = home.lock()
    if lock is None:
        raise ConfigError(_runs_already(home))
    _clear_away(state.read(home))
    home.rotate_logs()
    run_dir = home.make_run_dir()
    try:
        services = _services(config, served, admin_ports, run_dir)
        return asyncio.run(_Supervision(services, home, run_dir, reporter, on_start).run())
    finally:
        reporter.close()
        home.state_file.unlink(missing_ok=True)
        remove_run_dir(run_dir)
        os.close(lock)


class _Supervision:
    """Runs one fleet from start to stop, and handles signals and control messages."""

    def __init__(
        self, services: Services, home: Home, run_dir: Path, reporter: Reporter, on_start: detach.OnStart
    ) -> None:
        self._services, self._run_dir, self._reporter, self._on_start = services, run_dir, reporter, on_start
        self._fleet = Fleet(services, home, run_dir, reporter)
        self._asked = asyncio.Event()
        self._killed = False

    async def run(self) -> int:
        """Run the fleet until it is stopped; return the exit code."""
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)
        server = await control.serve(self._run_dir / "control.sock", self._handle, self._fleet.starting)
        try:
            return await self._start_and_wait()
        finally:
            server.close()
            await self._fleet.stop()

    async def _start_and_wait(self) -> int:
        starting = asyncio.create_task(self._fleet.start())
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            self._reporter.close()
            self._reporter.note("Stopped before all was ready.")
            self._on_start(130)
            return 130
        self._reporter.close()
        starting.result()
        self._reporter.note(welcome(self._services))
        self._on_start(0)
        await asked
        self._reporter.note("Stopping; running requests may finish. Press Ctrl-C again to kill.")
        return 130 if self._killed else 0

    def _signalled(self) -> None:
        if self._asked.is_set():
            self._killed = True
            self._fleet.kill()
        self._asked.set()

    async def _handle(self, message: dict[str, Any]) -> dict[str, Any]:
        match message.get("command"):
            case "down":
                self._asked.set()
                return {"pid": os.getpid()}
            case "scale":
                if self._fleet.phase != "ready":
                    raise ConfigError(f"the fleet is {self._fleet.phase}: retry when it is ready")
                return {"done": await self._fleet.scale(_counts(message.get("pools")))}
        raise ConfigError("no such command")


def _checked(config: FleetConfig) -> FleetConfig:
    """Return the configuration after checking it. Raises ConfigError for invalid values."""
    for name in ("prefill", "decode", "routers"):
        if not 1 <= getattr(config, name) <= 64 and not (name == "prefill" and config.colocated):
            raise ConfigError(f"--{name}: expected a number from 1 to 64")
    if config.api_key_file and not os.access(config.api_key_file, os.R_OK):
        raise ConfigError(f"--api-key-file: cannot read {config.api_key_file}")
    return config


def _services(config: FleetConfig, served: Model, admin_ports: tuple[int, ...], run_dir: Path) -> Services:
    return Services(
        config=config,
        model=served,
        redis_url=config.redis_url or embedded_redis.new_url(run_dir),
        service_token=os.environ.get("BATON_SERVICE_TOKEN") or secrets.token_urlsafe(32),
        admin_ports=admin_ports,
        suffix=f"-{secrets.token_hex(2)}" if config.redis_url else "",
    )


def _runs_already(home: Home) -> str:
    known = state.read(home)
    where = f" at {known.endpoint} (process {known.pid})" if known else ""
    return f"a fleet is already running{where}: stop it with `baton down`, or set BATON_HOME to run another one"


def _clear_away(left: state.FleetState | None) -> None:
    """Remove the sockets that a killed supervisor left behind."""
    if left is not None:
        remove_run_dir(Path(left.run_dir))


def _counts(pools: Any) -> dict[str, int]:
    if not isinstance(pools, dict) or not all(isinstance(n, int) for n in pools.values()):
        raise ConfigError("pools: expected a number of nodes for each pool")
    return pools
