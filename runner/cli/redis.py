"""`redis`: the embedded Valkey in the foreground, for a machine without Redis. Ends on SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse

from runner.embedded_redis import serve
from runner.logs import configure_logging
from runner.settings import load_log_format, load_settings


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: it has none."""


def run(_: argparse.Namespace) -> int:
    """Serve until somebody ends it."""
    log_format, settings = load_log_format(), load_settings()
    configure_logging(log_format, host=settings.host)
    serve(settings.state_dir)
    return 0
