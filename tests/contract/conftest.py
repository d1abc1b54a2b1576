"""Triton decides between GPU and interpreter when it is first imported, so that is settled before any test module."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
