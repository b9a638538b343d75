"""Applies `key=value` overrides to a project's raw settings. Pure.

Only how a job trains can be changed this way; what it trains on, which model and where the result goes are the file's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

import tomli
from pydantic import BaseModel

from runner.errors import Problem
from runner.spec import ProjectSpec

OVERRIDABLE = ("quantization", "lora", "training", "evaluation")
"""Tables of a project file whose keys a requester may change."""


def _keys() -> dict[str, str]:
    """Every name that can be typed, with its dotted path: the path itself, and the bare key where that is unique."""
    bare: dict[str, list[str]] = {}
    for table in OVERRIDABLE:
        model = cast("type[BaseModel]", ProjectSpec.model_fields[table].annotation)
        for key in model.model_fields:
            bare.setdefault(key, []).append(f"{table}.{key}")
    names = {path: path for paths in bare.values() for path in paths}
    names |= {key: paths[0] for key, paths in bare.items() if len(paths) == 1}
    return names


KEYS = _keys()


def parse_value(text: str) -> Any:
    """Read the text behind `=` as a TOML value; what is none, such as a bare word, is taken as text."""
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text


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
            problems.append(Problem(_refusal(key, file), file="override", path=key))
            continue
        table, name = path.split(".")
        section = changed.get(table, {})
        if isinstance(section, Mapping):
            changed[table] = {**section, name: parse_value(text)}
        resolved[path] = text
    return changed, resolved, problems


def _refusal(key: str, file: str) -> str:
    table = key.partition(".")[0]
    if table in ProjectSpec.model_fields and table not in OVERRIDABLE:
        return f"cannot be changed for one job; edit it in {file}"
    near = difflib.get_close_matches(key, KEYS, n=1)
    return f"is not a setting{f'; did you mean {near[0]!r}?' if near else ''}"
