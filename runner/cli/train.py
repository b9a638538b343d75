"""`train PROJECT [key=value …] [--run-dir DIR] [--json]`: run a project here and now, without Redis and Slack.

Exit status: 0 trained and published, 1 failed, 2 not a valid project, 130 stopped by Ctrl-C with a checkpoint.
"""

from __future__ import annotations

import argparse

from runner.child import Spawn
from runner.cli.foreground import add_run_arguments, exit_status, run_in_foreground
from runner.cli.project import add_project_arguments, named_project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_project_arguments(parser)
    add_run_arguments(parser)


def run(arguments: argparse.Namespace, spawn: Spawn | None = None) -> int:
    """Check the project, train it in a child process, publish the adapter."""
    project = named_project(arguments)
    words = ["train", arguments.project, *arguments.overrides]
    return exit_status(run_in_foreground(project.load(), project.settings, arguments, words=words, spawn=spawn))
