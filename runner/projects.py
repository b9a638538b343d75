"""Reads project files, the dataset catalog and, to check them, the data files. Writes nothing.

A project is `<projects>/<name>.toml`, the catalog `<projects>/datasets.toml`; data paths are relative to that folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from runner.errors import Problem, SpecError, UsageError
from runner.overrides import apply_overrides
from runner.rows import RowFormat, check_rows
from runner.spec import DatasetEntry, ProjectSpec, RunSpec
from runner.spec_problems import find_problems
from runner.toml_lines import KeyPath, dotted, key_lines, line_of

CATALOG = "datasets.toml"
NOT_PROJECTS = frozenset({CATALOG, "policy.toml"})
ROW_PROBLEMS_SHOWN = 5
"""Malformed rows shown of one data file; a file of the wrong kind would flood the answer."""


@dataclass(frozen=True, slots=True)
class ProjectListing:
    """A project file as the list of projects shows it."""

    name: str
    description: str
    spec: ProjectSpec | None
    """None when it is not valid."""
    error: SpecError | None
    """Its problems, None when it is valid."""


@dataclass(frozen=True, slots=True)
class _TomlFile:
    name: str
    """File name, for the reader."""
    raw: dict[str, Any]
    lines: dict[KeyPath, int]
    problems: tuple[Problem, ...] = ()


def _read_toml(path: Path) -> _TomlFile:
    try:
        text = path.read_text(encoding="utf-8")
        return _TomlFile(path.name, tomli.loads(text), key_lines(text))
    except tomli.TOMLDecodeError as error:
        problem = Problem(f"not valid TOML: {error.msg}", file=path.name, line=error.lineno, column=error.colno)
    except UnicodeDecodeError as error:
        problem = Problem(f"not UTF-8 text ({error.reason} at byte {error.start})", file=path.name)
    except FileNotFoundError:
        problem = Problem("the file does not exist", file=path.name)
    except OSError as error:
        problem = Problem(f"the file cannot be read ({error.strerror})", file=path.name)
    return _TomlFile(path.name, {}, {}, (problem,))


def project_names(projects_dir: Path) -> list[str]:
    """Names of all project files, valid or not, in alphabetical order."""
    return sorted(path.stem for path in projects_dir.glob("*.toml") if path.name not in NOT_PROJECTS)


def load_project(projects_dir: Path, name: str, overrides: Mapping[str, str] | None = None) -> RunSpec:
    """Read and check a project with everything it names, and resolve it once.

    Args:
        projects_dir: The projects folder.
        name: The file's name without `.toml`.
        overrides: `key=value` pairs as typed; keys may be dotted paths or bare names.

    Raises:
        UsageError: There is no such project (code `unknown-project`).
        SpecError: The project, its overrides, the catalog or a data file has problems; carries all of them.
    """
    names = project_names(projects_dir)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        known = f"The projects are: {', '.join(names)}." if names else f"There is no project file in {projects_dir}."
        raise UsageError(
            f"There is no project {name!r}.",
            hint=f"Did you mean {near[0]!r}? {known}" if near else known,
            code="unknown-project",
        )
    file = _read_toml(projects_dir / f"{name}.toml")
    if file.problems:
        raise SpecError(name, list(file.problems))
    raw, changed, problems = apply_overrides(file.raw, overrides or {}, file=file.name)
    spec: ProjectSpec | None = None
    try:
        spec = ProjectSpec.model_validate(raw)
    except ValidationError as error:
        problems += [
            Problem(problem.message, file="override", path=problem.path) if problem.path in changed else problem
            for problem in find_problems(error, ProjectSpec, raw, file=file.name, lines=file.lines)
        ]
    if isinstance(raw.get("name"), str) and raw["name"] != name:
        line = file.lines.get(("name",))
        problems.append(Problem(f"must equal the file's name, {name!r}", file=file.name, line=line, path="name"))
    datasets, data_problems = _named_datasets(projects_dir, file, raw)
    problems += data_problems
    if problems or spec is None:
        raise SpecError(name, problems)
    return RunSpec(project=spec, datasets=datasets, overrides=changed, stated=_stated(file.raw))


def list_projects(projects_dir: Path) -> list[ProjectListing]:
    """Every project with its description, the invalid ones with their problems."""
    listings = []
    for name in project_names(projects_dir):
        try:
            spec = load_project(projects_dir, name).project
        except SpecError as error:
            listings.append(ProjectListing(name, "", None, error))
        else:
            listings.append(ProjectListing(name, spec.description, spec, None))
    return listings


def _stated(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted paths of the settings that the file states itself."""
    paths: list[str] = []
    for key, value in raw.items():
        paths += [f"{key}.{inner}" for inner in value] if isinstance(value, Mapping) else [key]
    return tuple(paths)


