"""What `baton chaos` does to a fleet under load, and how it waits for the fleet to be itself again."""

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals

from fleet.chaos_client import Answer
from fleet.chaos_fleet import PrivateFleet
from fleet.chaos_load import Load

BLOCKS_BACK_S = 10.0
WHOLE_AGAIN_S = 120.0
_POLL_S = 0.1
_EARLY_S = 0.06


@dataclass(frozen=True)
class Fault:
    """A signal to services, clients that hang up, or both; or nothing: then it shows what the load alone does."""

    name: str
    roles: tuple[str, ...] = ()  # one service of each
    signal: Signals = SIGKILL
    hold_s: float = 0.0  # a frozen service goes on after that
    early: bool = False  # while prompts are computed and shipped, not while answers stream
    share_hanging_up: float = 0.0
    in_short: bool = False


FAULTS = (
    Fault("none", hold_s=3),
    Fault("prefill killed", ("prefill",), early=True, in_short=True),
    Fault("prefill killed late", ("prefill",)),
    Fault("decode killed early", ("decode",), early=True),
    Fault("decode killed", ("decode",), in_short=True),
    Fault("both killed", ("prefill", "decode"), early=True),
    Fault("prefill frozen", ("prefill",), SIGSTOP, hold_s=10, early=True),
    Fault("decode frozen early", ("decode",), SIGSTOP, hold_s=10, early=True),
    Fault("decode frozen", ("decode",), SIGSTOP, hold_s=10),
    Fault("decode frozen for 4 s", ("decode",), SIGSTOP, hold_s=4, in_short=True),
    Fault("both frozen, clients hang up", ("prefill", "decode"), SIGSTOP, hold_s=4, early=True, share_hanging_up=0.5),
    Fault("redis killed", ("redis",), in_short=True),
    Fault("redis frozen", ("redis",), SIGSTOP, hold_s=5),
    Fault("decode and redis killed", ("decode", "redis")),
    Fault("clients hang up", hold_s=4, share_hanging_up=0.5),
)


@dataclass
class Outcome:
    """What was seen of a fault."""

    fault: Fault
    answers: list[Answer] = field(default_factory=list)
    held: dict[str, tuple[int, int]] = field(default_factory=dict)  # service -> blocks, requests; in the end none
    num_lost_blocks: int = 0  # of no state at all
    num_failovers: int = 0
    blocks_back_s: float = 0.0  # from the last answer
    recovery_s: float = 0.0  # from the fault, or its end, until every service is ready

    @property
    def num_leaked_blocks(self) -> int:
        """Blocks that did not come back."""
        return self.num_lost_blocks + sum(num_blocks for num_blocks, _ in self.held.values())

    @property
    def longest_stall_s(self) -> float:
        """Of all streams."""
        return max((answer.longest_stall_s for answer in self.answers), default=0.0)


async def suffer(fleet: PrivateFleet, fault: Fault, topic: str, num_clients: int, turn: int) -> Outcome:
    """Do it while `num_clients` streams run; returns when all is as before, or time is up."""
    outcome, num_failovers = Outcome(fault), fleet.num_failovers()
    async with Load(fleet.endpoint, fleet.model, topic, num_clients, fault.share_hanging_up) as load:
        await (asyncio.sleep(_EARLY_S * (turn + 1)) if fault.early else load.more(num_clients // 2))
        killed = await _do(fleet, fault, turn)
        recovery = asyncio.create_task(_until_whole(fleet, killed))
        await load.more(num_clients)
    outcome.answers = load.answers
    await _until_idle(fleet, outcome)
    outcome.recovery_s = await recovery
    outcome.num_failovers = fleet.num_failovers() - num_failovers
    return outcome


async def _do(fleet: PrivateFleet, fault: Fault, turn: int) -> set[int]:
    """The pids of processes that are no more."""
    pids = {fleet.signal(role, turn, fault.signal) for role in fault.roles}
    try:
        await asyncio.sleep(fault.hold_s)
    finally:
        for pid in pids if fault.signal is SIGSTOP else ():
            os.killpg(pid, SIGCONT)
    return pids if fault.signal is SIGKILL else set()


async def _until_idle(fleet: PrivateFleet, outcome: Outcome) -> None:
    began = time.monotonic()
    while True:
        with suppress(OSError):  # it has died, and the fleet does not know yet
            held = await asyncio.to_thread(fleet.held)
            outcome.held = {name: counts for name, counts in held.items() if any(counts)}
            outcome.blocks_back_s = time.monotonic() - began
            if not outcome.held:
                return
        if time.monotonic() - began > BLOCKS_BACK_S:
            return
        await asyncio.sleep(_POLL_S)


async def _until_whole(fleet: PrivateFleet, without: set[int]) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(WHOLE_AGAIN_S):
            while not fleet.is_whole(without):  # noqa: ASYNC110 - another process says it, in a file
                await asyncio.sleep(_POLL_S)
    return time.monotonic() - began
