"""The worker's requests: one that has ended at once is noticed, though UCX reports no progress for it."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from kv_transfer.ucx_child.worker import Worker


class UCXError(Exception):
    """ucxx.libucxx.UCXError."""


@pytest.mark.parametrize("error", ["", "reset"])
def test_a_request_that_has_ended_at_once_is_noticed_without_progress(error):
    def check_error():
        if error:
            raise UCXError(error)

    ucx = MagicMock()
    ucx.UCXError = UCXError
    ucx.UCXWorker.return_value.progress_once.return_value = False
    worker, ends = Worker(SimpleNamespace(ucx=ucx)), []
    assert worker.arm()
    worker.submit(SimpleNamespace(completed=True, check_error=check_error), ends.append, None)
    assert not worker.arm()  # there is something to do at once
    worker.progress()
    worker.progress()
    assert ends == [error]
    assert worker.arm()
