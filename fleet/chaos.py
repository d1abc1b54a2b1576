"""`baton chaos`: what a fleet promises when something dies, tried out on a private one.

1. A fleet of two prefill and two decode nodes runs under load; one fault after the other befalls it.
2. A colocated fleet that nothing befalls answers the same questions: greedy or seeded, text, tokens and
   log-probabilities have to be the same.
3. The table, and exit code 1 where a promise is broken: a request failed, an answer differs, a stream stalled,
   KV blocks did not come back.
"""

import argparse
import asyncio
import itertools
import tempfile
from pathlib import Path

from rich.console import Console

from fleet import chaos_report
from fleet.chaos_client import Answer
from fleet.chaos_faults import FAULTS, Fault, Outcome, suffer
from fleet.chaos_fleet import PrivateFleet, started
from fleet.chaos_load import ask_all
from fleet.chaos_questions import Question

_WIDTH = 160
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
    parser.add_argument("--streams", type=int, default=12, help="clients at a time")
    parser.add_argument("--model", default="", metavar="DIR|HF_ID", help="a small random model if none is given")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--transport", default="auto", choices=("auto", "shm", "ucx", "tcp"))
    parser.add_argument(
        "--max-stall-s", type=float, default=3.0, help="what a fault may add to the longest silence of a stream"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 1 where a promise is broken."""
    console = Console(width=_WIDTH, highlight=False, markup=False)
    with tempfile.TemporaryDirectory(prefix="baton-chaos-") as folder:
        model = args.model or str(_random_model(Path(folder)))
        flags = ("--model", model, "--dtype", args.dtype, "--transport", args.transport, "--kv-memory", _KV_MEMORY)
        with started(Path(folder) / "home", *flags, "--prefill", "2", "--decode", "2") as fleet:
            outcomes = asyncio.run(_suffer_all(fleet, args, console))
        asked = {answer.question for outcome in outcomes for answer in outcome.answers}
        console.print(f"asking the same {len(asked)} questions of a fleet that nothing befalls")
        reference = _reference(Path(folder) / "reference", flags, asked, args.streams)
    return _report(outcomes, reference, args.max_stall_s, console)


def _random_model(folder: Path) -> Path:
    from engine import random_checkpoint  # loads torch

    return random_checkpoint.write(folder / "random", random_checkpoint.TINY | _SIZE)


async def _suffer_all(fleet: PrivateFleet, args: argparse.Namespace, console: Console) -> list[Outcome]:
    outcomes = []
    num_blocks = fleet.num_blocks()
    for turn, fault in itertools.product(range(args.rounds), _chosen(args)):
        outcome = await suffer(fleet, fault, f"{fault.name} {turn}", args.streams, turn)
        if (now := fleet.num_blocks()) != num_blocks:
            outcome.num_lost_blocks = sum(num_blocks.values()) - sum(now.values())
        outcomes.append(outcome)
        console.print(f"{fault.name}: {len(outcome.answers)} requests, recovered in {outcome.recovery_s:.1f} s")
    return outcomes


def _chosen(args: argparse.Namespace) -> list[Fault]:
    return [fault for fault in FAULTS if args.only in fault.name and (fault.in_short or not args.short)]


def _reference(
    home: Path, flags: tuple[str, ...], questions: set[Question], num_clients: int
) -> dict[Question, Answer]:
    with started(home, *flags, "--colocated") as fleet:
        return asyncio.run(ask_all(fleet.endpoint, questions, num_clients))


def _report(outcomes: list[Outcome], reference: dict[Question, Answer], max_stall_s: float, console: Console) -> int:
    console.print(chaos_report.table(outcomes, reference))
    broken = chaos_report.broken_promises(outcomes, reference, max_stall_s)
    for line in broken:
        console.print(line)
    console.print(f"{len(broken)} promises broken" if broken else "every promise kept")
    return 1 if broken else 0
