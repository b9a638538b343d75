"""Reads project files, the dataset catalog and, to check them, the data files. Writes nothing.

A project is `<projects>/<name>.toml`, the catalog `<projects>/datasets.toml`; data paths are relative to that folder.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from runner.errors import OVERRIDE, Problem, SpecError, UsageError
from runner.overrides import apply_overrides
from runner.redaction import redact
from runner.row_formats import RowFormat
from runner.rows import check_rows
from runner.spec import DatasetEntry, ProjectSpec, RunSpec
from runner.spec_problems import find_problems
from runner.suggestions import nearest
from runner.toml_lines import KeyPath, dotted, key_lines, line_of

CATALOG = "datasets.toml"
NOT_PROJECTS = frozenset({CATALOG, "policy.toml"})
IDS_SHOWN = 12
"""Known dataset ids named in an answer."""


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
        if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            # A pipe or a device would never end.
            return _TomlFile(path.name, {}, {}, (Problem("is not a regular file", file=path.name),))
        # Editors on Windows put a byte order mark in front; TOML knows none.
        text = path.read_bytes().decode("utf-8-sig")
        return _TomlFile(path.name, tomli.loads(text), key_lines(text))
    except tomli.TOMLDecodeError as error:
        problem = Problem(_syntax_words(error), file=path.name, line=error.lineno, column=error.colno)
    except RecursionError as error:
        problem = Problem(f"not valid TOML: {error}", file=path.name)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 text ({error.reason} at byte {error.start}); save the file as UTF-8"
        problem = Problem(message, file=path.name, line=line)
    except ValueError:
        # Python converts no more than 4300 digits.
        found = re.search(r"[0-9_]{4301,}", text)
        problem = Problem(
            "not valid TOML: holds a number with too many digits",
            file=path.name,
            line=text.count("\n", 0, found.start()) + 1 if found else None,
        )
    except FileNotFoundError:
        problem = Problem("the file does not exist", file=path.name)
    except OSError as error:
        problem = Problem(f"the file cannot be read ({error.strerror})", file=path.name)
    return _TomlFile(path.name, {}, {}, (problem,))


_CURLY = re.compile("[\u2018\u2019\u201c\u201d]")


def _syntax_words(error: tomli.TOMLDecodeError) -> str:
    """What tomli says, with the line itself and what mostly is the matter with it."""
    lines = error.doc.splitlines()
    line = lines[error.lineno - 1].strip() if 0 < error.lineno <= len(lines) else ""
    words = f"not valid TOML: {error.msg[:1].lower()}{error.msg[1:]}{f' in `{line[:80]}`' if line else ''}"
    if _CURLY.search(line):
        return f"{words}; write straight quotes"
    if "\u00a0" in line:
        return f"{words}; there is a no-break space in it"
    if error.msg == "Invalid value" and re.search(r"=\s*[A-Za-z]", line):
        return f"{words}; text stands in quotes, and it is true and false in small letters"
    if re.match(r"[\w-]+\s*:", line):
        return f"{words}; write key = value"
    return words


def project_names(projects_dir: Path) -> list[str]:
    """Names of all project files, valid or not, in alphabetical order."""
    # Names with a leading dot are what editors and archives leave behind.
    paths = (path for path in projects_dir.glob("*.toml") if not path.name.startswith("."))
    return sorted(path.stem for path in paths if path.name not in NOT_PROJECTS)


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
        near = nearest(name, names)
        known = f"The projects are: {', '.join(names)}." if names else f"There is no project file in {projects_dir}."
        raise UsageError(
            f"There is no project {name[:60]!r}.",
            hint=f"Did you mean {near!r}? {known}" if near else known,
            code="unknown-project",
        )
    file = _read_toml(projects_dir / f"{name}.toml")
    if file.problems:
        raise SpecError(name, list(file.problems))
    raw, changed, refused = apply_overrides(file.raw, overrides or {}, file=file.name)
    spec, problems = _validated(raw, file)
    if problems and changed:
        # Two settings may contradict each other: where the file alone is free of it, what was typed is to blame.
        _, of_file = _validated(file.raw, file)
        problems = [one if one in of_file else replace(one, file=OVERRIDE, line=None) for one in problems]
    if isinstance(raw.get("name"), str) and raw["name"] != name:
        line = file.lines.get(("name",))
        message = f"must equal the file's name, {json.dumps(name)}, found {json.dumps(raw['name'][:60])}"
        problems.append(Problem(message, file=file.name, line=line, path="name"))
    datasets, data_problems = _named_datasets(projects_dir, _read_toml(projects_dir / CATALOG), file, raw)
    problems = refused + [_blamed(problem, file.name, changed) for problem in problems + data_problems]
    if problems or spec is None:
        raise SpecError(name, _in_reading_order(problems, file.name))
    return RunSpec(
        project=spec,
        datasets={dataset_id: found.entry for dataset_id, found in datasets.items() if found.entry is not None},
        unchecked=tuple(dataset_id for dataset_id, found in datasets.items() if not found.checked),
        overrides=changed,
        stated=_stated(file.raw),
    )


def change_settings(projects_dir: Path, former: RunSpec, overrides: Mapping[str, str]) -> RunSpec:
    """The spec of an earlier job with other settings, checked as a project file's is; the file itself is not read.

    Args:
        projects_dir: Where its local data lie.
        former: As the earlier job ran.
        overrides: `key=value` pairs as typed; keys may be dotted paths or bare names.

    Raises:
        SpecError: The overrides do not fit, or a data file has problems by now; carries all of them.
    """
    name = former.project.name
    file = _TomlFile(f"{name}.toml", former.project.model_dump(mode="json"), {})
    raw, changed, problems = apply_overrides(file.raw, overrides, file=file.name)
    spec, found = _validated(raw, file)
    entries = {str(key): entry.model_dump(mode="json", exclude_none=True) for key, entry in former.datasets.items()}
    datasets, data_problems = _named_datasets(projects_dir, _TomlFile(CATALOG, entries, {}), file, raw)
    # The former settings were valid, so whatever is wrong with the new ones was typed.
    problems += [replace(one, file=OVERRIDE) if one.file == file.name else one for one in found + data_problems]
    if problems or spec is None:
        raise SpecError(name, _in_reading_order(problems, file.name))
    return former.model_copy(
        update={
            "project": spec,
            "unchecked": tuple(dataset_id for dataset_id, dataset in datasets.items() if not dataset.checked),
            "overrides": former.overrides | changed,
        }
    )


def _secrets(value: Any, file: str, lines: Mapping[KeyPath, int], path: KeyPath = ()) -> Iterator[Problem]:
    """Texts that look like a token or a password: specs go into records, run directories and cards."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(inner, file, lines, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _secrets(inner, file, lines, (*path, number))
    elif isinstance(value, str) and redact(value) != value:
        message = "holds what looks like a token or a password; everybody could read it, so put it into the environment"
        yield Problem(message, file=file, line=line_of(lines, path), path=dotted(path))


