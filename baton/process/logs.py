"""Sets up a service's log, on stderr. Stdout is reserved for the lines that a supervisor reads (`supervised`)."""

import logging
import sys
import time
from typing import IO

import msgspec


def log_to_stderr(level: str, log_format: str = "text", stream: IO[str] | None = None) -> None:
    """Send all log records to stderr (or `stream`), as JSON lines (`json`) or plain lines (`text`)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JSONLines() if log_format == "json" else _OneLiners())
    logging.raiseExceptions = False  # a full disk costs log lines, not requests
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _OneLiners(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():7} {record.name}: {record.getMessage()}"
        if request_id := getattr(record, "request_id", ""):
            line += f" [{request_id}]"
        if prompt := getattr(record, "fields", {}).get("prompt"):
            line += f" {prompt!r}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JSONLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := getattr(record, "request_id", ""):
            entry["request_id"] = request_id
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()
