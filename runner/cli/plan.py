"""`plan PROJECT [key=value …] [--json] [--no-measure]`: what a run would take on this host, and whether it fits.

Exit status: 0 it fits, 1 it does not or a check failed, 2 not a valid project. With `--json` the last prints what
`check --json` does.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from runner.cli.project import add_project_arguments, named_project, problems_json
from runner.console import describe_event, printable
from runner.errors import SpecError, UsageError
from runner.events import ChildEvent
from runner.plan_text import plan_text
from runner.planning import make_plan

_FILE_COLUMNS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_project_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--no-measure", action="store_true", help="begin no run: memory by arithmetic, time by earlier runs only"
    )


def run(arguments: argparse.Namespace) -> int:
    """Plan and print."""
    try:
        project = named_project(arguments)
        spec = project.load()
    except (SpecError, UsageError) as error:
        if not arguments.json:
            raise
        print(problems_json(error))
        return 2
    # What goes on is told on standard error, so that standard output holds the plan alone.
    progress = Console(stderr=True)
    with progress.status("Reading the base model's configuration and the data …") as status:

        def tell(event: ChildEvent) -> None:
            for line in describe_event(event)[:1]:
                status.update(f"Trying a few steps: {printable(line.strip())}")

        plan = make_plan(spec, project.settings, measure=not arguments.no_measure, tell=tell)
    if arguments.json:
        print(plan.model_dump_json(indent=2))
    else:
        # In a file lines may be as long as they are.
        width = None if sys.stdout.isatty() else _FILE_COLUMNS
        Console(file=sys.stdout, highlight=False, width=width).print(plan_text(plan))
    return 0 if plan.fits else 1
