#!/usr/bin/env python3
"""Shares of the traffic for a canary (overlays/canary), and the way back.

canary.py rollout     5 % for an hour, then 25, 50 and 100 % for half an hour each; back at the first sign of trouble
canary.py weight 25   the same by hand
canary.py check       what is known of the canary; exits with 1 where it should go back
canary.py rollback    no new request goes to it from now on; what runs there may finish, then its pods end
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
    """Where the canary is, and who watches it."""

    namespace: str
    prometheus: str
    pace: float = 1.0  # of all durations; below 1 is faster

    def set_weight(self, percent: int) -> None:
        """Per cent of new requests that go to the canary."""
        self.kubectl("annotate", "ingress/baton-canary", f"{_WEIGHT}={percent}", "--overwrite")

    def kubectl(self, *args: str) -> None:
        """Raises CalledProcessError."""
        subprocess.run(["kubectl", "--namespace", self.namespace, *args], check=True, timeout=60)

    def ask(self, query: str) -> float | None:
        """The number that Prometheus has for a query, or None. Raises OSError where it does not answer."""
        url = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            samples = json.load(answer)["data"]["result"]
        value = float(samples[0]["value"][1]) if samples else None
        return None if value is None or value != value else value  # NaN: there were no requests


def trouble(fleet: Fleet, *, first: bool) -> str:
    """Why the canary has to go back, or nothing."""
    errors, limit = fleet.ask(ERRORS), FIRST_MAX_ERRORS if first else LATER_MAX_ERRORS
    if errors is not None and errors > limit:
        return f"{errors:.2%} of its requests fail, where {limit:.1%} may"
    if first:
        return ""
    for name, query in (("TTFT", TTFT), ("TPOT", TPOT)):
        ratio = fleet.ask(query)
        if ratio is not None and ratio > MAX_OF_SLO:
            return f"its {name} p99 is {ratio:.1f} times the objective"
    return ""


def rollout(fleet: Fleet) -> int:
    """Every step; the exit code."""
    for percent, duration_s in STEPS:
        fleet.set_weight(percent)
        say(f"{percent} % for {duration_s * fleet.pace / 60:.0f} min")
        reason = watch(fleet, duration_s * fleet.pace, first=percent == STEPS[0][0])
        if reason:
            say(f"going back: {reason}")
            rollback(fleet)
            return 1
    say("the canary has all of the traffic: give its image to the fleet, apply that, then `canary.py rollback`")
    return 0


def watch(fleet: Fleet, duration_s: float, *, first: bool) -> str:
    """Look on for so long; why the canary has to go back, or nothing."""
    end = time.monotonic() + duration_s
    try:
        while (left_s := end - time.monotonic()) > 0:
            time.sleep(min(left_s, _EVERY_S * fleet.pace))
            if reason := trouble(fleet, first=first):
                return reason
        return "" if fleet.ask(ERRORS) is not None else "it had no requests: nothing was tried"
    except (OSError, ValueError, LookupError) as error:
        return f"Prometheus does not answer ({type(error).__name__}): nobody watches it"


def rollback(fleet: Fleet) -> int:
    """The exit code. The first line alone takes the traffic away; it never waits for anything."""
    fleet.set_weight(0)
    say("no new request goes to the canary")
    end = time.monotonic() + _DRAIN_S * fleet.pace
    while time.monotonic() < end and _busy(fleet):
        time.sleep(min(1.0, fleet.pace))
    fleet.kubectl("scale", *(f"deployment/{name}" for name in DEPLOYMENTS), "--replicas=0")
    say("its pods drain and end")
    return 0


def _busy(fleet: Fleet) -> bool:
    try:
        return (fleet.ask(IN_FLIGHT) or 0) > 0
    except OSError:
        return False  # pods drain by themselves as well


def check(fleet: Fleet) -> int:
    """The exit code."""
    for name, query in (("errors", ERRORS), ("TTFT p99 / objective", TTFT), ("TPOT p99 / objective", TPOT)):
        value = fleet.ask(query)
        say(f"{name}: {'unknown' if value is None else f'{value:.4f}'}")
    reason = trouble(fleet, first=False)
    say(reason or "nothing speaks against it")
    return 1 if reason else 0


def say(line: str) -> None:
    """To whoever looks on."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("rollout", "weight", "check", "rollback"))
    parser.add_argument("percent", nargs="?", type=int, choices=range(101), metavar="PERCENT", help="for weight")
    parser.add_argument("--namespace", default="baton")
    parser.add_argument("--prometheus", default="http://localhost:9090", help="(default: %(default)s)")
    parser.add_argument("--pace", type=float, default=1.0, help="of all durations: 0.1 takes a tenth of the time")
    args = parser.parse_args(argv)
    fleet = Fleet(args.namespace, args.prometheus, args.pace)
    if args.command == "weight" and args.percent is None:
        parser.error("weight wants a number")
    try:
        if args.command == "weight":
            fleet.set_weight(args.percent)
            return 0
        return {"rollout": rollout, "check": check, "rollback": rollback}[args.command](fleet)
    except KeyboardInterrupt:
        say("stopped: the canary keeps the share it has; `canary.py rollback` takes it away")
        return 130
    except (OSError, subprocess.SubprocessError) as error:  # no kubectl, no cluster, no Prometheus
        say(f"failed: {error}; the canary keeps the share it has")
        return 1


if __name__ == "__main__":
    sys.exit(main())
