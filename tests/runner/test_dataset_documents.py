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
CATALOG = {
    number: DatasetEntry.model_validate(keys)
    for block in re.findall(r"```toml\n(\[\d+\].*?)```", SECTION, re.DOTALL)
    for number, keys in tomli.loads(block).items()
}
FORMATS: dict[WrittenFormat, str] = dict(re.findall(r"^\| `(\w+)` \| `(\{\".*?\})` \|", SECTION, re.MULTILINE))


def test_every_format_container_and_key_is_told() -> None:
    assert set(FORMATS) == set(get_args(WrittenFormat))
    assert set(re.findall(r"^\| `\.(\w+)`", SECTION, re.MULTILINE)) == set(get_args(FileType))
    keys = SECTION.split("| key in `datasets.toml`")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE)) == set(DatasetEntry.model_fields)
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
    entry = CATALOG["10"]
    path = tmp_path / Path(entry.path or "").name
    path.write_text(rows)
    expected = {"prompt": "What is 3 + 4,\nand what is it doubled?", "completion": "7, then 14"}
    assert read_rows(path, entry.layout).rows == [expected]


def test_the_example_of_a_hub_dataset_is_valid() -> None:
    assert (CATALOG["11"].hub, CATALOG["11"].split) == ("tatsu-lab/alpaca", "train[:2000]")
