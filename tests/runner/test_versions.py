import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from runner.errors import UnavailableError
from runner.versions import (
    PACKAGES,
    compare_versions,
    format_versions,
    installed_versions,
    load_stacks,
    nearest_stack,
    report_versions,
    require_working_stack,
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


def test_every_package_is_compared_with_both_stacks(installed: dict[str, str]) -> None:
    installed.update(load_stacks()["expected-2024-12-30"], peft="0.18.1")
    report = report_versions("cpu")
    assert report.stack == "expected-2024-12-30"
    compared = {
        package.name: [(one.stack, one.tested, one.difference) for one in package.stacks] for package in report.packages
    }
    assert tuple(compared) == PACKAGES
    assert compared["peft"] == [("expected-2024-12-30", "0.18.0", "patch"), ("current", "0.21.2", "minor")]
    assert compared["trl"] == [("expected-2024-12-30", "0.25.1", "same"), ("current", "1.16.0", "major")]


def test_the_table_shows_both_stacks_and_the_nearest_first(installed: dict[str, str]) -> None:
    installed.update(load_stacks()["expected-2024-12-30"], torch="2.9.1+cu128")
    del installed["trl"]
    device = "NVIDIA H200, 140 GB, driver and all that a long name can say"
    table, *defects = format_versions(report_versions(device)).split("\n\n")
    assert table.splitlines() == [
        "package       installed    expected-2024-12-30  current",
        "transformers  4.57.2       4.57.2  same         5.23.0  major",
        "bitsandbytes  0.49.0       0.49.0  same         0.50.2  minor",
        "peft          0.18.0       0.18.0  same         0.21.2  minor",
        "torch         2.9.1+cu128  2.9.1   same         2.13.0  minor",
        "accelerate    1.12.0       1.12.0  same         1.15.0  minor",
        "datasets      4.4.1        4.4.1   same         5.2.0   major",
        "trl           -            0.25.1  missing      1.16.0  missing",
    ]
    assert defects[0].splitlines() == [
        f"Python        {platform.python_version()}",
        f"device        {device}",
        "nearest       expected-2024-12-30, but for trl",
    ]
    assert defects[1].splitlines()[0] == "worked around: transformers 4.57.2"
    assert defects[1].splitlines()[-1] == "  https://github.com/huggingface/transformers/issues/42374"
    assert max(map(len, "\n".join(defects[1:]).splitlines())) <= 100


def test_the_report_of_this_machine_matches_its_metadata() -> None:
    report = report_versions("cpu (2 threads)")
    assert {package.name: package.installed for package in report.packages if package.installed} == installed_versions()
    assert report.stack == nearest_stack(installed_versions())
    assert re.fullmatch(r"3\.\d+\.\d+\S*", report.python)


def test_reporting_versions_loads_none_of_the_libraries() -> None:
    program = (
        "import sys; from runner.versions import *; format_versions(report_versions('cpu')); require_working_stack();"
        f"sys.exit(', '.join(name for name in {PACKAGES!r} if name in sys.modules) or None)"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


# --- stacks that cannot work --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["current", "expected-2024-12-30"])
def test_the_tested_stacks_are_not_refused(installed: dict[str, str], stack: str) -> None:
    installed.update(load_stacks()[stack])
    require_working_stack()


UNUSABLE = [
    ({"peft": "0.17.1"}, ["transformers 5.23.0 and peft 0.17.1", "HybridCache"], ["peft==0.21.2"]),
    ({"peft": "0.18.0"}, ["transformers 5.23.0 and peft 0.18.0", "WeightConverter"], ["peft==0.21.2"]),
    ({"bitsandbytes": "0.46.0"}, ["bitsandbytes 0.46.0", "4-bit"], ["bitsandbytes==0.50.2"]),
    ({"accelerate": "1.0.1"}, ["accelerate 1.0.1"], ["accelerate==1.15.0"]),
    (
        {"trl": None, "datasets": None},
        ["trl is not installed", "datasets is not installed"],
        ["datasets==5.2.0", "trl==1.16.0"],
    ),
    (
        {"peft": "0.17.1", "bitsandbytes": "0.45.0", "trl": None},
        ["trl is not installed", "peft 0.17.1", "bitsandbytes 0.45.0"],
        ["bitsandbytes==0.50.2", "peft==0.21.2", "trl==1.16.0"],
    ),
]


@pytest.mark.parametrize(("change", "told", "wanted"), UNUSABLE)
def test_a_stack_that_cannot_work_is_refused_with_the_command_that_mends_it(
    installed: dict[str, str], change: dict[str, str | None], told: list[str], wanted: list[str]
) -> None:
    installed.update(load_stacks()["current"])
    _change(installed, change)
    with pytest.raises(UnavailableError) as raised:
        require_working_stack()
    assert raised.value.code == "stack-unusable"
    assert [words for words in told if words not in raised.value.message] == []
    command = shlex.split((raised.value.hint or "").removeprefix("This mends it: "))
    assert command == [sys.executable, "-m", "pip", "install", *wanted]
    installed.update(dict(spec.split("==") for spec in wanted))
    require_working_stack()


def test_where_one_package_does_not_mend_it_the_whole_stack_is_named(installed: dict[str, str]) -> None:
    # Nearest to the older stack, whose peft is too old for this transformers.
    installed.update(load_stacks()["expected-2024-12-30"], transformers="5.23.0", peft="0.17.1")
    assert nearest_stack(installed) == "expected-2024-12-30"
    with pytest.raises(UnavailableError) as raised:
        require_working_stack()
    pins = load_stacks()["expected-2024-12-30"]
    assert (raised.value.hint or "").endswith(" ".join(f"{name}=={pins[name]}" for name in PACKAGES))


@pytest.mark.parametrize("command", ["worker --pool gpu", "train demo"])
def test_a_host_that_cannot_train_starts_nothing_and_is_told_what_to_install(tmp_path: Path, command: str) -> None:
    # Found first, it hides the peft that is really installed.
    (tmp_path / "peft-0.17.1.dist-info").mkdir()
    (tmp_path / "peft-0.17.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.17.1\n")
    redis = {"REDIS_URL": "redis://127.0.0.1:1/0", "QLORA_STATE_DIR": str(tmp_path / "state")}
    ended = subprocess.run(
        [sys.executable, "-m", "runner", *command.split()],
        env=os.environ | redis | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = ended.stderr + ended.stdout
    assert ended.returncode == 1
    assert f"transformers {installed_versions()['transformers']} and peft 0.17.1 cannot work together." in told
    assert f"{sys.executable} -m pip install peft=={load_stacks()['current']['peft']}" in told
    assert "Redis" not in told
    assert not (tmp_path / "state").exists()


def _change(installed: dict[str, str], change: dict[str, str | None]) -> None:
    for name, version in change.items():
        if version is None:
            del installed[name]
        else:
            installed[name] = version
