"""How every process logs: one line of JSON a record for machines, readable lines on a terminal; never a secret."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from runner.redaction import redact
from runner.settings import LogFormat


@dataclass(frozen=True, slots=True)
class _About:
    job: str | None = None
    attempt: int | None = None


_NOTHING = _About()
_about: ContextVar[_About] = ContextVar("about", default=_NOTHING)


@contextmanager
def logging_about(job: str, attempt: int | None = None) -> Iterator[None]:
    """Name the job, and perhaps the attempt, in every record that this thread logs inside."""
    token = _about.set(_About(job, attempt))
    try:
        yield
    finally:
        _about.reset(token)


def in_this_context(work: Callable[[], None]) -> Callable[[], None]:
    """The same work for a thread of its own, whose records name what this thread's do: threads inherit nothing."""
    context = copy_context()
    return lambda: context.run(work)


def configure_logging(
    log_format: LogFormat, *, level: int = logging.INFO, host: str | None = None, pool: str | None = None
) -> None:
    """Let this process log to stderr, warnings and uncaught exceptions included, unless its logging is set up already.

    Args:
        log_format: `auto` is `text` on a terminal and `json` elsewhere.
        level: The lowest level that is written.
        host: What reports call this host.
        pool: Whose jobs this process runs, None where it runs none.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter(host=host, pool=pool))
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_of_thread


class JsonFormatter(logging.Formatter):
    """A record as one line: time (UTC, ISO 8601), level, logger, message, host, pool, job, attempt, exception.

    All of them are always there, null where there is nothing to say.
    """

    def __init__(self, *, host: str | None, pool: str | None) -> None:
        super().__init__()
        self._host = host
        self._pool = pool

    def format(self, record: logging.LogRecord) -> str:
        """Write the line."""
        about = _about.get()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
            "host": self._host,
            "pool": self._pool,
            "job": about.job,
            "attempt": about.attempt,
            "exception": redact(self.formatException(record.exc_info)) if record.exc_info else None,
        }
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A record for people: local time, and the job where the message does not name it."""

    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = None

    def format(self, record: logging.LogRecord) -> str:
        """Write the line, and the traceback under it."""
        about, message = _about.get(), record.getMessage()
        if about.job is not None and about.job not in message:
            message += f" ({about.job}{'' if about.attempt is None else f', attempt {about.attempt}'})"
        lines = [f"{self.formatTime(record)} {record.levelname:<7} {record.name}  {message}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return redact("\n".join(lines))


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("uncaught").critical("This process ends: %s", kind.__name__, exc_info=(kind, error, trace))


def _log_uncaught_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    name = args.thread.name if args.thread is not None else "?"
    logging.getLogger("uncaught").critical(
        "Thread %s ends: %s", name, args.exc_type.__name__, exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
    )
