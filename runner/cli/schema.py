"""`schema`: the JSON schema of a project file, for editors and other tools."""

from __future__ import annotations

import argparse
import json

from runner.spec import ProjectSpec


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: it has none."""


def run(_: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(ProjectSpec.model_json_schema(), indent=2))
    return 0
