"""Which libraries are installed, how far they are from the stacks we test, and which of them are known to misbehave.

Reads package metadata and `runner/stacks/*.txt` only; never imports the libraries themselves.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import Literal

from runner.events import VersionsReported
from runner.reports import PackageVersion

PACKAGES = ("transformers", "bitsandbytes", "peft", "torch", "accelerate", "datasets", "trl")
"""What a report lists, in this order."""

Difference = Literal["same", "patch", "minor", "major", "missing", "untested"]

# A missing package outweighs any number of newer ones, a major step any number of minor ones.
_DISTANCE: dict[Difference, int] = {
    "same": 0,
    "untested": 0,
    "patch": 1,
    "minor": 100,
    "major": 10_000,
    "missing": 1_000_000,
}


@dataclass(frozen=True, slots=True)
class KnownDefect:
    """Installed versions that are known to fail, and what this project does about it."""

    applies: Callable[[Mapping[str, str]], bool]
    """Whether these installed versions have it."""
    note: str
    """Cause, upstream thread, and what we do."""


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def _below(installed: Mapping[str, str], name: str, version: str) -> bool:
    return name in installed and _release(installed[name]) < _release(version)


def _at_least(installed: Mapping[str, str], name: str, version: str) -> bool:
    return name in installed and _release(installed[name]) >= _release(version)


KNOWN_DEFECTS = (
    KnownDefect(
        applies=lambda installed: installed.get("transformers") == "4.57.2",
        note=(
            "transformers 4.57.2 fails with \"'dict' object has no attribute 'model_type'\" on the tokenizer of a "
            "local model with over 100 000 vocabulary entries (transformers #42374, cured by #42376 in 4.57.3). We "
            "load that tokenizer by a workaround that lasts for the one call."
        ),
    ),
    KnownDefect(
        applies=lambda installed: _at_least(installed, "transformers", "5.0.0") and _below(installed, "peft", "0.18.0"),
        note=(
            "peft before 0.18 imports HybridCache, which transformers 5 no longer has (transformers #45278). "
            "We do not work around it: install peft 0.18 or newer."
        ),
    ),
    KnownDefect(
        applies=lambda installed: (
            _at_least(installed, "transformers", "5.0.0") and _below(installed, "bitsandbytes", "0.46.1")
        ),
        note=(
            "transformers 5 refuses bitsandbytes before 0.46.1, so 4-bit and 8-bit rungs fail and only the "
            "unquantized one holds. We do not work around it: install bitsandbytes 0.46.1 or newer."
        ),
    ),
)
"""Checked against what is installed; every one that applies is reported."""


@cache
def load_stacks() -> dict[str, dict[str, str]]:
    """Read the tested stacks.

    Returns:
        Stack name (file name without `.txt`) to package name to version.

    Raises:
        ValueError: A line of a stack file is neither a comment nor `name==version`.
    """
    stacks: dict[str, dict[str, str]] = {}
    for file in sorted(resources.files("runner").joinpath("stacks").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".txt"):
            continue
        pins: dict[str, str] = {}
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            text = line.split("#", 1)[0].strip()
            if not text:
                continue
            name, separator, version = text.partition("==")
            if not separator:
                raise ValueError(f"runner/stacks/{file.name}:{number}: {text!r} is not name==version.")
            pins[name.strip().lower()] = version.strip()
        stacks[file.name.removesuffix(".txt")] = pins
    return stacks


def compare_versions(installed: str | None, tested: str | None) -> Difference:
    """Tell how far an installed version is from the tested one; a local part such as `+cpu` does not count."""
    if installed is None:
        return "missing"
    if tested is None:
        return "untested"
    public = installed.split("+", 1)[0]
    if public == tested:
        return "same"
    ours, theirs = (*_release(public), 0, 0)[:2], (*_release(tested), 0, 0)[:2]
    if ours[0] != theirs[0]:
        return "major"
    return "minor" if ours != theirs else "patch"


def installed_versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def nearest_stack(installed: Mapping[str, str]) -> str:
    """Name the tested stack that differs least from what is installed."""

    def distance(name: str) -> int:
        pins = load_stacks()[name]
        return sum(_DISTANCE[compare_versions(installed.get(package), pins.get(package))] for package in PACKAGES)

    # Where nothing tells them apart, such as without any of the packages, the stack we develop on is the one to name.
    return min(load_stacks(), key=lambda name: (distance(name), name != "current", name))


def report_versions(device: str) -> VersionsReported:
    """Compare what is installed with the nearest tested stack.

    Args:
        device: What trains, such as `cpu (2 threads)`; known to the caller, because finding out needs torch.
    """
    installed = installed_versions()
    stack = nearest_stack(installed)
    pins = load_stacks()[stack]
    return VersionsReported(
        stack=stack,
        packages=tuple(
            PackageVersion(
                name=name,
                installed=installed.get(name),
                tested=pins.get(name),
                difference=compare_versions(installed.get(name), pins.get(name)),
            )
            for name in PACKAGES
        ),
        python=platform.python_version(),
        device=device,
        notes=tuple(defect.note for defect in KNOWN_DEFECTS if defect.applies(installed)),
    )


def format_versions(report: VersionsReported) -> str:
    """Lay a report out as an aligned table for a terminal, without a trailing newline."""
    rows = [("package", "installed", f"tested ({report.stack})", "difference")]
    rows += [
        (package.name, package.installed or "-", package.tested or "-", package.difference)
        for package in report.packages
    ]
    rows += [("Python", report.python, "", ""), ("device", report.device, "", "")]
    # The last two rows span their columns: a long device name must not widen the table.
    widths = [max(len(row[column]) for row in rows[:-2]) for column in range(3)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])
