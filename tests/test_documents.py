"""What the documents name is there, and what is there they name."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from bot.commands import USAGE
from bot.local.parts import PARTS
from runner.__main__ import VERBS

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "projects/README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]


def test_the_readme_names_every_variable_that_is_read_and_no_page_names_another() -> None:
    sources = [
        path.read_text(encoding="utf-8") for room in ("bot", "runner") for path in (REPOSITORY / room).rglob("*.py")
    ]
    read = {name for source in sources for name in re.findall(r'"((?:QLORA|SLACK|REDIS)_[A-Z_]+)"', source)}
    assert {"QLORA_HOST", "SLACK_BOT_TOKEN", "REDIS_URL"} <= read
    assert {name for name in read if not re.search(rf"\b{name}\b", README)} == set()
    pages = " ".join((REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"\bQLORA_[A-Z_]+", pages)) - read == set()


def test_every_command_is_in_the_readme() -> None:
    table = README.split("## Commands")[1].split("\n## ")[0]
    assert {verb for verb in USAGE if verb not in table} == set()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_of_the_runner_is_in_the_readme_with_its_options(verb: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"runner.cli.{verb.replace('-', '_')}").add_arguments(parser)
    options = {word for word in parser.format_usage().replace("[", " ").replace("]", " ").split() if word[:2] == "--"}
    lines = [line for line in README.splitlines() if re.search(rf"(`|runner ){verb}\b", line)]
    assert lines
    assert {option for option in options if option not in " ".join(lines)} == set()


def test_every_option_in_the_readmes_table_of_verbs_is_one() -> None:
    table = [line for line in README.splitlines() if line.startswith("| `")]
    for verb in VERBS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"runner.cli.{verb.replace('-', '_')}").add_arguments(parser)
        told = {word for line in table if re.match(rf"\| `{verb}\b", line) for word in re.findall(r"--[a-z-]+", line)}
        assert {option for option in told if option not in parser.format_help()} == set()


def test_every_module_is_in_the_architecture_page() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path for room in ("runner", "bot") for path in (REPOSITORY / room).rglob("*.py")}
    modules -= {REPOSITORY / "runner" / "cli" / f"{verb.replace('-', '_')}.py" for verb in VERBS}
    assert {path.stem for path in modules if not path.stem.startswith("__") and f"`{path.stem}`" not in page} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_module_and_target_that_a_page_names_is_there(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    files = set(re.findall(r"(?<![\w/])(?:\.ci|bot|docs|runner|tests)/[\w./-]*\w", text))
    files |= {f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)\)", text) if page.startswith("docs/")}
    assert {name for name in files if not (REPOSITORY / name).exists()} == set()
    modules = {
        REPOSITORY / name.replace(".", "/") for name in re.findall(r"python -m ((?:bot|runner|tests)[\w.]*)", text)
    }
    assert {
        one for one in modules if not one.with_suffix(".py").is_file() and not (one / "__main__.py").is_file()
    } == set()
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    makefile = makefile.replace("$(VENV)", ".venv").replace("$(EXPECTED)", ".venv-expected")
    targets = set(re.findall(r"^([\w./-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([\w./-]+)", text, re.MULTILINE)) - targets == set()


def test_every_change_is_tested_on_both_stacks() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    checked = re.findall(r"^make (\S+)$", (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert checked == ["lint", "test", "test-expected"]
    rules = dict(re.findall(r"^(\S+): (.*\n(?:\t.*\n?)+)", makefile, re.MULTILINE))
    for target, environment, stack in (
        ("test", "VENV", "current"),
        ("test-expected", "EXPECTED", "expected-2024-12-30"),
    ):
        assert rules[target].startswith(f"$({environment})/installed")
        assert f"-c $(STACKS)/{stack}.txt" in rules[f"$({environment})/installed"]


def test_the_procfile_names_the_parts_that_run_on_one_machine() -> None:
    lines = (REPOSITORY / "Procfile").read_text(encoding="utf-8").splitlines()
    assert {line.partition(":")[0] for line in lines} == set(PARTS)


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) < 150
