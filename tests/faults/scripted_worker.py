"""A worker as it is in production, but for what it starts as a child: `scripted_worker.py POOL CHILD DIARY`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from runner.child import EVENTS_FD, Child, child_environment
from runner.settings import load_settings
from runner.worker import run_worker

pool, child, diary = sys.argv[1:]
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
settings = load_settings()


def spawn(run_dir: Path) -> Child:
    command = [sys.executable, "-S", child, str(run_dir), "--events-fd", str(EVENTS_FD), diary, str(os.getpid())]
    return Child(command, run_dir, environ=child_environment(settings))


sys.exit(run_worker(settings, pool=pool, spawn=spawn))
