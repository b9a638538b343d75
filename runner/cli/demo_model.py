"""`demo-model [FOLDER]`: build the demo's tiny base model, unless it is there already."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from runner.errors import UnavailableError
from runner.settings import load_settings

FOLDER = "demo-llama"
"""What `projects/demo.toml` calls its base model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        help=f"where to build it; default: {FOLDER} in the models root",
    )


def run(arguments: argparse.Namespace) -> int:
    """Build it in a process of its own, because this one must not load torch."""
    folder = arguments.folder or load_settings().models_root / FOLDER
    command = [sys.executable, "-m", "runner.training.demo_model", str(folder)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise UnavailableError(f"The demo model cannot be built in {folder}: {last[0]}")
    print(folder)
    return 0
