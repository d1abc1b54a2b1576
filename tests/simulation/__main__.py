"""`python -m tests.simulation`: run seeds for a while, or one seed again with its trace."""

import argparse
import dataclasses
import os
import sys
import time

from tests.simulation.loop import Violation
from tests.simulation.scenario import SCENARIOS, Scenario, simulate

_clock = time.perf_counter


def main() -> int:
    """Exit code 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=0, help="real time to run for, seed after seed; 0: one seed")
    parser.add_argument("--scenario", choices=SCENARIOS, default="storm")
    parser.add_argument("--kinds", default="", help="faults of these kinds alone, comma-separated")
    parser.add_argument("--trace", type=int, default=0, metavar="N", help="print the last N events of a failure")
    args = parser.parse_args()
    end_s = _clock() + args.seconds
    seed, failed = args.seed, 0
    while seed == args.seed or _clock() < end_s:
        failed += _run(seed, args)
        seed += 1
    print(f"{seed - args.seed} seeds, {failed} broke a promise")
    return int(failed > 0)


def _scenario(args: argparse.Namespace) -> Scenario:
    scenario = SCENARIOS[args.scenario]
    return dataclasses.replace(scenario, kinds=tuple(args.kinds.split(","))) if args.kinds else scenario


def _run(seed: int, args: argparse.Namespace) -> bool:
    began_s = _clock()
    try:
        report = simulate(seed, _scenario(args))
    except Violation as violation:
        print(f"seed {seed}: {violation}", *violation.__notes__, sep="\n  ")
        if args.trace:
            for at_s, event in list(violation.world.events)[-args.trace :]:
                print(f"  {at_s:.6f}", *event)
        return True
    print(f"{report} in {_clock() - began_s:.2f} s")
    return False


if __name__ == "__main__":
    if "PYTHONHASHSEED" not in os.environ:  # the order of sets of strings is part of a run
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
