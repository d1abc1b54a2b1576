"""The `baton` command: runs the sub-command, and turns a BatonError into one line and an exit code.

Sub-commands are imported only when used, so that `baton status` does not load torch, and `--help` loads nothing.
"""

import argparse
import errno
import importlib
import io
import sys
from collections.abc import Callable, Sequence

from baton.errors import BatonError
from baton.process.help import HelpFormatter

# name -> (module with `add_arguments(parser)` and `run(args) -> int`, description)
COMMANDS = {
    "up": ("fleet.up.command", "start a fleet on this machine: Redis, routers, prefill and decode nodes"),
    "status": ("fleet.status", "show the nodes of the running fleet and their load"),
    "top": ("fleet.top", "watch the fleet: load, latency, KV transfers, and which pool is the bottleneck"),
    "trace": ("fleet.trace", "show where one request spent its time: baton trace REQUEST_ID"),
    "scale": ("fleet.scale", "change the number of nodes of the running fleet: baton scale prefill=2 decode=1"),
    "down": ("fleet.down", "drain and stop the running fleet"),
    "chat": ("fleet.chat", "talk to the model; also takes a question from a pipe"),
    "doctor": ("fleet.doctor.command", "check what this machine offers, and say how to fix what is missing"),
    "chaos": ("fleet.chaos.command", "inject faults into a private fleet, and check that no request is harmed"),
    "loadtest": ("fleet.loadtest.command", "test a fleet with five phases of load, and give a verdict on each"),
    "plan": ("fleet.plan", "plan how many nodes a workload needs, what they cost, and how they perform"),
    "scorecard": ("fleet.scorecard.command", "check a running fleet for twenty items of production readiness"),
    "bench": ("fleet.bench", "run a benchmark; without a name, list them"),
}
# errors that the operator can mend; any other OSError is a bug, and its traceback is shown
_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ECONNREFUSED, errno.EMFILE),
}
# name -> (module with `main(argv) -> int`, description)
SERVICES = {
    "router": ("router.__main__", "run one router"),
    "prefill": ("prefill_node.__main__", "run one prefill node"),
    "decode": ("decode_node.__main__", "run one decode node"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `baton` with these arguments; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ✓ gets a question mark
    try:
        return _dispatch(argv)
    except BatonError as error:
        print(f"baton: error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone, so there is nobody to report to
        return 141
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        print(f"baton: error: {error}", file=sys.stderr)  # with its number, and the file if there is one
        return 1


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in SERVICES:
        service: Callable[[list[str]], int] = importlib.import_module(SERVICES[name][0]).main
        return service(argv[1:])
    if name in COMMANDS:
        module_name, description = COMMANDS[name]
        module = importlib.import_module(module_name)
        parser = argparse.ArgumentParser(
            prog=f"baton {name}", description=_sentence(description), formatter_class=HelpFormatter
        )
        module.add_arguments(parser)
        run: Callable[[argparse.Namespace], int] = module.run
        return run(parser.parse_args(argv[1:]))
    if name in ("--version", "-V"):
        from importlib.metadata import version  # slow to load

        print(f"baton {version('baton')}")
        return 0
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    known = ", ".join((*COMMANDS, *SERVICES))
    print(f"baton: error: no such command: {name} (there are {known})", file=sys.stderr)
    return 2


def _help() -> str:
    return "\n".join(
        [
            "usage: baton COMMAND [flags]",
            "",
            "Serve language models with prefill and decode on separate pools of nodes.",
            "",
            "A fleet on this machine:",
            *_lines(COMMANDS),
            "",
            "One service by itself, as in production:",
            *_lines(SERVICES),
            "",
            "`baton COMMAND --help` lists the flags. Those of `up`, `doctor` and the services can also be set by a",
            "variable: --max-model-len is BATON_MAX_MODEL_LEN. A local fleet keeps its state and logs in BATON_HOME",
            "(~/.baton); fleets with different homes are independent of each other.",
        ]
    )


def _lines(table: dict[str, tuple[str, str]]) -> list[str]:
    return [f"  {name:<10} {description}" for name, (_, description) in table.items()]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
