"""`baton bench NAME`: runs bench/NAME.py, or lists the benchmarks."""

import argparse
import ast
import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path

from baton.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the name of the benchmark, and the flags that are passed on to it."""
    parser.add_argument("name", nargs="?", help="which benchmark; without one, list them")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the benchmark itself")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and return its exit code."""
    available = _available()
    if not args.name:
        for name, summary in available.items():
            print(f"{name:<16} {summary}")
        return 0
    if args.name not in available:
        raise ConfigError(f"no such benchmark: {args.name} (available: {', '.join(available)})")
    main: Callable[[list[str]], int] = importlib.import_module(f"bench.{args.name}").main
    return main(args.flags)


def _available() -> dict[str, str]:
    """Return each benchmark's name and the first line of its docstring, without importing any of them."""
    spec = importlib.util.find_spec("bench")
    folders = list(spec.submodule_search_locations or []) if spec else []
    names = (module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))
    return {name: _summary(Path(folders[0]) / f"{name}.py") for name in sorted(names)}


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
