"""Runs a test that measures the memory of its own process in one that has run no other test.

A process that has run many holds freed memory, which hides what is taken and looks like what is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_ALONE = "RUNS_ALONE"
"""Set in that process."""


def passed_alone(request: pytest.FixtureRequest) -> bool:
    """Run the asking test in a fresh process, fail as it fails; False in that process, where it does its work."""
    if _ALONE in os.environ:
        return False
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {_ALONE: "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
    done = subprocess.run(
        command, cwd=request.config.rootpath, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    return True
