"""`redis`: the embedded Valkey in the foreground, for a machine without Redis. Ends on SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import logging

from runner.embedded_redis import serve
from runner.settings import load_settings


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: it has none."""


def run(_: argparse.Namespace) -> int:
    """Serve until somebody ends it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(load_settings().state_dir)
    return 0
