"""`metrics [--listen HOST:PORT]`: answer Prometheus' scrapes about all jobs, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import re
import signal
import threading
from types import FrameType

from runner.embedded_redis import resolve_redis_url
from runner.errors import UnavailableError, UsageError
from runner.logs import configure_logging
from runner.redis_client import build_client
from runner.settings import load_log_format, load_settings
from runner.store import Store

DEFAULT = "127.0.0.1:9464"
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:]+):(?P<port>\d{1,5})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=DEFAULT,
        help=f"where to answer; nobody is asked who he is, default: {DEFAULT}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    place = _ADDRESS.fullmatch(arguments.listen)
    if place is None:
        raise UsageError(f"{arguments.listen!r} is no HOST:PORT.", hint=f"Write it like {DEFAULT}.")
    try:
        from runner.metrics import serve_metrics  # noqa: PLC0415 - only who serves metrics needs the library
    except ImportError:
        raise UnavailableError("Metrics need prometheus_client.", hint="pip install 'qlora-bot[metrics]'.") from None
    log_format, settings = load_log_format(), load_settings()
    configure_logging(log_format, host=settings.host)
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    # Shorter than a scrape waits; and not connected here, because a Redis that is down is what metrics have to tell.
    client = build_client(resolve_redis_url(settings), decode_responses=True, retries=1, timeout_s=2.0)
    store = Store(client, lease_s=settings.lease_s)
    try:
        serve_metrics(store, place["host"].strip("[]"), int(place["port"]), stop)
    finally:
        store.close()
    return 0
