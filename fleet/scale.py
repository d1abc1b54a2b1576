"""`baton scale prefill=2 decode=1`: resizes the running fleet, and returns when new nodes serve.

Large weights take long to load, so it waits as long as the supervisor says that it is still at work.
"""

import argparse
import sys

from baton.errors import ConfigError
from fleet import control, state
from fleet.home import Home

_SILENCE_S = 10.0  # the supervisor says every second what it waits for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the pools and their sizes."""
    parser.add_argument(
        "pools", nargs="+", metavar="POOL=N", help="prefill=N or decode=N; nodes that are removed drain first"
    )


def run(args: argparse.Namespace) -> int:
    """Ask the supervisor to resize the pools, and print what it did."""
    pools: dict[str, int] = {}
    for role, count in map(_parsed, args.pools):
        if pools.setdefault(role, count) != count:
            raise ConfigError(f"{role}={pools[role]} and {role}={count}: give only one size per pool")
    fleet = state.running(Home.from_env())
    answer = control.ask(fleet.control, {"command": "scale", "pools": pools}, _SILENCE_S, _Waiting().show)
    print(answer["done"])
    return 0


class _Waiting:
    """Shows what the supervisor waits for, whenever that changes."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, text: str) -> None:
        if text and text != self._shown:
            self._shown = text
            print(f"waiting for {text}", file=sys.stderr, flush=True)


def _parsed(pool: str) -> tuple[str, int]:
    role, equals, count = pool.partition("=")
    if not equals or not count.isdecimal() or len(count) > 9:
        raise ConfigError(f"{pool!r}: expected POOL=N, such as prefill=2 or decode=1")
    return role, int(count)
