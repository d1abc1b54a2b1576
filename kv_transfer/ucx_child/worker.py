"""One UCX worker: its progress, and what became of its requests. No thread, and no work while nothing happens.

Nothing is called back from within UCX: what UCX calls only takes a note, which is looked at after the progress.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

from kv_transfer.ucx_child.binding import Binding
from kv_transfer.ucx_child.frame_socket import MAX_TEXT_CHARS

OnEnd = Callable[[str], None]  # with the error, or empty; the request's buffer is no longer touched
_BUDGET_S = 0.001  # of progress in one go, before the node is listened to


class Worker:
    """Requests are futures of ucxx's, looked at when the worker has moved."""

    def __init__(self, binding: Binding) -> None:
        ucx = binding.ucx
        self.binding = binding
        self._context = ucx.UCXContext({}, (ucx.Feature.TAG, ucx.Feature.STREAM, ucx.Feature.WAKEUP))
        self.ucx = ucx.UCXWorker(self._context, enable_delayed_submission=False, enable_python_future=False)
        self.ucx.init_blocking_progress_mode()
        self._pending: list[tuple[Any, OnEnd, Any]] = []
        self._thorough = False
        self._has_new = False  # requests: they may have ended already, and UCX tells of no such end

    def fileno(self) -> int:
        """Readable when there is progress to make; only after `arm`."""
        return int(self.ucx.epoll_file_descriptor)

    def submit(self, request: Any, on_end: OnEnd, keep: Any) -> None:
        """Call `on_end` once the request has ended. `keep` stays alive until then."""
        self._pending.append((request, on_end, keep))
        self._has_new = True

    def thoroughly(self) -> None:
        """Let the next progress also cancel the requests of endpoints that failed or were closed."""
        self._thorough = True

    def progress(self) -> None:
        """Let UCX work, then tell the ends of requests."""
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
        """Whether it is time to wait for the descriptor: False where there is progress to make at once."""
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
