"""`baton scorecard`: checks a running fleet for twenty items of production readiness, seventeen of them critical.

The exit code is 0 only if all seventeen pass. An item that the command cannot see, or may not check without
--destructive, says how to check it, and counts as not passed. docs/scorecard.md describes the items.
"""

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
from rich.console import Console

from baton.errors import BatonError
from baton.net.failure import reason
from bench._load.target import target_of
from fleet import key_file, state
from fleet.home import Home
from fleet.scorecard import disaster, files, serving, trust
from fleet.scorecard.client import Client
from fleet.scorecard.item import Context, Item, Result

ITEMS: tuple[Item, ...] = (*trust.ITEMS, *serving.ITEMS, *files.ITEMS, *disaster.ITEMS)
_MARKS = {"pass": "✓", "fail": "✗", "unknown": "?"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the fleet, and for what may be done to it."""
    add = parser.add_argument
    add("--base-url", default="", help="endpoint of the fleet (default: the running local one)")
    key_file.add_argument(parser)
    add("--loadtest-report", type=Path, metavar="FILE", help="output of `baton loadtest --json`, at most 30 days old")
    add("--destructive", action="store_true", help="allow killing and draining nodes of a local fleet")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Check the items and print the verdict; return 1 if a critical item did not pass."""
    context, console = context_of(args), Console(highlight=False, markup=False, soft_wrap=True)
    results = []
    for number, (item, result) in enumerate(_checked(context), 1):
        results.append((item, result))
        if not args.json:
            critical = "critical" if item.critical else ""
            console.print(f"{number:>2} {_MARKS[result.verdict]} {item.name:<22} {critical:<9} {result.text}")
    if args.json:
        rows = [{"name": i.name, "critical": i.critical, **dataclasses.asdict(result)} for i, result in results]
        print(json.dumps({"ready": _is_ready(results), "items": rows}, indent=2))
    else:
        console.print(verdict(results))
    return 0 if _is_ready(results) else 1


def verdict(results: list[tuple[Item, Result]]) -> str:
    """Return the last line: ready or not, with counts."""
    critical = [result.verdict for item, result in results if item.critical]
    counted = f"{critical.count('pass')} of {len(critical)} critical items passed, {critical.count('fail')} failed"
    return f"{'ready' if _is_ready(results) else 'NOT READY'}: {counted}, {critical.count('unknown')} not checked"


def _is_ready(results: list[tuple[Item, Result]]) -> bool:
    return all(result.verdict == "pass" for item, result in results if item.critical)


def _checked(context: Context) -> Iterator[tuple[Item, Result]]:
    for item in ITEMS:
        try:
            yield item, item.check(context)
        except (OSError, BatonError, psutil.Error) as error:
            yield item, Result("fail", f"the check could not be completed: {reason(error)}")
        except (ValueError, LookupError) as error:
            yield item, Result("fail", f"an answer does not have the expected form: {type(error).__name__}: {error}")


def context_of(args: argparse.Namespace) -> Context:
    """Find the fleet. Raises ConfigError if there is none, or its model cannot be determined."""
    local = None if args.base_url else state.running(Home.from_env())
    target = target_of(local.endpoint if local else args.base_url)
    if file := key_file.asked_for(args) or (local.api_key_file if local else ""):
        target = dataclasses.replace(target, api_key=key_file.key_of(file))
    return Context(
        client=Client(target),
        model=asyncio.run(target.first_model()),
        local=local,
        logs=Home.from_env().logs if local else None,
        loadtest_report=args.loadtest_report,
        destructive=args.destructive,
    )
