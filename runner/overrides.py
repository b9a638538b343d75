"""Applies `key=value` overrides to a project's raw settings. Pure.

Only how a job trains can be changed this way; what it trains on, which model and where the result goes are the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli
from pydantic import BaseModel

from runner.errors import OVERRIDE, Problem
from runner.refused_settings import why_refused
from runner.spec import ProjectSpec
from runner.suggestions import did_you_mean

OVERRIDABLE = ("quantization", "lora", "training", "evaluation")
"""Tables of a project file whose keys a requester may change."""


def _paths() -> list[str]:
    """Dotted paths of all settings, the whole tables included."""
    paths: list[str] = []
    for name, field in ProjectSpec.model_fields.items():
        paths.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths += [f"{name}.{key}" for key in field.annotation.model_fields]
    return paths


def _typeable(paths: list[str]) -> dict[str, str]:
    """Every name that can be typed, with its dotted path: the path itself, and the bare key where that is unique."""
    bare: dict[str, list[str]] = {}
    for path in paths:
        bare.setdefault(path.rpartition(".")[2], []).append(path)
    return {path: path for path in paths} | {key: found[0] for key, found in bare.items() if len(found) == 1}


KEYS = _typeable([path for path in _paths() if "." in path and path.partition(".")[0] in OVERRIDABLE])
"""What can be typed before `=`, with the setting's dotted path."""
_ALL = _typeable(_paths())


def parse_value(text: str) -> Any:
    """Read the text behind `=` as a TOML value; what is none, such as a bare word, is taken as text.

    In a list the quotes may be missing, because a command line takes them away: `[4bit, 8bit]`.
    """
    value = _toml_value(text)
    if value == text and text.startswith("[") and text.endswith("]"):
        return [_toml_value(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    return value


def _toml_value(text: str) -> Any:
    try:
        parsed = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML, or a number of more digits than Python converts
        return text
    # A line break in the text could bring further keys along.
    return parsed["value"] if len(parsed) == 1 else text


def apply_overrides(
    raw: Mapping[str, Any], overrides: Mapping[str, str], *, file: str
) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """Lay overrides over the parsed project file.

    Args:
        raw: The project file as tomli read it; not changed.
        overrides: What was typed, key to text.
        file: The project file's name, for the hints.

    Returns:
        The changed settings, the overrides by dotted path, and what is wrong with them.
    """
    changed = dict(raw)
    resolved: dict[str, str] = {}
    problems: list[Problem] = []
    for key, text in overrides.items():
        path = KEYS.get(key)
        if path is None:
            problems.append(Problem(_refusal(key, file), file=OVERRIDE, path=key))
            continue
        if path in resolved:
            problems.append(Problem("is given twice", file=OVERRIDE, path=path))
            continue
        table, name = path.split(".")
        section = changed.get(table, {})
        if isinstance(section, Mapping):
            changed[table] = {**section, name: parse_value(text)}
        resolved[path] = text
    return changed, resolved, problems


def _refusal(key: str, file: str) -> str:
    path = _ALL.get(key, key)
    table = path.partition(".")[0]
    if table in OVERRIDABLE and path == table:
        return f"is a table; name one of its settings, such as {next(one for one in KEYS if one.startswith(table))}"
    if table in ProjectSpec.model_fields and table not in OVERRIDABLE:
        return f"cannot be changed for one job; edit it in {file}"
    name = key.rpartition(".")[2]
    elsewhere = [one for one in KEYS if "." in one and one.partition(".")[2] == name]
    if elsewhere:
        return f"is not a setting; did you mean {' or '.join(map(repr, elsewhere))}?"
    if reason := why_refused(name, key.rpartition(".")[0]):
        return f"cannot be set: {reason}"
    return f"is not a setting{did_you_mean(key, KEYS)}"
