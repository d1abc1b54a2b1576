"""`baton chaos`: what a fleet promises when something dies, tried out on a private one.

1. A fleet of two routers, two prefill and two decode nodes runs under load; one fault after the other befalls it.
   Then another one, whose nodes are apart (`chaos.network`), suffers what networks do.
2. A colocated fleet that nothing befalls answers the same questions: greedy or seeded, text, tokens and
   log-probabilities have to be the same.
3. The table, and exit code 1 where a promise is broken: a request failed, an answer differs, a stream stalled,
   KV blocks did not come back.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from baton.errors import BatonError, ConfigError
from baton.process.settings import TRANSPORTS
from fleet import trace
from fleet.chaos import hosts
from fleet.chaos import network as chaos_network
from fleet.chaos import report as chaos_report
from fleet.chaos.client import Answer
from fleet.chaos.faults import FAULTS, Fault, Outcome, suffer
from fleet.chaos.fleet import PrivateFleet, started
from fleet.chaos.load import ask_all
from fleet.chaos.memory import Memory
from fleet.chaos.questions import Question

_WIDTH = 160
_STREAMS, _SHORT_STREAMS = 32, 12
_NUM_TOPICS = 10  # of questions: what is asked again is not computed again by the reference
_KV_MEMORY = "64MiB"
_SIZE = {  # enough for a prompt to take a while
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Few flags."""
    parser.add_argument("--short", action="store_true", help="the most telling faults only, in under a minute")
    parser.add_argument("--only", default="", metavar="TEXT", help="only faults whose name contains TEXT")
    parser.add_argument("--rounds", type=int, default=1, help="each fault as many times, with other questions")
    parser.add_argument("--minutes", type=float, default=0.0, help="faults at random for so long; memory is watched")
    parser.add_argument("--seed", type=int, default=0, help="of the order of faults with --minutes")
    parser.add_argument("--streams", type=int, default=0, help="clients at a time; 32, or 12 with --short")
    parser.add_argument("--model", default="", metavar="DIR|HF_ID", help="a small random model if none is given")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--transport", default="auto", choices=TRANSPORTS)
    parser.add_argument(
        "--max-stall-s", type=float, default=3.0, help="what a fault may add to a stream's silence, or to a first token"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 1 where a promise is broken."""
    console = Console(width=_WIDTH, highlight=False, markup=False)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the fleets go as well then
    args.streams = args.streams or (_SHORT_STREAMS if args.short else _STREAMS)
    if not any(_chosen(args, faults) for faults in (FAULTS, chaos_network.FAULTS)):
        names = "; ".join(fault.name for fault in (*FAULTS, *chaos_network.FAULTS))
        raise ConfigError(f"--only: no fault's name contains {args.only!r}. There are: {names}")
    memory = Memory()
    with tempfile.TemporaryDirectory(prefix="baton-chaos-") as folder:
        model = args.model or str(_random_model(Path(folder)))
        flags = ("--dtype", args.dtype, "--kv-memory", _KV_MEMORY)
        outcomes: list[Outcome] = []
        local = _schedule(args, FAULTS)
        if local:
            shape = ("--transport", args.transport, "--prefill", "2", "--decode", "2", "--routers", "2")
            with started(Path(folder) / "home", "--model", model, *flags, *shape) as fleet:
                outcomes += asyncio.run(_suffer_all(fleet, local, args, memory, console))
        outcomes += _on_a_network(args, Path(folder), model, flags, console)
        if not outcomes:
            raise ConfigError("no fault was tried, so nothing is known of any promise")
        asked = {answer.question for outcome in outcomes for answer in outcome.answers}
        console.print(f"asking the same {len(asked)} questions of a fleet that nothing befalls")
        reference = _reference(Path(folder) / "reference", ("--model", model, *flags), asked, args.streams)
    return _report(outcomes, reference, args.max_stall_s, memory, console)


def _schedule(args: argparse.Namespace, faults: Sequence[Fault]) -> Iterator[Fault] | list[Fault]:
    """Each fault by turns, or at random until the time is up."""
    chosen = _chosen(args, faults)
    if not chosen or not args.minutes:
        return chosen * int(args.rounds)
    return _at_random(chosen, args.seed, time.monotonic() + 60 * args.minutes)


def _chosen(args: argparse.Namespace, faults: Sequence[Fault]) -> list[Fault]:
    return [fault for fault in faults if args.only in fault.name and (fault.in_short or not args.short)]


def _at_random(faults: list[Fault], seed: int, until_s: float) -> Iterator[Fault]:
    source = random.Random(seed)  # noqa: S311
    while time.monotonic() < until_s:
        yield source.choice(faults)


def _on_a_network(
    args: argparse.Namespace, folder: Path, model: str, flags: tuple[str, ...], console: Console
) -> list[Outcome]:
    """The faults of networks, on a fleet whose nodes have hosts of their own as far as they can tell."""
    faults = [] if args.minutes else _schedule(args, chaos_network.FAULTS)
    if not faults:
        return []
    if reason := chaos_network.unavailable():
        console.print(f"faults of networks are left out: {reason}")
        return []
    with hosts.started(folder / "network", model, *flags) as fleet:
        return asyncio.run(_suffer_all(fleet, faults, args, Memory(), console))


def _random_model(folder: Path) -> Path:
    from engine import random_checkpoint  # loads torch

    return random_checkpoint.write(folder / "random", random_checkpoint.TINY | _SIZE)


async def _suffer_all(
    fleet: PrivateFleet, faults: Iterable[Fault], args: argparse.Namespace, memory: Memory, console: Console
) -> list[Outcome]:
    outcomes = []
    num_blocks = fleet.num_blocks()
    for turn, fault in enumerate(faults):
        outcome = await suffer(fleet, fault, f"topic {turn % _NUM_TOPICS}", args.streams, turn, memory)
        if (now := fleet.num_blocks()) != num_blocks:
            outcome.num_lost_blocks = sum(num_blocks.values()) - sum(now.values())
        outcomes.append(outcome)
        num_failed = sum(answer.failed for answer in outcome.answers)
        said = f"{len(outcome.answers)} requests, {num_failed} failed, longest stall {outcome.longest_stall_s:.1f} s"
        console.print(f"{fault.name}: {said}, recovered in {outcome.recovery_s:.1f} s")
        if outcome.longest_stall_s > args.max_stall_s:
            _explain(fleet, outcome, console)
    return outcomes


def _explain(fleet: PrivateFleet, outcome: Outcome, console: Console) -> None:
    """Where the time of the stream went that stood still for longest."""
    answer = outcome.most_stalled
    if answer is None:
        return
    console.print(
        f"{answer.question.name} stood still for {answer.longest_stall_s:.2f} s, from {answer.stalled_at_s:.2f} s on:"
    )
    try:
        trace.show(fleet.trace(answer.request_id), console)
    except BatonError as error:
        console.print(f"there is no trace of it: {error.message}")


def _reference(
    home: Path, flags: tuple[str, ...], questions: set[Question], num_clients: int
) -> dict[Question, Answer]:
    with started(home, *flags, "--colocated") as fleet:
        return asyncio.run(ask_all(fleet.endpoint, questions, num_clients))


def _report(
    outcomes: list[Outcome], reference: dict[Question, Answer], max_stall_s: float, memory: Memory, console: Console
) -> int:
    console.print(chaos_report.table(outcomes, reference))
    for line in memory.described():
        console.print(line)
    broken = chaos_report.broken_promises(outcomes, reference, max_stall_s) + memory.grown()
    for line in broken:
        console.print(line)
    console.print(f"{len(broken)} promises broken" if broken else "every promise kept")
    return 1 if broken else 0
