"""One UCX worker: drives its progress and tracks its requests. It needs no thread, and no CPU while idle.

No work is done in callbacks from UCX: they only set flags, which are looked at after the progress.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

from kv_transfer.ucx_child.binding import Binding
from kv_transfer.ucx_child.frame_socket import MAX_TEXT_CHARS

OnEnd = Callable[[str], None]  # called with an error message, or "", when the request's buffer is no longer touched
_BUDGET_S = 0.001  # time for progress before the next look at the node's orders


class Worker:
    """The worker. Its requests are ucxx objects, polled for completion whenever the worker has made progress."""

    def __init__(self, binding: Binding) -> None:
        ucx = binding.ucx
        self.binding = binding
        self._context = ucx.UCXContext({}, (ucx.Feature.TAG, ucx.Feature.STREAM, ucx.Feature.WAKEUP))
        self.ucx = ucx.UCXWorker(self._context, enable_delayed_submission=False, enable_python_future=False)
        self.ucx.init_blocking_progress_mode()
        self._pending: list[tuple[Any, OnEnd, Any]] = []
        self._thorough = False
        self._has_new = False  # new requests may have completed at once, which UCX does not report as progress

    def fileno(self) -> int:
        """UCX's event descriptor. After `arm`, it becomes readable when there is progress to make."""
        return int(self.ucx.epoll_file_descriptor)

    def submit(self, request: Any, on_end: OnEnd, keep: Any) -> None:
        """Call `on_end` once the request has ended. `keep` stays alive until then."""
        self._pending.append((request, on_end, keep))
        self._has_new = True

    def thoroughly(self) -> None:
        """Make the next `progress` also cancel the requests of endpoints that failed or were closed."""
        self._thorough = True

    def progress(self) -> None:
        """Let UCX make progress, then call `on_end` of the requests that have ended."""
        deadline_s = time.monotonic() + _BUDGET_S
        has_moved = self._has_new or self._thorough
        self._has_new = False
        if self._thorough:
            self._thorough = False
            self.ucx.progress()
        while self.ucx.progress_once():
            has_moved = True
            if time.monotonic() >= deadline_s:
                break
        if has_moved:
            self._settle()

    def arm(self) -> bool:
        """Prepare to wait for the descriptor. Returns False if there is progress to make at once instead."""
        return not (self._thorough or self._has_new) and bool(self.ucx.arm())

    def _settle(self) -> None:
        completed = [request.completed for request, _, _ in self._pending]
        ended = list(itertools.compress(self._pending, completed))
        if ended:
            self._pending = [entry for entry, is_over in zip(self._pending, completed, strict=True) if not is_over]
        for request, on_end, _ in ended:
            try:
                request.check_error()
            except self.binding.ucx.UCXError as error:
                on_end((str(error) or type(error).__name__)[:MAX_TEXT_CHARS])
            else:
                on_end("")
