"""`baton` with stand-ins for its services; the supervisor is real."""

import sys
from pathlib import Path

import fleet.up.services
from fleet.cli import main

SERVICE = str(Path(__file__).with_name("stand_in_service.py"))

if __name__ == "__main__":
    fleet.up.services.PROGRAMS = {role: (sys.executable, SERVICE, role) for role in ("router", "prefill", "decode")}
    sys.exit(main(sys.argv[1:]))
