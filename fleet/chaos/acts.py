"""What `baton chaos` can do to a fleet. Each act returns when it is over itself."""

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

Told = TypeVar("Told")


class Done(NamedTuple):
    """What an act did."""

    ended: frozenset[int] = frozenset()  # processes that are no more
    victims: frozenset[int] = frozenset()  # far ports of the connections of a router that was killed


Act = Callable[[PrivateFleet, int], Awaitable[Done]]


def signals(roles: tuple[str, ...], number: Signals = SIGKILL, hold_s: float = 0.0) -> Act:
    """One service of each role gets the signal; frozen ones go on after `hold_s`."""

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
    """All nodes of a pool at once: requests wait until one is back."""

    async def act(fleet: PrivateFleet, turn: int) -> Done:
        return Done(frozenset(fleet.signal(role, index, SIGKILL) for index in range(len(fleet.services(role)))))

    return act


async def router_killed(fleet: PrivateFleet, turn: int) -> Done:
    """One of several. Frozen first, so that what is known of its connections stays true."""
    pid = fleet.signal("router", turn, SIGSTOP)
    connections = psutil.Process(pid).net_connections("tcp")
    os.killpg(pid, SIGKILL)
    return Done(frozenset((pid,)), frozenset(one.raddr.port for one in connections if one.raddr))


async def rolling_restart(fleet: PrivateFleet, turn: int) -> Done:
    """SIGTERM to one process after the other, each time waiting until its successor serves."""
    ended: set[int] = set()
    for service in [one for one in fleet.services() if one.role != "redis"]:
        if service.pid is None:
            continue
        os.kill(service.pid, SIGTERM)
        ended.add(service.pid)
        async with asyncio.timeout(_RESTART_S):
            while not fleet.is_whole(frozenset(ended)):  # noqa: ASYNC110 - another process says it, in a file
                await asyncio.sleep(_POLL_S)
    return Done(frozenset(ended))


async def redis_emptied(fleet: PrivateFleet, turn: int) -> Done:
    """FLUSHALL: registry, slots and index are gone, and nobody's connection breaks."""
    await _tell(fleet.redis_url, lambda client: client.flushall())
    return Done()


async def redis_refuses(fleet: PrivateFleet, turn: int) -> Done:
    """For some seconds the fleet's password is the wrong one, and all of its connections are closed."""
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
    """Shows what the load alone does."""
    await asyncio.sleep(_DOWN_S)
    return Done()


async def _tell(url: str, call: Callable[["redis.asyncio.Redis"], Awaitable[Told]]) -> None:
    client = redis.asyncio.from_url(url, socket_timeout=_REDIS_TIMEOUT_S)
    try:
        with suppress(redis.ConnectionError):  # its own connection may be among those that are closed
            await call(client)
    except redis.RedisError as error:
        raise BatonError(f"Redis did not do as told: {error}") from None
    finally:
        await client.aclose()
