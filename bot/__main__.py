"""`python -m bot` runs the bot; `python -m bot manifest` prints the Slack app's manifest."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from types import FrameType

from runner.errors import QLoRAError
from runner.logs import configure_logging
from runner.settings import keep_files_private, load_host, load_log_format

WAIT_S = 30.0
"""Seconds to wait for Redis and the workspace at the start: parts of one machine come up in any order."""

_log = logging.getLogger("bot")


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bot", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "manifest"], default="run")
    options = parser.parse_args(arguments)
    if options.command == "manifest":
        from bot.manifest import format_manifest  # noqa: PLC0415 - needs nothing of what running needs

        sys.stdout.write(format_manifest() + "\n")
        return 0
    for chatty in ("slack_bolt", "slack_sdk"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Until everything runs, a signal ends the bot wherever it waits; from then on it is stopped in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        configure_logging(load_log_format(), host=load_host())
        keep_files_private()
        run()
    except KeyboardInterrupt:
        _log.info("Stopped before everything was running.")
    except QLoRAError as error:
        _log.error("%s", error)
        return 1
    return 0


def run() -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        UnavailableError: The settings, Redis or the workspace cannot be used.
    """
    from bot.app import Bot  # noqa: PLC0415 - a signal during the imports is already handled
    from bot.connections import connect_redis, connect_slack  # noqa: PLC0415 - as above
    from bot.settings import load_bot_settings  # noqa: PLC0415 - as above
    from runner.queue import build_broker  # noqa: PLC0415 - as above
    from runner.reconciler import Reconciler  # noqa: PLC0415 - as above
    from runner.redis_server import what_could_lose_jobs  # noqa: PLC0415 - as above

    settings = load_bot_settings()
    deadline = time.monotonic() + WAIT_S
    url, store = connect_redis(settings.runner, deadline=deadline)
    for finding in what_could_lose_jobs(store.client):
        _log.warning("%s", finding)
    access, team = connect_slack(settings, deadline=deadline)
    broker = build_broker(url)
    reconciler = Reconciler(store, broker)
    try:
        with Bot(access, store, broker, settings.runner.projects_dir) as bot:
            reconciler.start()
            stop = _stop_on_signals()
            _log.info("Listening to /qlora in %s; projects are in %s.", team, settings.runner.projects_dir)
            while not stop.wait(1.0):
                if not (bot.is_reporting() and reconciler.is_alive()):
                    raise RuntimeError("The reporter or the reconciler has ended by itself; the log above says why.")
            _log.info("Stopping.")
    finally:
        if reconciler.is_alive():
            reconciler.close(10.0)
        broker.close()
        broker.client.close()
        store.close()


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return stop


if __name__ == "__main__":
    sys.exit(main())
