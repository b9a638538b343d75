import re
import subprocess
import sys
from importlib import metadata

import pytest

from runner.versions import (
    PACKAGES,
    compare_versions,
    format_versions,
    installed_versions,
    load_stacks,
    nearest_stack,
    report_versions,
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the report takes for installed; a test changes it."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    return versions


def test_every_stack_pins_every_reported_package() -> None:
    assert set(load_stacks()) == {"current", "expected-2024-12-30"}
    for pins in load_stacks().values():
        assert set(PACKAGES) <= set(pins)


@pytest.mark.parametrize(
    ("ours", "tested", "difference"),
    [
        ("2.13.0", "2.13.0", "same"),
        ("2.13.0+cpu", "2.13.0", "same"),
        ("2.13.1", "2.13.0", "patch"),
        ("2.13.0rc1", "2.13.0", "patch"),
        ("2.12.0", "2.13.0", "minor"),
        ("2.9", "2.9.1", "patch"),
        ("0.25.1", "1.16.0", "major"),
        (None, "1.0.0", "missing"),
        ("1.0.0", None, "untested"),
    ],
)
def test_versions_are_compared_by_their_first_differing_part(
    ours: str | None, tested: str | None, difference: str
) -> None:
    assert compare_versions(ours, tested) == difference


@pytest.mark.parametrize("stack", ["current", "expected-2024-12-30"])
def test_a_stack_as_pinned_is_its_own_nearest(installed: dict[str, str], stack: str) -> None:
    installed.update(load_stacks()[stack])
    report = report_versions("cpu (2 threads)")
    assert report.stack == stack
    assert {package.difference for package in report.packages} == {"same"}
    assert tuple(package.name for package in report.packages) == PACKAGES


def test_one_old_library_does_not_change_the_nearest_stack(installed: dict[str, str]) -> None:
    installed.update(load_stacks()["current"], transformers="5.22.1")
    report = report_versions("cpu")
    assert report.stack == "current"
    assert next(package.difference for package in report.packages if package.name == "transformers") == "minor"


def test_without_the_training_stack_everything_is_missing(installed: dict[str, str]) -> None:
    assert installed == {}
    report = report_versions("none")
    assert report.stack == "current"
    assert {package.difference for package in report.packages} == {"missing"}
    assert all(package.installed is None for package in report.packages)


def test_the_tokenizer_defect_is_noted_for_exactly_one_version(installed: dict[str, str]) -> None:
    installed.update(load_stacks()["expected-2024-12-30"])
    assert any("#42374" in note and "#42376" in note for note in report_versions("cpu").notes)
    installed["transformers"] = "4.57.3"
    assert report_versions("cpu").notes == ()


def test_the_current_stack_has_no_known_defect(installed: dict[str, str]) -> None:
    installed.update(load_stacks()["current"])
    assert report_versions("cpu").notes == ()


def test_libraries_that_contradict_each_other_are_noted(installed: dict[str, str]) -> None:
    installed.update(load_stacks()["current"], peft="0.17.1", bitsandbytes="0.45.0")
    notes = report_versions("cpu").notes
    assert any("HybridCache" in note for note in notes)
    assert any("0.46.1" in note for note in notes)


def test_the_table_is_aligned_and_ends_with_the_notes(installed: dict[str, str]) -> None:
    installed.update(load_stacks()["expected-2024-12-30"], torch="2.9.1+cu128")
    del installed["trl"]
    lines = format_versions(
        report_versions("NVIDIA H200, 140 GB, driver and all that a long name can say")
    ).splitlines()
    assert lines[0].split() == ["package", "installed", "tested", "(expected-2024-12-30)", "difference"]
    column = lines[0].index("tested")
    assert lines[4] == f"{'torch         2.9.1+cu128':<{column}}2.9.1                         same"
    assert lines[7].split() == ["trl", "-", "0.25.1", "missing"]
    assert {line[column - 1] for line in lines[:8]} == {" "}
    assert lines[-1].startswith("note: transformers 4.57.2 fails")


def test_the_report_of_this_machine_matches_its_metadata() -> None:
    report = report_versions("cpu (2 threads)")
    assert {package.name: package.installed for package in report.packages if package.installed} == installed_versions()
    assert report.stack == nearest_stack(installed_versions())
    assert re.fullmatch(r"3\.\d+\.\d+\S*", report.python)


def test_reporting_versions_loads_none_of_the_libraries() -> None:
    program = (
        "import sys; from runner.versions import *; format_versions(report_versions('cpu'));"
        f"sys.exit(', '.join(name for name in {PACKAGES!r} if name in sys.modules) or None)"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
