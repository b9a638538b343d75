"""`worker [--pool P] [--name N] [--devices 0,1]`: take a pool's jobs and run them here, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse

from runner.errors import UsageError
from runner.logs import configure_logging
from runner.settings import load_log_format, load_settings
from runner.spec import NAME_PATTERN
from runner.worker import run_worker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--pool", default="gpu", help="whose jobs to take; projects name it in [compute], default: gpu")
    parser.add_argument("--name", help="how reports call this worker, unique among live ones; default: HOST:PID")
    parser.add_argument(
        "--devices",
        metavar="0,1",
        help="the GPUs it has for itself, numbered as by nvidia-smi; default: those of CUDA_VISIBLE_DEVICES, else all",
    )
    parser.add_argument(
        "--no-canary",
        dest="canary",
        action="store_false",
        help="take jobs at once, without having trained one step of a tiny model first",
    )


def run(arguments: argparse.Namespace) -> int:
    """Work until told to stop."""
    if not NAME_PATTERN.fullmatch(arguments.pool):
        raise UsageError(
            f"{arguments.pool!r} is not a pool's name.",
            hint="Use 1 to 40 lower-case letters, digits, - and _, starting with a letter or digit.",
        )
    log_format, settings = load_log_format(), load_settings()
    configure_logging(log_format, host=settings.host, pool=arguments.pool)
    return run_worker(
        settings,
        pool=arguments.pool,
        name=arguments.name,
        devices=arguments.devices,
        canary=arguments.canary,
    )
