"""Tries out which transports this machine supports, for `baton doctor`.

Run as a module, it is the process whose memory `why_no_shm` reads.
"""

import secrets
import subprocess
import sys
from collections.abc import Callable

from kv_transfer.choose import choose
from kv_transfer.shm import process_memory
from kv_transfer.ucx import transport as ucx

_NONCE_BYTES = 32


def missing(wanted: str) -> dict[str, str]:
    """Return why transports of `--transport wanted` cannot be used here, by name; usable ones are left out."""
    reasons: dict[str, Callable[[], str]] = {
        "cuda": why_no_cuda,
        "shm": why_no_shm,
        "ucx": ucx.why_unavailable,
        "tcp": str,
    }
    found = {name: reasons[name]() for name in (choose(wanted) if wanted == "auto" else (wanted,))}
    return {name: reason for name, reason in found.items() if reason}


def why_no_cuda() -> str:
    """Return the reason if there is no GPU, else "". Whether two nodes can share its memory shows when they connect."""
    import torch  # takes seconds

    return "" if torch.cuda.is_available() else "torch sees no GPU"


def why_no_shm() -> str:
    """Return the reason if one process on this machine cannot read another one's memory, else ""."""
    if reason := process_memory.why_unavailable():
        return reason
    nonce = secrets.token_hex(_NONCE_BYTES)
    with subprocess.Popen(
        [sys.executable, "-m", "kv_transfer.probe", nonce], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            return _why_unreadable(other, nonce)
        except (OSError, ValueError) as error:
            return str(error)
        finally:
            other.kill()


def _why_unreadable(other: "subprocess.Popen[str]", nonce: str) -> str:
    if other.stdout is None:
        raise OSError("the probe's other process has no output")
    address = int(other.stdout.readline())
    target = memoryview(bytearray(2 * _NONCE_BYTES))
    for _ in process_memory.read(other.pid, [(address, target.nbytes)], [target]):
        pass
    return "" if bytes(target) == nonce.encode() else "the bytes read from another process's memory are wrong"


def _be_read() -> None:
    memory = memoryview(bytearray(sys.argv[1].encode()))
    process_memory.allow_siblings()
    sys.stdout.write(f"{process_memory.runs_of([memory])[0][0]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _be_read()
