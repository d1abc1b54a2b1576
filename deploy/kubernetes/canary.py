#!/usr/bin/env python3
"""Shifts traffic to a canary (overlays/canary) step by step, and back.

canary.py rollout     5 % for an hour, then 25, 50 and 100 % for half an hour each; rolls back if the canary fails
canary.py weight 25   set the share by hand
canary.py check       print the canary's figures; exits with 1 if it should be rolled back
canary.py rollback    send it no new requests, let running ones finish, then stop its pods
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass

STEPS = ((5, 3600), (25, 1800), (50, 1800), (100, 1800))  # per cent, seconds
FIRST_MAX_ERRORS, LATER_MAX_ERRORS = 0.001, 0.01
MAX_OF_SLO = 2.0
DEPLOYMENTS = ("router-canary", "prefill-canary", "decode-canary")
_WEIGHT = "nginx.ingress.kubernetes.io/canary-weight"
_EVERY_S = 15.0
_DRAIN_S = 120.0

ERRORS = 'baton:error_ratio:rate5m{track="canary"}'
TTFT = 'baton:ttft_seconds:p99{track="canary"} / scalar(baton:slo:ttft_seconds)'
TPOT = 'baton:tpot_seconds:p99{track="canary"} / scalar(baton:slo:tpot_seconds)'
IN_FLIGHT = 'sum(baton_requests_in_flight{track="canary"}) or vector(0)'


@dataclass(frozen=True)
class Fleet:
    """Where the canary runs, and which Prometheus watches it."""

    namespace: str
    prometheus: str
    pace: float = 1.0  # factor on all durations; below 1 is faster

    def set_weight(self, percent: int) -> None:
        """Send this percentage of new requests to the canary."""
        self.kubectl("annotate", "ingress/baton-canary", f"{_WEIGHT}={percent}", "--overwrite")

    def kubectl(self, *args: str) -> None:
        """Run kubectl in the namespace. Raises CalledProcessError if it fails."""
        subprocess.run(["kubectl", "--namespace", self.namespace, *args], check=True, timeout=60)

    def ask(self, query: str) -> float | None:
        """Return Prometheus' result for a query, or None if there is none. Raises OSError if it does not answer."""
        url = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            samples = json.load(answer)["data"]["result"]
        value = float(samples[0]["value"][1]) if samples else None
        return None if value is None or value != value else value  # NaN: there were no requests


def trouble(fleet: Fleet, *, first: bool) -> str:
    """Return why the canary has to be rolled back, or an empty string."""
    errors, limit = fleet.ask(ERRORS), FIRST_MAX_ERRORS if first else LATER_MAX_ERRORS
    if errors is not None and errors > limit:
        return f"{errors:.2%} of its requests fail; at most {limit:.1%} may"
    if first:
        return ""
    for name, query in (("TTFT", TTFT), ("TPOT", TPOT)):
        ratio = fleet.ask(query)
        if ratio is not None and ratio > MAX_OF_SLO:
            return f"its {name} p99 is {ratio:.1f} times the objective"
    return ""


def rollout(fleet: Fleet) -> int:
    """Run all steps; return the exit code."""
    for percent, duration_s in STEPS:
        fleet.set_weight(percent)
        say(f"{percent} % for {duration_s * fleet.pace / 60:.0f} min")
        reason = watch(fleet, duration_s * fleet.pace, first=percent == STEPS[0][0])
        if reason:
            say(f"rolling back: {reason}")
            rollback(fleet)
            return 1
    say("the canary has all traffic: set its image in the fleet, apply that, then run `canary.py rollback`")
    return 0


def watch(fleet: Fleet, duration_s: float, *, first: bool) -> str:
    """Watch the canary for this long; return why it has to be rolled back, or an empty string."""
    end = time.monotonic() + duration_s
    try:
        while (left_s := end - time.monotonic()) > 0:
            time.sleep(min(left_s, _EVERY_S * fleet.pace))
            if reason := trouble(fleet, first=first):
                return reason
        return "" if fleet.ask(ERRORS) is not None else "it had no requests, so nothing was tested"
    except (OSError, ValueError, LookupError) as error:
        return f"Prometheus does not answer ({type(error).__name__}), so the canary cannot be watched"


def rollback(fleet: Fleet) -> int:
    """Roll back; return the exit code. The first call alone stops new traffic, and waits for nothing."""
    fleet.set_weight(0)
    say("no new request goes to the canary")
    end = time.monotonic() + _DRAIN_S * fleet.pace
    while time.monotonic() < end and _busy(fleet):
        time.sleep(min(1.0, fleet.pace))
    fleet.kubectl("scale", *(f"deployment/{name}" for name in DEPLOYMENTS), "--replicas=0")
    say("the canary's pods are draining and will stop")
    return 0


def _busy(fleet: Fleet) -> bool:
    try:
        return (fleet.ask(IN_FLIGHT) or 0) > 0
    except OSError:
        return False  # pods drain by themselves as well


def check(fleet: Fleet) -> int:
    """Return the exit code."""
    for name, query in (("errors", ERRORS), ("TTFT p99 / objective", TTFT), ("TPOT p99 / objective", TPOT)):
        value = fleet.ask(query)
        say(f"{name}: {'unknown' if value is None else f'{value:.4f}'}")
    reason = trouble(fleet, first=False)
    say(reason or "no reason to roll back")
    return 1 if reason else 0


def say(line: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("rollout", "weight", "check", "rollback"))
    parser.add_argument("percent", nargs="?", type=int, choices=range(101), metavar="PERCENT", help="for weight")
    parser.add_argument("--namespace", default="baton")
    parser.add_argument("--prometheus", default="http://localhost:9090", help="(default: %(default)s)")
    parser.add_argument("--pace", type=float, default=1.0, help="factor on all durations: 0.1 is ten times as fast")
    args = parser.parse_args(argv)
    fleet = Fleet(args.namespace, args.prometheus, args.pace)
    if args.command == "weight" and args.percent is None:
        parser.error("weight needs a percentage")
    try:
        if args.command == "weight":
            fleet.set_weight(args.percent)
            return 0
        return {"rollout": rollout, "check": check, "rollback": rollback}[args.command](fleet)
    except KeyboardInterrupt:
        say("stopped: the canary keeps its present share; run `canary.py rollback` to remove it")
        return 130
    except (OSError, subprocess.SubprocessError) as error:  # no kubectl, no cluster, no Prometheus
        say(f"failed: {error}; the canary keeps its present share")
        return 1


if __name__ == "__main__":
    sys.exit(main())
