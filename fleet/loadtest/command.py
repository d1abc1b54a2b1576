"""`baton loadtest`: the five phases that a fleet has to pass before it is trusted, with a verdict for each.

    baseline    one request at a time: what latency is without load
    ramp        up to the target, level by level: the curve of throughput over latency
    sustained   the target for long: hardly an error, no growing memory, latencies as in the beginning
    overload    twice the rate that the target gave: only 429 and 503, no less throughput, normal within 30 s
    chaos       a node is killed under load: nothing fails, throughput is back within 60 s

Without --base-url it starts a fleet of its own, of two nodes in each pool.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from baton.errors import ConfigError
from bench._command import progress
from bench._load import lengths
from bench._load.target import target_of
from bench._load.workload import Shape
from bench._machine import machine
from bench._report import files
from fleet.chaos import fleet as chaos_fleet
from fleet.loadtest import phases, report
from fleet.loadtest.run import PHASES, Settings
from fleet.loadtest.site import LocalSite, RemoteSite, Site
from fleet.loadtest.verdict import Verdict

# a small pool: it is touched whole in the first seconds, and does not look like growing memory
_LOCAL = ("--prefill", "2", "--decode", "2", "--kv-memory", "64MiB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is under test, for how long, and with what load."""
    add = parser.add_argument
    add("--base-url", default="", help="a fleet that runs; without it, a local one is started")
    add("--api-key-env", default="", metavar="NAME", help="variable with the key; BATON_API_KEY, OPENAI_API_KEY")
    add("--up-flags", default="", metavar="FLAGS", help="flags of `baton up` for the local fleet, as one word")
    add("--minutes", type=float, default=3.0, help="all phases together; before production 100")
    add("--only", nargs="+", choices=list(PHASES), default=list(PHASES), help="some of the phases")
    add("--concurrency", type=int, default=16, help="the target")
    add("--prompt-tokens", default="uniform:32-256", help="N, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA")
    add("--output-tokens", default="uniform:16-64", help="likewise")
    add("--vocab-size", type=int, default=4000, help="prompts are drawn from token ids 100 up to it")
    add("--timeout-s", type=float, default=120.0, help="of a request")
    add("--metrics-url", nargs="*", default=[], help="where memory is read, of a fleet that is not local")
    add("--kill-command", default="", help="what kills a node, of a fleet that is not local; run without a shell")
    add("--json", metavar="FILE", help="also write the figures there")
    add("--html", metavar="FILE", help="also write a report with plots there")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 where a phase did not pass."""
    if args.minutes <= 0 or args.concurrency < 2:
        raise ConfigError("--minutes is above 0, --concurrency at least 2")
    files.check(args.json, args.html)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    with _site(args) as site:
        verdicts = asyncio.run(_run(site, args, console))
    console.print(report.summary(verdicts))
    if args.json:
        found = {"machine": machine(), "phases": [dataclasses.asdict(verdict) for verdict in verdicts]}
        files.write_json(args.json, found)
    if args.html:
        report.write_html(Path(args.html), verdicts, [machine(), _command(args)])
    return 0 if all(verdict.passed for verdict in verdicts) else 1


@contextlib.contextmanager
def _site(args: argparse.Namespace) -> Iterator[Site]:
    if args.base_url:
        yield RemoteSite(target_of(args.base_url, args.api_key_env), args.metrics_url, args.kill_command)
        return
    with (
        tempfile.TemporaryDirectory(prefix="baton-loadtest-") as folder,
        chaos_fleet.started(Path(folder) / "home", *_LOCAL, *args.up_flags.split()) as fleet,
    ):
        yield LocalSite(fleet)


async def _run(site: Site, args: argparse.Namespace, console: Console) -> list[Verdict]:
    model = await site.target.first_model()
    prompt, output = lengths.parse(args.prompt_tokens), lengths.parse(args.output_tokens)
    settings = Settings(
        shape=Shape(model=model, prompt=prompt, output=output, vocab_size=args.vocab_size),
        concurrency=args.concurrency,
        timeout_s=args.timeout_s,
        total_s=args.minutes * 60,
        phases=tuple(name for name in PHASES if name in args.only),
    )
    console.print(f"{site.target.url} serves {model}; {args.minutes:g} minutes, target: {args.concurrency} at a time")
    with progress() as bar:
        task = bar.add_task("loadtest", total=settings.total_s)

        def on_phase(verdict: Verdict) -> None:
            bar.update(task, advance=settings.seconds(verdict.name), description=verdict.name)
            console.print(report.line(verdict))

        return await phases.run_all(site, settings, on_phase)


def _command(args: argparse.Namespace) -> str:
    where = f" --base-url {args.base_url}" if args.base_url else ""
    return f"baton loadtest{where} --minutes {args.minutes:g} --concurrency {args.concurrency}"
