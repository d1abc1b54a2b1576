"""The acts of `baton chaos`: what it can do to a fleet. Each act returns when it has ended."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import NamedTuple, TypeVar
from urllib.parse import unquote

import psutil
import redis.asyncio

from baton.errors import BatonError
from fleet.chaos.fleet import PrivateFleet

_RESTART_S = 90.0
_POLL_S = 0.1
_DOWN_S = 3.0
_REDIS_TIMEOUT_S = 2.0

Returned = TypeVar("Returned")


class Done(NamedTuple):
    """The effects of an act."""

    ended: frozenset[int] = frozenset()  # pids of processes that have ended
    victims: frozenset[int] = frozenset()  # client ports of the connections of a killed router


Act = Callable[[PrivateFleet, int], Awaitable[Done]]


def signals(roles: tuple[str, ...], number: Signals = SIGKILL, hold_s: float = 0.0) -> Act:
    """Send the signal to one service of each role; frozen ones are continued after `hold_s`."""

    async def act(fleet: PrivateFleet, turn: int) -> Done:
        pids = {fleet.signal(role, turn, number) for role in roles}
        try:
            await asyncio.sleep(hold_s)
        finally:
            for pid in pids if number is SIGSTOP else ():
                os.killpg(pid, SIGCONT)
        return Done(frozenset(pids)) if number is SIGKILL else Done()

    return act


def whole_pool_killed(role: str) -> Act:
    """Kill all nodes of a pool at once; requests wait until one is back."""

    async def act(fleet: PrivateFleet, turn: int) -> Done:
        return Done(frozenset(fleet.signal(role, index, SIGKILL) for index in range(len(fleet.services(role)))))

    return act


async def router_killed(fleet: PrivateFleet, turn: int) -> Done:
    """Kill one of several routers. It is frozen first, so that its list of connections stays accurate."""
    pid = fleet.signal("router", turn, SIGSTOP)
    connections = psutil.Process(pid).net_connections("tcp")
    os.killpg(pid, SIGKILL)
    return Done(frozenset((pid,)), frozenset(one.raddr.port for one in connections if one.raddr))


async def rolling_restart(fleet: PrivateFleet, turn: int) -> Done:
    """Send SIGTERM to one process after another, and wait each time until its successor serves."""
    ended: set[int] = set()
    for service in [one for one in fleet.services() if one.role != "redis"]:
        if service.pid is None:
            continue
        os.kill(service.pid, SIGTERM)
        ended.add(service.pid)
        async with asyncio.timeout(_RESTART_S):
            while not fleet.is_whole(frozenset(ended)):  # noqa: ASYNC110 - another process reports it in a file
                await asyncio.sleep(_POLL_S)
    return Done(frozenset(ended))


async def redis_emptied(fleet: PrivateFleet, turn: int) -> Done:
    """Run FLUSHALL: registry, slots and index are gone, but all connections stay open."""
    await _tell(fleet.redis_url, lambda client: client.flushall())
    return Done()


async def redis_refuses(fleet: PrivateFleet, turn: int) -> Done:
    """Change Redis' password for some seconds, and close all of its connections."""
    password = unquote(fleet.redis_url.partition("password=")[2])
    await _tell(fleet.redis_url, lambda client: client.config_set("requirepass", password + "-not"))
    other_url = fleet.redis_url + "-not"
    try:
        await _tell(other_url, lambda client: client.client_kill_filter(_type="normal"))
        await asyncio.sleep(_DOWN_S)
    finally:
        await _tell(other_url, lambda client: client.config_set("requirepass", password))
    return Done()


async def nothing(fleet: PrivateFleet, turn: int) -> Done:
    """Do nothing, to show the effect of the load alone."""
    await asyncio.sleep(_DOWN_S)
    return Done()


async def _tell(url: str, call: Callable[["redis.asyncio.Redis"], Awaitable[Returned]]) -> None:
    client = redis.asyncio.from_url(url, socket_timeout=_REDIS_TIMEOUT_S)
    try:
        with suppress(redis.ConnectionError):  # the command may close its own connection
            await call(client)
    except redis.RedisError as error:
        raise BatonError(f"Redis rejected a command: {error}") from None
    finally:
        await client.aclose()
