"""Named faults for tests, off unless armed: by a test, or by `BATON_KV_FAULTS=name:times,name` before a node starts.

corrupt_message      a sender flips one bit of a message after its digest was taken
crash_mid_transfer   a sender is killed after its first message
freeze_mid_transfer  a sender is stopped after its first message, until somebody continues it
crash_before_commit  a sender is killed when all messages are out
"""

import os
import signal

_SIGNALS = {
    "crash_mid_transfer": signal.SIGKILL,
    "freeze_mid_transfer": signal.SIGSTOP,
    "crash_before_commit": signal.SIGKILL,
}
NAMES = frozenset({"corrupt_message", *_SIGNALS})


class Faults:
    """How often each fault is still to happen."""

    def __init__(self, spec: str = "") -> None:
        self._armed: dict[str, int] = {}
        for part in filter(None, spec.split(",")):
            name, _, times = part.partition(":")
            self.arm(name, int(times or 1))

    def arm(self, name: str, times: int = 1) -> None:
        """Let the fault happen the next `times` times."""
        if name not in NAMES:
            raise ValueError(f"no fault is named {name!r}; there are {', '.join(sorted(NAMES))}")
        self._armed[name] = times

    def fires(self, name: str) -> bool:
        """Whether the fault happens now; counts it."""
        left = self._armed.get(name, 0)
        if left:
            self._armed[name] = left - 1
        return left > 0

    def strike(self, *names: str) -> None:
        """Kill or stop this process, without any clean-up, if one of the faults happens now."""
        for name in names:
            if self.fires(name):
                os.kill(os.getpid(), _SIGNALS[name])


FAULTS = Faults(os.environ.get("BATON_KV_FAULTS", ""))
