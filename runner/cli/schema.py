"""`schema [FILE]`: the JSON schema of a project file or of the dataset catalog, for editors and other tools."""

from __future__ import annotations

import argparse
import json
from typing import Any

from runner.spec import DatasetEntry, ProjectSpec

FILES = ("project", "datasets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", choices=FILES, default="project", help="project (default) or datasets"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    schema = _catalog() if arguments.file == "datasets" else ProjectSpec.model_json_schema()
    print(json.dumps(schema, indent=2))
    return 0


def _catalog() -> dict[str, Any]:
    """The schema of `datasets.toml`: one table for each number."""
    entry = DatasetEntry.model_json_schema()
    # Found at the document's root, wherever the entry that refers to them stands.
    definitions = entry.pop("$defs")
    return {
        "title": "Datasets",
        "type": "object",
        "patternProperties": {"^[0-9]+$": entry | {"oneOf": [{"required": ["path"]}, {"required": ["hub"]}]}},
        "additionalProperties": False,
        "$defs": definitions,
    }
