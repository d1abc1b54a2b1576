"""Records every answered request: in metrics, as one log line with timings, and as a timeline."""

import logging
import time

from baton.telemetry import traceparent
from baton.telemetry.exposition import exemplar
from baton.telemetry.timeline import TimelineBook
from router.http import metrics as http_metrics
from router.http.exchange import Exchange
from router.recent import RECENT

_CLIENT_LEFT = 499
_log = logging.getLogger("router.access")


class Observer:
    """Records requests; one per router process. `traces`: whether this router exports spans."""

    def __init__(self, timelines: TimelineBook | None = None, *, traces: bool = False) -> None:
        self._timelines = timelines or TimelineBook()
        self._traces = traces

    def begin(self, exchange: Exchange) -> None:
        """Start the timeline of a request to a POST route."""
        given = exchange.header(b"traceparent")
        parent = given if traceparent.is_sane(given) else ""
        exchange.timeline.parent = parent
        exchange.timeline.traceparent = traceparent.child(parent) if self._traces else parent
        exchange.timeline.name = f"{exchange.method} {exchange.path}"
        self._timelines.add(exchange.timeline)

    def end(self, exchange: Exchange) -> None:
        """Count and log a request that has been answered, or whose client has left."""
        total_s = time.monotonic() - exchange.arrived_s
        status = _CLIENT_LEFT if exchange.left else exchange.status
        http_metrics.REQUESTS.labels(exchange.model, str(status)).inc()
        http_metrics.REQUEST.observe(total_s, exemplar(exchange.request_id))
        RECENT.request(status, *exchange.num_tokens, exchange.num_cached_tokens)
        exchange.timeline.attributes = {
            "status": status,
            "model": exchange.model,
            "num_prompt_tokens": exchange.num_tokens[0],
            "num_output_tokens": exchange.num_tokens[1],
            **({"code": exchange.error_code} if exchange.error_code else {}),
        }
        exchange.timeline.end("" if status < 500 else str(status))
        if _log.isEnabledFor(logging.INFO):
            self._write(exchange, status, total_s)

    def _write(self, exchange: Exchange, status: int, total_s: float) -> None:
        timings = {name.removesuffix("_s"): round(seconds, 6) for name, seconds in exchange.timings.items()}
        fields = {
            "path": exchange.path,
            "status": status,
            "model": exchange.model,
            "prompt_tokens": exchange.num_tokens[0],
            "output_tokens": exchange.num_tokens[1],
            "cached_tokens": exchange.num_cached_tokens,
            "seconds": {"total": round(total_s, 6), **timings},
        }
        if exchange.error_code:
            fields["code"] = exchange.error_code
        _log.info(
            "%s %d%s prompt_tokens=%d output_tokens=%d total=%.3f%s",
            exchange.path,
            status,
            f" {exchange.error_code}" if exchange.error_code else "",
            *exchange.num_tokens,
            total_s,
            "".join(f" {name}={seconds:.3f}" for name, seconds in timings.items()),
            extra={"request_id": exchange.request_id, "fields": fields},
        )
