"""Compile the C++ kernels: `python -m kernels.cpu.build` at installation, or on first use.

Needs only a C++17 compiler (`CXX`, by default g++): no headers of torch or Python, so a build outlives their upgrades.
A library's file name contains a hash of everything that went into it, and the file appears under that name only once
it is complete, so processes that start together may build at the same time.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from kernels.cpu.processor import LEVELS, Level, features, supported

SOURCE_DIR = Path(__file__).parent
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi", "-fno-math-errno"),
    "-ffp-contract=off",  # the sources say where a multiply-add is fused
)


class BuildError(Exception):
    """There is no built library and none can be built; the message says why."""


def library(level: Level) -> Path:
    """Return the path of that level's library, compiling it if there is none. Raises BuildError."""
    sources = _source_hash(level)
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        built = [path for folder in _folders() for path in folder.glob(f"{level.name}-{sources}-*.so")]
        if not built:
            raise BuildError("not built, and no C++ compiler found (set CXX, or install g++)")
        return built[0]
    name = f"{level.name}-{sources}-{_compiler_hash(compiler)}.so"
    for folder in _folders():
        if (folder / name).exists():
            return folder / name
    return _compile(compiler, level, _writable_folder() / name)


def _compile(compiler: str, level: Level, target: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made, partial = Path(scratch) / "kernels.o", Path(scratch) / target.name
        _run(compiler, *FLAGS, *level.flags, "-c", str(SOURCE_DIR / "kernels.cpp"), "-o", str(made))
        _run(compiler, "-shared", str(made), "-o", str(partial), *_openmp())
        partial.replace(target)
    return target


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise BuildError(f"{command[0]} failed: {reason}")


def _openmp() -> tuple[str, ...]:
    """What to link for OpenMP: torch's own copy if it bundles one, so that the process has a single thread pool."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return (str(bundled[0]),) if bundled else ("-fopenmp",)


def _source_hash(level: Level) -> str:
    digest = hashlib.sha256(repr((FLAGS, level.flags, [Path(part).name for part in _openmp()])).encode())
    for path in sorted([*SOURCE_DIR.glob("*.cpp"), *SOURCE_DIR.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler_hash(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    return hashlib.sha256(version).hexdigest()[:8]


def _folders() -> list[Path]:
    """Where libraries are searched for: beside the sources, then in the user's cache (for read-only installations)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [SOURCE_DIR / "_build", cache / "baton" / "kernels"]


def _writable_folder() -> Path:
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise BuildError("no writable folder to build in, tried " + ", ".join(str(folder) for folder in _folders()))


def main() -> int:
    """Build every level that the compiler supports and print which one this machine will use; 1 if it can use none."""
    started = time.monotonic()
    with ThreadPoolExecutor() as threads:
        results = dict(zip(LEVELS, threads.map(_library_or_error, LEVELS), strict=True))
    for level, result in results.items():
        (sys.stderr if isinstance(result, BuildError) else sys.stdout).write(f"{level.name:9} {result}\n")
    built = [level.name for level in supported(features()) if isinstance(results[level], Path)]
    if not built:
        return 1
    sys.stdout.write(f"{time.monotonic() - started:.1f} s; this machine uses {built[0]}\n")
    return 0


def _library_or_error(level: Level) -> Path | BuildError:
    try:
        return library(level)
    except BuildError as error:
        return error


if __name__ == "__main__":
    sys.exit(main())
