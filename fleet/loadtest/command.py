"""`baton loadtest`: five phases that a fleet should pass before it is trusted, with a verdict on each.

    baseline    one request at a time: latency without load
    ramp        increasing concurrency, up to the target: the curve of throughput and latency
    sustained   the target for a long time: almost no errors, no growing memory, stable latencies
    overload    twice the rate of the target: only 429 and 503, no loss of throughput, normal within 30 s
    chaos       a node is killed under load: no request fails, throughput is back within 60 s

Without --base-url it starts a local fleet with two nodes in each pool.
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

from baton.net.url import http_url
from baton.process.bounds import positive, whole
from bench._command import progress
from bench._load import flags, lengths
from bench._load.target import target_of
from bench._load.workload import Shape
from bench._machine import machine
from bench._report import files
from fleet.chaos import fleet as chaos_fleet
from fleet.loadtest import phases, report
from fleet.loadtest.run import PHASES, Settings
from fleet.loadtest.site import LocalSite, RemoteSite, Site, parse_command
from fleet.loadtest.verdict import Verdict

# a small KV pool fills within seconds, so that filling it does not look like growing memory
_LOCAL = ("--prefill", "2", "--decode", "2", "--kv-memory", "64MiB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the fleet under test, the duration and the load."""
    add = parser.add_argument
    add("--base-url", default="", help="endpoint of a running fleet (default: start a local one)")
    flags.add_key(parser)
    add("--up-flags", default="", metavar="FLAGS", help="flags of `baton up` for the local fleet, as one argument")
    add("--minutes", type=positive(), default=3.0, help="duration of all phases together (before production: 100)")
    add("--only", nargs="+", choices=list(PHASES), default=list(PHASES), help="run only these phases")
    add("--concurrency", type=whole(2, 100_000), default=16, help="target number of concurrent requests")
    flags.add_lengths(parser, "uniform:32-256", "uniform:16-64")
    flags.add_vocab_size(parser)
    add("--timeout-s", type=positive(), default=120.0, help="timeout of a request")
    add("--metrics-url", nargs="*", default=[], help="metrics pages to read memory from, if the fleet is not local")
    add("--kill-command", default="", help="command that kills a node, if the fleet is not local; run without a shell")
    flags.add_files(parser)


def run(args: argparse.Namespace) -> int:
    """Run the load test; return 1 if a phase failed."""
    files.check(args.json, args.html)
    _check(args)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    with _site(args) as site:
        verdicts = asyncio.run(_run(site, args, console))
    console.print(report.summary(verdicts))
    if args.json:
        results = {"machine": machine(), "phases": [dataclasses.asdict(verdict) for verdict in verdicts]}
        files.write_json(args.json, results)
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
    console.print(f"{site.target.url} serves {model}; {args.minutes:g} minutes, target concurrency {args.concurrency}")
    with progress() as bar:
        task = bar.add_task("loadtest", total=settings.total_s)

        def on_phase(verdict: Verdict) -> None:
            bar.update(task, advance=settings.seconds(verdict.name), description=verdict.name)
            console.print(report.line(verdict))

        return await phases.run_all(site, settings, on_phase)


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for what would otherwise fail only after minutes of load."""
    for text in (args.prompt_tokens, args.output_tokens):
        lengths.parse(text)
    parse_command(args.kill_command)
    for url in args.metrics_url:
        http_url(url)


def _command(args: argparse.Namespace) -> str:
    where = f" --base-url {args.base_url}" if args.base_url else ""
    return f"baton loadtest{where} --minutes {args.minutes:g} --concurrency {args.concurrency}"
