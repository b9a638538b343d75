"""What docs/operations.md tells to do can be done."""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bot.commands import USAGE
from runner.__main__ import VERBS

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
UNITS = sorted((REPOSITORY / "docs" / "systemd").glob("*.service"))
PLACEHOLDERS = {"JOB": "demo-aaaaa", "HOST": "gpu-1", "POOL": "gpu", "REASON": "maintenance"}


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m runner [^`#|\n]+?(?=`|\s*#|\n)", PAGE))))
def test_every_command_of_the_page_is_one(command: str) -> None:
    verb, *arguments = command.split()[3:]
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"runner.cli.{verb.replace('-', '_')}").add_arguments(parser)

    parser.parse_intermixed_args([PLACEHOLDERS.get(word, word) for word in arguments])


def test_the_shell_and_slack_use_the_same_words() -> None:
    # A start needs a place to report to, and a status is what `jobs` and `job` tell.
    assert set(USAGE) - set(VERBS) <= {"start", "status", "projects", "help"}
    assert {"jobs", "job", "logs", "freeze", "drain"} <= set(VERBS)


def test_every_metric_is_on_the_page_and_every_metric_of_the_page_is_one() -> None:
    source = (REPOSITORY / "runner" / "metrics.py").read_text(encoding="utf-8")
    gauges = set(re.findall(r'GaugeMetricFamily\(\s*"(\w+)"', source))
    counters = {f"{name}_total" for name in re.findall(r'CounterMetricFamily\(\s*"(\w+)"', source)}

    assert gauges | counters == set(re.findall(r"\bqlora_\w+", PAGE))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_one_that_systemd_understands(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / "opt" / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/qlora-bot", str(tmp_path / "opt")))

    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)],  # noqa: S607 - wherever the system has it
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_what_there_is(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    module = re.findall(r"^ExecStart=\S+ -m (\w+)(?: (\S+))?", text, re.MULTILINE)

    assert module in [[("bot", "")], [("runner", "worker")], [("runner", "metrics")]]
    assert re.sub(r"\.service$", "", unit.name) in PAGE
