"""`versions [--json | --known]`: what is installed against the stacks that we test, and what is known against it."""

from __future__ import annotations

import argparse

from runner.device import describe_device
from runner.versions import format_known_defects, format_versions, report_versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    form.add_argument("--known", action="store_true", help="print every version known to misbehave, installed or not")


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    if arguments.known:
        print(format_known_defects())
        return 0
    report = report_versions(describe_device())
    print(report.model_dump_json(indent=2) if arguments.json else format_versions(report))
    return 0