def _validated(raw: Mapping[str, Any], file: _TomlFile) -> tuple[ProjectSpec | None, list[Problem]]:
    if secrets := list(_secrets(raw, file.name, file.lines)):
        return None, secrets
    try:
        return ProjectSpec.model_validate(raw), []
    except ValidationError as error:
        return None, find_problems(error, ProjectSpec, raw, file=file.name, lines=file.lines)


def _blamed(problem: Problem, file: str, changed: Mapping[str, str]) -> Problem:
    """Blame the override, and not the file, for a value that was typed."""
    typed = problem.file == file and problem.path is not None and problem.path.partition("[")[0] in changed
    return replace(problem, file=OVERRIDE, line=None) if typed else problem


def _in_reading_order(problems: list[Problem], file: str) -> list[Problem]:
    """Overrides, project file, catalog, each from top to bottom; then the data files as the project names them."""
    files = [OVERRIDE, file, CATALOG]

    def place(problem: Problem) -> tuple[int, int]:
        return (files.index(problem.file), problem.line or 0) if problem.file in files else (len(files), 0)

    return sorted(problems, key=place)


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
    """Whether answers are compared with this dataset's, so that it needs some."""


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
    checked: bool = True
    """Whether this machine has read its rows, as far as there are problems."""


def _named_datasets(
    projects_dir: Path, catalog: _TomlFile, file: _TomlFile, raw: Mapping[str, Any]
) -> tuple[dict[int, _Dataset], list[Problem]]:
    """Look up and check every dataset that the project names, each once."""
    problems = list(catalog.problems)
    looked_up: dict[int, _Dataset] = {}
    for mention in () if catalog.problems else _mentions(raw):
        line, path = line_of(file.lines, mention.path), dotted(mention.path)
        if str(mention.dataset_id) not in catalog.raw:
            message = f"dataset {mention.dataset_id} is not in {CATALOG} (there: {_known_ids(catalog)})"
            problems.append(Problem(message, file=file.name, line=line, path=path))
            continue
        if mention.dataset_id not in looked_up:
            entry = {str(mention.dataset_id): catalog.raw[str(mention.dataset_id)]}
            secrets = list(_secrets(entry, CATALOG, catalog.lines))
            looked_up[mention.dataset_id] = (
                _Dataset(None, None, secrets) if secrets else _look_up(projects_dir, catalog, mention.dataset_id)
            )
            problems += looked_up[mention.dataset_id].problems
        if mention.compared and looked_up[mention.dataset_id].format == "text":
            message = f"dataset {mention.dataset_id} holds plain text, which has no answers to compare with"
            problems.append(Problem(message, file=file.name, line=line, path=path))
    return looked_up, problems


