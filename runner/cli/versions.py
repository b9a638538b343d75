"""`versions [--json]`: what is installed, compared with the nearest stack that we test."""

from __future__ import annotations

import argparse

from runner.device import describe_device
from runner.versions import format_versions, report_versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    report = report_versions(describe_device())
    print(report.model_dump_json(indent=2) if arguments.json else format_versions(report))
    return 0
