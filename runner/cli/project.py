"""What the verbs that name a project have in common: `PROJECT [key=value …]`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from runner.errors import SpecError, UsageError
from runner.projects import load_project
from runner.settings import RunnerSettings, load_settings
from runner.spec import RunSpec


@dataclass(frozen=True, slots=True)
class NamedProject:
    """A project as the command line names it."""

    name: str
    settings: RunnerSettings
    """This host's settings, with the projects folder that the project lies in."""
    overrides: dict[str, str]

    def load(self) -> RunSpec:
        """Read and check it.

        Raises:
            UsageError: There is no such project.
            SpecError: It is not valid.
        """
        return load_project(self.settings.projects_dir, self.name, self.overrides)


def add_project_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `PROJECT [key=value …]`."""
    parser.add_argument("project", metavar="PROJECT", help="a name in the projects folder, or a path to a .toml file")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="change a setting for this once, such as training.max_steps=20",
    )


def named_project(arguments: argparse.Namespace) -> NamedProject:
    """Read what the command line says.

    Raises:
        UsageError: It cannot be understood, or the file is not there.
    """
    settings = load_settings()
    name: str = arguments.project
    if name.endswith(".toml") or "/" in name:
        path = Path(name).absolute()
        if path.suffix != ".toml":
            raise UsageError(f"{name} is not a .toml file.", hint="Give a project's name, or the path of its file.")
        if not path.is_file():
            raise UsageError(f"There is no file {name}.", code="unknown-project")
        name, settings = path.stem, replace(settings, projects_dir=path.parent)
    return NamedProject(name, settings, read_overrides(arguments.overrides))


def problems_json(error: SpecError | UsageError) -> str:
    """What is wrong, as one JSON object."""
    problems = [asdict(problem) for problem in error.problems] if isinstance(error, SpecError) else []
    found = {"valid": False, "code": error.code, "message": error.message, "hint": error.hint, "problems": problems}
    return json.dumps(found, indent=2)


def read_overrides(words: list[str]) -> dict[str, str]:
    """Read `key=value` words.

    Raises:
        UsageError: A word is none, or a key comes twice.
    """
    overrides: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise UsageError(f"{word!r} is not key=value.", hint="Write an override like training.max_steps=20.")
        if key in overrides:
            raise UsageError(f"{key!r} is given twice.", hint="Leave one of them out.")
        overrides[key] = value
    return overrides
