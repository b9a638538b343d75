"""The projects and data that ship, and what the README says of project files."""

from __future__ import annotations

import doctest
import json
import re
import sqlite3
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from runner.projects import load_project, project_names
from runner.rows import read_rows
from runner.spec import DatasetShare, ProjectSpec, Trait

PROJECTS = Path(__file__).parents[2] / "projects"


@pytest.mark.parametrize("name", project_names(PROJECTS))
def test_every_shipped_project_is_valid(name: str) -> None:
    spec = load_project(PROJECTS, name)
    assert spec.project.name == name
    assert spec.project.description


def test_the_shipped_projects_are_the_demo_and_three_to_start_from() -> None:
    assert project_names(PROJECTS) == ["code-review", "demo", "sql-analyst", "support-bot"]


def test_every_shipped_data_file_is_in_the_catalog_and_no_row_stands_twice() -> None:
    used = [
        entry.source for name in project_names(PROJECTS) for entry in load_project(PROJECTS, name).datasets.values()
    ]
    assert sorted(set(used)) == sorted(f"data/{path.name}" for path in (PROJECTS / "data").iterdir())
    for path in (PROJECTS / "data").iterdir():
        rows = [json.dumps(row) for row in read_rows(path).rows]
        assert len(set(rows)) == len(rows) >= 25


def test_the_addition_table_is_complete_and_right() -> None:
    rows = read_rows(PROJECTS / "data" / "addition.jsonl").rows
    expected = {f"What is {a} + {b}?": str(a + b) for a in range(10) for b in range(10)}
    assert {row["prompt"]: row["completion"] for row in rows} == expected


@pytest.mark.parametrize("name", ["sql-questions", "sql-followups"])
def test_every_shipped_query_runs_on_the_tables_it_is_asked_about(name: str) -> None:
    for row in read_rows(PROJECTS / "data" / f"{name}.jsonl").rows:
        database = sqlite3.connect(":memory:")
        for table in re.findall(r"^\w+\(.*\)$", row["messages"][0]["content"], re.MULTILINE):
            database.execute(f"create table {table}")
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        for answer in answers:
            for query in re.findall(r"^SELECT.*?;", answer, re.DOTALL | re.MULTILINE):
                database.execute(query)
        database.close()


def test_the_shipped_code_does_what_its_examples_say(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0
    for row in read_rows(PROJECTS / "data" / "reviewed-code.jsonl").rows:
        module = ModuleType("row")
        monkeypatch.setitem(sys.modules, "row", module)  # dataclasses look their module up
        exec(row["text"], vars(module))  # noqa: S102  # our own rows are what is tested
        result = doctest.testmod(module)
        assert result.failed == 0, row["text"]
        tried += result.attempted
    assert tried > 25


def test_the_readme_tells_every_key_with_its_default() -> None:
    table = (PROJECTS / "README.md").read_text().split("## Every key")[1]
    shown = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", table, re.MULTILINE))
    expected: dict[str, object] = {}
    for name, field in ProjectSpec.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            expected |= {
                key: inner.get_default(call_default_factory=True) for key, inner in section.model_fields.items()
            }
        else:
            expected[name] = "required" if field.is_required() else field.default
    expected |= {f"traits.{key}": "required" for key in Trait.model_fields}
    expected |= {f"traits.datasets.{key}": field.default for key, field in DatasetShare.model_fields.items()}
    expected["traits.datasets.dataset_id"] = "required"

    def in_toml(value: object) -> str:
        if value is None or value == "required":
            return str(value or "none").lower()
        return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"

    assert shown == {key: in_toml(value) for key, value in expected.items()}
