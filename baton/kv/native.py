"""C++ for what Python loops over too slowly in a long prompt, one library a source, compiled at installation.

    python -m baton.kv.native

It needs a C++17 compiler (`CXX`, by default g++) and is never compiled otherwise: whoever has a prompt should not have
to wait for that, and does without. A library's name carries a hash of its source.
"""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

HASH_CHAIN, ID_TEXT, BYTE_COUNT = (
    Path(__file__).with_name(f"{name}.cpp") for name in ("hash_chain", "id_text", "byte_count")
)
FOLDER = Path(__file__).parent / "_build"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=default")


def library(source: Path, folder: Path = FOLDER) -> Path:
    """Where the library compiled from this source is, or would be."""
    digest = sha256(repr(_FLAGS).encode() + source.read_bytes()).hexdigest()
    return folder / f"{source.stem}-{digest[:16]}.so"


def build(source: Path, folder: Path = FOLDER) -> Path:
    """Compile it into `folder`. Raises OSError where the folder, or a compiler, is missing, and CalledProcessError."""
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
    """Compile all, and say where they are."""
    try:
        for source in (HASH_CHAIN, ID_TEXT, BYTE_COUNT):
            sys.stdout.write(f"{build(source)}\n")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"long prompts are read and hashed by Python: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
