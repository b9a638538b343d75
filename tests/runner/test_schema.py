"""The schemas that editors check project files and the catalog with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomli

from runner.__main__ import main
from runner.spec import DatasetEntry, ProjectSpec

PROJECTS = Path(__file__).parents[2] / "projects"


def schema(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["schema", *words]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_a_projects_schema_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    found = schema(capsys)

    assert found["properties"].keys() == ProjectSpec.model_fields.keys()
    assert found["properties"]["base_model"]["description"]


def test_the_catalogs_schema_knows_every_key_and_permits_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    found = schema(capsys, "datasets")

    ((pattern, entry),) = found["patternProperties"].items()
    assert entry["properties"].keys() == DatasetEntry.model_fields.keys()
    for number, values in tomli.loads((PROJECTS / "datasets.toml").read_text(encoding="utf-8")).items():
        assert re.search(pattern, number)
        assert values.keys() <= entry["properties"].keys()
        assert set(entry["required"]) <= values.keys()
        assert sum(set(one["required"]) <= values.keys() for one in entry["oneOf"]) == 1


@pytest.mark.parametrize("words", [(), ("datasets",)])
def test_what_a_schema_refers_to_is_in_it(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    found = schema(capsys, *words)

    referred = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(found)))
    assert referred
    assert referred <= found["$defs"].keys()
