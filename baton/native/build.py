"""Compiles the C++ versions of loops that are too slow in Python for long prompts: one library for each source.

    python -m baton.native.build

This runs at installation and needs a C++17 compiler (`CXX`, by default g++). Nothing is compiled while serving: without
the libraries, Python does the work. A library's name carries a hash of its source, so a changed source needs a rebuild.
"""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

HASH_CHAIN, ID_TEXT, JSON_FIELDS = (
    Path(__file__).with_name(f"{name}.cpp") for name in ("hash_chain", "id_text", "json_fields")
)
FOLDER = Path(__file__).parent / "_build"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=default")


def library(source: Path, folder: Path = FOLDER) -> Path:
    """Return where the library compiled from this source is, or would be."""
    digest = sha256(repr(_FLAGS).encode() + source.read_bytes()).hexdigest()
    return folder / f"{source.stem}-{digest[:16]}.so"


def build(source: Path, folder: Path = FOLDER) -> Path:
    """Compile `source` into `folder` and return the library's path.

    Raises OSError if there is no compiler or the folder cannot be written, CalledProcessError if compiling fails.
    """
    target = library(source, folder)
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (set CXX, or install g++)")
    partial = target.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, *_FLAGS, str(source), "-o", str(partial)], check=True)
    partial.replace(target)
    return target


def main() -> int:
    """Compile all libraries and print their paths. Returns the exit code."""
    try:
        for source in (HASH_CHAIN, ID_TEXT, JSON_FIELDS):
            sys.stdout.write(f"{build(source)}\n")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"not compiled, so Python will parse and hash long prompts, more slowly: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
