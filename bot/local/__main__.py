"""`python -m bot.local demo` and `python -m bot.local run`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from types import FrameType

from bot.local.demo import build_base_model, run_demo, wait_until_ready
from bot.local.parts import require_alive, running_parts
from runner.errors import QLoRAError
from runner.settings import RunnerSettings, keep_files_private, load_settings

INTERRUPTED = 130


def run(settings: RunnerSettings) -> int:
    """Leave all parts running until Ctrl-C or SIGTERM."""
    with running_parts(settings) as parts:
        build_base_model(settings)
        _, store = wait_until_ready(settings, parts)
        store.close()
        print(
            f"Everything runs; logs are in {settings.state_dir / 'logs'}. From a second terminal:\n\n"
            f'  {sys.executable} -m bot.workspace say "/qlora start demo"\n'
            f'  {sys.executable} -m bot.workspace say "/qlora status"\n'
            f"  {sys.executable} -m bot.workspace thread JOB --follow\n\n"
            "Ctrl-C stops everything.",
            flush=True,
        )
        try:
            while True:
                require_alive(parts)
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("\nStopping; a job that runs writes a checkpoint and goes on with the next `make run`.", flush=True)
            raise


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Parse the command line and run.

    Returns:
        The exit status: 0 done, 1 failed, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m bot.local", description=__doc__)
    parser.add_argument("verb", choices=("demo", "run"))
    arguments = parser.parse_args()
    # Both end the same way: the parts are stopped in order.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        keep_files_private()
        settings = load_settings()
        return run_demo(settings) if arguments.verb == "demo" else run(settings)
    except KeyboardInterrupt:
        # The parts are stopped by now. Ctrl-C is how `run` ends; a demo that is broken off has not succeeded.
        return INTERRUPTED if arguments.verb == "demo" else 0
    except QLoRAError as error:
        print(f"{error.message}\n{error.hint or ''}".rstrip(), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