def _known_ids(catalog: _TomlFile) -> str:
    ids = list(catalog.raw)
    return ", ".join(ids[:IDS_SHOWN]) + (", …" if len(ids) > IDS_SHOWN else "") if ids else "none yet"


def _look_up(projects_dir: Path, catalog: _TomlFile, dataset_id: int) -> _Dataset:
    key = str(dataset_id)
    raw = catalog.raw[key]
    try:
        entry = DatasetEntry.model_validate(raw)
    except ValidationError as error:
        lines = {path[1:]: line for path, line in catalog.lines.items() if path[0] == key}
        found = find_problems(error, DatasetEntry, raw, file=CATALOG, lines=lines)
        whole = lines.get(())
        return _Dataset(
            None,
            None,
            [replace(one, path=f"{key}.{one.path}" if one.path else key, line=one.line or whole) for one in found],
        )
    if entry.path is None:
        return _Dataset(entry, None, [], checked=False)  # its rows are checked on the host, which can download them
    path = projects_dir / entry.path

    def at(name: str, message: str) -> Problem:
        return Problem(message, file=CATALOG, line=catalog.lines.get((key, name)), path=f"{key}.{name}")

    try:
        leaves = not path.resolve().is_relative_to(projects_dir.resolve())
    except (OSError, RuntimeError):  # Python before 3.13 raises the latter
        return _Dataset(entry, None, [at("path", f"the data file {entry.path} is a link that leads in a circle")])
    if leaves:
        what = f"the data file {entry.path} is a link that leaves the projects folder"
        return _Dataset(entry, None, [at("path", what)])
    if path.is_dir():
        # As above: what a folder holds, the datasets library decides.
        message = f"{entry.path} is a folder; only a file has a file_type"
        return _Dataset(entry, None, [at("file_type", message)] if entry.file_type else [], checked=False)
    problems = [
        at(name, f"{entry.path} is a file; only a folder or a hub dataset has a {name}") for name in entry.load_keys
    ]
    check = check_rows(path, entry.layout)
    problems += [
        Problem(f"row {one.row}: {one.message}", file=entry.path, line=one.line)
        if one.row
        else at("path", f"the data file {entry.path} {one.message}")
        for one in check.problems
    ]
    if check.further:
        rows = "row" if check.further == 1 else "rows"
        problems.append(Problem(f"and {check.further} more {rows} with problems", file=entry.path))
    return _Dataset(entry, check.format, problems)
