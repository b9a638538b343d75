"""What the documents name is there, and what is there they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bot.commands import USAGE
from bot.local.parts import PARTS

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("source", ["runner/settings.py", "bot/settings.py"])
def test_every_variable_that_is_read_is_in_the_readme(source: str) -> None:
    read = set(re.findall(r'"((?:QLORA|SLACK|REDIS)_[A-Z_]+)"', (REPOSITORY / source).read_text(encoding="utf-8")))
    assert read
    assert {name for name in read if name not in README} == set()


def test_every_command_is_in_the_readme() -> None:
    table = README.split("## Commands")[1].split("\n## ")[0]
    assert {verb for verb in USAGE if verb not in table} == set()


def test_every_module_is_in_the_architecture_page() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = [*(REPOSITORY / "runner").glob("*.py"), *(REPOSITORY / "runner" / "training").glob("*.py")]
    assert {path.stem for path in modules if not path.stem.startswith("__") and f"`{path.stem}`" not in page} == set()


def test_the_procfile_names_the_parts_that_run_on_one_machine() -> None:
    lines = (REPOSITORY / "Procfile").read_text(encoding="utf-8").splitlines()
    assert {line.partition(":")[0] for line in lines} == set(PARTS)


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) < 150
