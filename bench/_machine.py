"""Describes the machine, for reports."""

import os
import platform
import socket

from baton.process.interpreter import is_optimized


def machine() -> str:
    """Return a line that describes the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = platform.python_version() + ("" if is_optimized() else " (compiled without --enable-optimizations)")
    return f"{platform.system()} {platform.machine()}, {cores} cores, Python {python}"


def processor() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