@dataclass(frozen=True, slots=True)
class _Mention:
    """A place in a project file that names a dataset."""

    path: KeyPath
    dataset_id: int
    compared: bool
    """Whether completions are compared with this dataset's, so that it needs prompt and completion."""


def _mentions(raw: Mapping[str, Any]) -> list[_Mention]:
    """Where the project names which dataset, as far as the file can be understood."""
    found: list[tuple[KeyPath, object, bool]] = []
    traits = raw.get("traits")
    for number, trait in enumerate(traits if isinstance(traits, list) else ()):
        shares = trait.get("datasets") if isinstance(trait, Mapping) else None
        for position, share in enumerate(shares if isinstance(shares, list) else ()):
            if isinstance(share, Mapping):
                found.append((("traits", number, "datasets", position, "dataset_id"), share.get("dataset_id"), False))
    evaluation = raw.get("evaluation")
    wanted = evaluation.get("exact_match") if isinstance(evaluation, Mapping) else None
    for position, dataset_id in enumerate(wanted if isinstance(wanted, list) else ()):
        found.append((("evaluation", "exact_match", position), dataset_id, True))
    return [_Mention(path, value, compared) for path, value, compared in found if type(value) is int]


@dataclass(frozen=True, slots=True)
class _Dataset:
    """A catalog entry with what its file holds."""

    entry: DatasetEntry | None
    format: RowFormat | None
    problems: list[Problem]


def _named_datasets(
    projects_dir: Path, file: _TomlFile, raw: Mapping[str, Any]
) -> tuple[dict[int, DatasetEntry], list[Problem]]:
    """Look up and check every dataset that the project names, each once."""
    catalog = _read_toml(projects_dir / CATALOG)
    problems = list(catalog.problems)
    looked_up: dict[int, _Dataset] = {}
    for mention in () if catalog.problems else _mentions(raw):
        line, path = line_of(file.lines, mention.path), dotted(mention.path)
        if str(mention.dataset_id) not in catalog.raw:
            known = ", ".join(catalog.raw) or "none yet"
            message = f"dataset {mention.dataset_id} is not in {CATALOG} (there: {known})"
            problems.append(Problem(message, file=file.name, line=line, path=path))
            continue
        if mention.dataset_id not in looked_up:
            looked_up[mention.dataset_id] = _look_up(projects_dir, catalog, mention.dataset_id)
            problems += looked_up[mention.dataset_id].problems
        if mention.compared and looked_up[mention.dataset_id].format in {"messages", "text"}:
            message = f"dataset {mention.dataset_id} has no prompt and completion to compare with"
            problems.append(Problem(message, file=file.name, line=line, path=path))
    entries = {dataset_id: found.entry for dataset_id, found in looked_up.items() if found.entry is not None}
    return entries, problems


def _look_up(projects_dir: Path, catalog: _TomlFile, dataset_id: int) -> _Dataset:
    key = str(dataset_id)
    raw = catalog.raw[key]
    try:
        entry = DatasetEntry.model_validate(raw)
    except ValidationError as error:
        lines = {path[1:]: line for path, line in catalog.lines.items() if path[0] == key}
        found = find_problems(error, DatasetEntry, raw if isinstance(raw, dict) else {}, file=CATALOG, lines=lines)
        return _Dataset(None, None, [replace(one, path=f"{key}.{one.path}" if one.path else key) for one in found])
    row_format, rows = check_rows(projects_dir / entry.path)
    line = catalog.lines.get((key, "path"))
    problems = [
        Problem(one.message, file=entry.path, line=one.row)
        if one.row
        else Problem(f"{one.message}: {entry.path}", file=CATALOG, line=line, path=f"{key}.path")
        for one in rows[:ROW_PROBLEMS_SHOWN]
    ]
    if len(rows) > ROW_PROBLEMS_SHOWN:
        problems.append(Problem(f"and {len(rows) - ROW_PROBLEMS_SHOWN} more rows like these", file=entry.path))
    return _Dataset(entry, row_format, problems)
