"""Starts a program that dies with its parent: `python -m fleet.up.leash PARENT_PID PROGRAM ARGS…` becomes PROGRAM.

For third-party programs; our own services do this themselves (baton.process.lifecycle).
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Tie this process to its parent, then become the program."""
    parent, *program = argv
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # the parent died before the call above
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
