"""The examples of projects/README.md are read as the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import tomli

from runner.json_values import LONGEST_ROW
from runner.layout import FileType, Layout, WrittenFormat
from runner.rows import check_rows, read_rows
from runner.spec import Columns, DatasetEntry

PAGE = (Path(__file__).parents[2] / "projects" / "README.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Data files")[1].split("\n## ")[0]
FORMATS: dict[WrittenFormat, str] = dict(re.findall(r"^\| `(\w+)` \| `(\{\".*?\})` \|", SECTION, re.MULTILINE))


def test_every_format_container_and_key_is_told() -> None:
    assert set(FORMATS) == set(get_args(WrittenFormat))
    assert set(re.findall(r"^\| `\.(\w+)`", SECTION, re.MULTILINE)) == set(get_args(FileType))
    keys = SECTION.split("| key in `datasets.toml`")[1]
    assert re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE) == list(DatasetEntry.model_fields)
    assert all(f"`{name}`" in keys for name in Columns.model_fields)
    assert f"at most {LONGEST_ROW // 2**20} MiB" in SECTION


@pytest.mark.parametrize("written", FORMATS)
def test_the_example_of_each_format_is_recognised(tmp_path: Path, written: WrittenFormat) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(FORMATS[written])
    assert check_rows(path).problems == ()
    assert read_rows(path) == read_rows(path, Layout(format=written))
    assert check_rows(path, Layout(format="messages" if written == "text" else "text")).rows == 0


def test_the_example_with_other_column_names_is_read(tmp_path: Path) -> None:
    (rows,) = re.findall(r"```csv\n(.*?)```", SECTION, re.DOTALL)
    (catalog,) = re.findall(r"```toml\n(\[10\].*?)```", SECTION, re.DOTALL)
    entry = DatasetEntry.model_validate(tomli.loads(catalog)["10"])
    path = tmp_path / Path(entry.path).name
    path.write_text(rows)
    expected = {"prompt": "What is 3 + 4,\nand what is it doubled?", "completion": "7, then 14"}
    assert read_rows(path, entry.layout).rows == [expected]
