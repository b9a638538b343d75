"""What the bot costs its machine: seconds to import `bot.app`, and the memory of the running bot.

Run it with `make bench`. Every import is a fresh interpreter; a bare interpreter is timed in turn with it, so that the
difference holds on a machine of any speed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bot.local.parts import PARTS, running_parts, wait_for_file
from bot.workspace.client import WorkspaceClient
from runner.settings import load_settings

ROUNDS = 9
IMPORT_S = 0.6
"""What the import may take at most on two cores."""
MEMORY_MB = 120
"""What the running bot may hold at most."""


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs `code`."""
    started = time.perf_counter()
    subprocess.run((sys.executable, "-c", code), check=True)
    return time.perf_counter() - started


def import_seconds() -> tuple[float, float]:
    """Median seconds of a bare interpreter and of one that imports `bot.app`, run in turn after one warm-up each."""
    pairs = [(seconds("pass"), seconds("import bot.app")) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(bare for bare, _ in pairs), statistics.median(whole for _, whole in pairs)


def running_bot_mb() -> float:
    """Resident megabytes of a bot that has answered commands."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings({"QLORA_STATE_DIR": folder})
        parts = {name: arguments for name, arguments in PARTS.items() if name != "runner"}
        with running_parts(settings, parts) as started:
            wait_for_file(Path(folder) / "workspace.json", started)
            workspace = WorkspaceClient.discover(Path(folder))
            workspace.wait_connected()
            for line in (
                "/qlora help",
                "/qlora projects",
                "/qlora start demo",
                "/qlora status",
                "/qlora versions",
            ) * 10:
                workspace.command(line)
            (bot,) = [part for part in started if part.name == "bot"]
            return float(psutil.Process(bot.process.pid).memory_info().rss) / 1e6


def main() -> int:
    """Print the figures as one JSON object; exit status 1 when one is above its limit."""
    bare, whole = import_seconds()
    figures = {
        "interpreter_s": round(bare, 3),
        "import_bot_app_s": round(whole, 3),
        "import_limit_s": IMPORT_S,
        "running_bot_mb": round(running_bot_mb(), 1),
        "memory_limit_mb": MEMORY_MB,
    }
    print(json.dumps(figures, indent=2))  # noqa: T201 - a benchmark prints
    return int(whole > IMPORT_S or figures["running_bot_mb"] > MEMORY_MB)


if __name__ == "__main__":
    sys.exit(main())
