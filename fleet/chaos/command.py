"""`baton chaos`: tests on a private fleet what a fleet guarantees when something dies.

1. A fleet of two routers, two prefill and two decode nodes runs under load, and one fault after another is injected.
   Network faults follow, on a second fleet whose nodes are in separate network namespaces (`chaos.network`).
2. An undisturbed colocated fleet answers the same questions. Greedy or seeded, the text, tokens and
   log-probabilities must be equal.
3. A table is printed. The exit code is 1 if a guarantee was broken: a request failed, an answer differs, a stream
   stalled, or KV blocks were not returned.
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
from baton.process.bounds import real, whole
from baton.process.config import MAX_INT32
from baton.process.settings import TRANSPORTS
from fleet import trace
from fleet.chaos import hosts
from fleet.chaos import network as chaos_network
from fleet.chaos import report as chaos_report
from fleet.chaos.client import Answer
from fleet.chaos.faults import FAULTS, Fault, Outcome, inject
from fleet.chaos.fleet import PrivateFleet, started
from fleet.chaos.load import ask_all
from fleet.chaos.memory import Memory
from fleet.chaos.questions import Question

_WIDTH = 160
_STREAMS, _SHORT_STREAMS = 32, 12
_NUM_TOPICS = 10  # of questions; the reference computes a repeated question only once
_KV_MEMORY = "64MiB"
_SIZE = {  # large enough that a prompt takes a while
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--short", action="store_true", help="only the most important faults, in under a minute")
    parser.add_argument("--only", default="", metavar="TEXT", help="only faults whose name contains TEXT")
    parser.add_argument(
        "--rounds", type=whole(), default=1, help="repeat each fault this many times, with other questions"
    )
    parser.add_argument(
        "--minutes", type=real(), default=0.0, help="inject random faults for this long, and watch memory"
    )
    parser.add_argument(
        "--seed", type=whole(0, MAX_INT32), default=0, help="seed for the order of faults with --minutes"
    )
    parser.add_argument(
        "--streams", type=whole(0, 1000), default=0, help="concurrent clients (default: 32, or 12 with --short)"
    )
    parser.add_argument("--model", default="", metavar="DIR|HF_ID", help="model to serve (default: a small random one)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="type of weights and KV"
    )
    parser.add_argument("--transport", default="auto", choices=TRANSPORTS, help="transport for KV blocks")
    parser.add_argument(
        "--max-stall-s", type=real(), default=3.0, help="delay that a fault may add to any token (default: 3)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the faults; return 1 if a guarantee was broken."""
    console = Console(width=_WIDTH, highlight=False, markup=False)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # also stops the fleets
    args.streams = args.streams or (_SHORT_STREAMS if args.short else _STREAMS)
    everything = (*FAULTS, *_of_a_network(args))
    if not _chosen(args, everything):
        names = "; ".join(fault.name for fault in everything)
        raise ConfigError(f"--only: no fault's name contains {args.only!r}. Available: {names}")
    memory = Memory()
    with tempfile.TemporaryDirectory(prefix="baton-chaos-") as folder:
        model = args.model or str(_random_model(Path(folder)))
        flags = ("--dtype", args.dtype, "--kv-memory", _KV_MEMORY)
        outcomes: list[Outcome] = []
        local = _schedule(args, FAULTS)
        if local:
            shape = ("--transport", args.transport, "--prefill", "2", "--decode", "2", "--routers", "2")
            with started(Path(folder) / "home", "--model", model, *flags, *shape) as fleet:
                outcomes += asyncio.run(_inject_all(fleet, local, args, memory, console))
        outcomes += _on_a_network(args, Path(folder), model, flags, console)
        if not outcomes:
            raise ConfigError("no fault was injected, so nothing was tested")
        asked = {answer.question for outcome in outcomes for answer in outcome.answers}
        console.print(f"asking an undisturbed fleet the same {len(asked)} questions")
        reference = _reference(Path(folder) / "reference", ("--model", model, *flags), asked, args.streams)
    return _report(outcomes, reference, args.max_stall_s, memory, console)


def _schedule(args: argparse.Namespace, faults: Sequence[Fault]) -> Iterator[Fault] | list[Fault]:
    """Return the faults in order, or at random until the time is up."""
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
    """Inject the network faults, on a fleet whose nodes are in separate network namespaces."""
    faults = [] if args.minutes else _schedule(args, _of_a_network(args))
    if not faults:
        return []
    if reason := chaos_network.unavailable():
        console.print(f"skipping network faults: {reason}")
        return []
    with hosts.started(folder / "network", model, *flags, "--transport", _between_hosts(args)) as fleet:
        return asyncio.run(_inject_all(fleet, faults, args, Memory(), console))


def _of_a_network(args: argparse.Namespace) -> Sequence[Fault]:
    of_ucx = chaos_network.UCX_FAULTS if _between_hosts(args) == "ucx" else ()
    return (*chaos_network.FAULTS, *of_ucx)


def _between_hosts(args: argparse.Namespace) -> str:
    """The transport that `--transport` means for nodes that are apart, though they share a kernel here."""
    return "tcp" if args.transport == "tcp" else "ucx"


def _random_model(folder: Path) -> Path:
    from engine import random_checkpoint  # loads torch

    return random_checkpoint.write(folder / "random", random_checkpoint.TINY | _SIZE)


async def _inject_all(
    fleet: PrivateFleet, faults: Iterable[Fault], args: argparse.Namespace, memory: Memory, console: Console
) -> list[Outcome]:
    outcomes = []
    num_blocks = fleet.num_blocks()
    for turn, fault in enumerate(faults):
        outcome = await inject(fleet, fault, f"topic {turn % _NUM_TOPICS}", args.streams, turn, memory)
        if (now := fleet.num_blocks()) != num_blocks:
            outcome.num_lost_blocks = sum(num_blocks.values()) - sum(now.values())
        outcomes.append(outcome)
        num_failed = sum(answer.failed for answer in outcome.answers)
        effect = f"{len(outcome.answers)} requests, {num_failed} failed, longest stall {outcome.longest_stall_s:.1f} s"
        console.print(f"{fault.name}: {effect}, recovered in {outcome.recovery_s:.1f} s")
        if outcome.longest_stall_s > args.max_stall_s:
            _explain(fleet, outcome, console)
    return outcomes


def _explain(fleet: PrivateFleet, outcome: Outcome, console: Console) -> None:
    """Print the timeline of the stream that stalled for longest."""
    answer = outcome.most_stalled
    if answer is None:
        return
    console.print(
        f"{answer.question.name} stalled for {answer.longest_stall_s:.2f} s, from {answer.stalled_at_s:.2f} s on:"
    )
    try:
        trace.show(fleet.trace(answer.request_id), console)
    except BatonError as error:
        console.print(f"no trace is available: {error.message}")


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
    broken = chaos_report.broken_guarantees(outcomes, reference, max_stall_s) + memory.grown()
    for line in broken:
        console.print(line)
    console.print(f"{len(broken)} guarantees broken" if broken else "all guarantees held")
    return 1 if broken else 0
