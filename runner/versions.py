"""Which libraries are installed, how far they are from the stacks we test, and which of them are known to misbehave.

Reads package metadata and `runner/stacks/*.txt` only; never imports the libraries themselves.
"""

from __future__ import annotations

import platform
import shlex
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import metadata, resources

from runner.errors import UnavailableError
from runner.events import VersionsReported
from runner.known_defects import KNOWN_DEFECTS, find_defects, release
from runner.reports import DefectReport, Difference, PackageVersion, Severity, TestedVersion

PACKAGES = ("transformers", "bitsandbytes", "peft", "torch", "accelerate", "datasets", "trl")
"""What a report lists, in this order; all of them have to be there to train."""

_GAP = 2
_LINE_LENGTH = 100

# A missing package outweighs any number of newer ones, a major step any number of minor ones.
_DISTANCE: dict[Difference, int] = {
    "same": 0,
    "untested": 0,
    "patch": 1,
    "minor": 100,
    "major": 10_000,
    "missing": 1_000_000,
}


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
    ours, theirs = (*release(public), 0, 0)[:2], (*release(tested), 0, 0)[:2]
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
    """Compare what is installed with both tested stacks, and look up what is known against it.

    Args:
        device: What trains, such as `cpu (2 threads)`; known to the caller, because finding out needs torch.
    """
    installed = installed_versions()
    nearest = nearest_stack(installed)
    packages = []
    for name in PACKAGES:
        stacks = tuple(
            TestedVersion(
                stack=stack, tested=pins.get(name), difference=compare_versions(installed.get(name), pins.get(name))
            )
            for stack, pins in sorted(load_stacks().items(), key=lambda item: item[0] != nearest)
        )
        packages.append(
            PackageVersion(
                name=name,
                installed=installed.get(name),
                tested=stacks[0].tested,
                difference=stacks[0].difference,
                stacks=stacks,
            )
        )
    return VersionsReported(
        stack=nearest,
        packages=tuple(packages),
        python=platform.python_version(),
        device=device,
        defects=tuple(defect.report() for defect in find_defects(installed)),
    )


def require_working_stack() -> None:
    """Refuse to start with libraries that are missing or cannot work together.

    Raises:
        UnavailableError: `stack-unusable`; names every reason, and the command that mends them all.
    """
    installed = installed_versions()
    missing = [name for name in PACKAGES if name not in installed]
    defects = [defect for defect in find_defects(installed) if defect.severity == "cannot-work"]
    if not missing and not defects:
        return
    reasons = [f"{name} is not installed." for name in missing]
    for defect in defects:
        has = " and ".join(f"{part.package} {installed[part.package]}" for part in defect.affected)
        reasons.append(f"{has} cannot work together. {defect.cause} See {defect.url}")
    wrong = {*missing, *(defect.affected[-1].package for defect in defects)}
    raise UnavailableError(
        "The libraries of this host cannot train:" + "".join(f"\n  - {reason}" for reason in reasons),
        hint=f"This mends it: {_mending_command(installed, wrong)}",
        code="stack-unusable",
    )


def _mending_command(installed: Mapping[str, str], names: Collection[str]) -> str:
    """The pip command that installs other versions of some packages; of all, where that alone would not do."""
    pins = load_stacks()[nearest_stack(installed)]
    chosen = {name: pins[name] for name in PACKAGES if name in names}
    if any(defect.severity == "cannot-work" for defect in find_defects({**installed, **chosen})):
        chosen = {name: pins[name] for name in PACKAGES}
    wanted = [f"{name}=={version}" for name, version in chosen.items()]
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


_SEVERITIES: dict[Severity, str] = {
    "informative": "good to know",
    "worked-around": "worked around",
    "cannot-work": "cannot work",
}


def format_versions(report: VersionsReported) -> str:
    """Lay a report out for a terminal: a table, and below it what is known against these versions.

    Returns:
        Lines of at most 100 characters, but for a long device name, without a newline at the end.
    """
    stacks = [tested.stack for tested in report.packages[0].stacks]
    rows = [["package", "installed", *(cell for stack in stacks for cell in (stack, ""))]]
    for package in report.packages:
        tested = [cell for one in package.stacks for cell in (one.tested or "-", one.difference)]
        rows.append([package.name, package.installed or "-", *tested])
    # The name of a stack stands above two columns, version and difference.
    widths = [max(len(row[column]) for row in rows[column > 1 :]) for column in range(len(rows[0]))]
    for number, stack in enumerate(stacks):
        left = 2 + 2 * number
        widths[left + 1] = max(widths[left + 1], len(stack) - widths[left] - _GAP)
        rows[0][left : left + 2] = [stack.ljust(widths[left] + _GAP + widths[left + 1]), ""]
    lines = [_aligned(rows[0][:2] + rows[0][2::2], widths[:2] + [0] * len(stacks))]
    lines += [_aligned(row, widths) for row in rows[1:]]
    lines += ["", f"{'Python'.ljust(widths[0])}  {report.python}", f"{'device'.ljust(widths[0])}  {report.device}"]
    lines += [f"{'nearest'.ljust(widths[0])}  {_verdict(report)}"]
    return "\n".join([*lines, *(line for defect in report.defects for line in ("", *_defect_lines(defect)))])


def format_known_defects() -> str:
    """Lay out everything that is known against versions, installed or not, without a newline at the end."""
    return "\n\n".join("\n".join(_defect_lines(defect.report())) for defect in KNOWN_DEFECTS)


def _defect_lines(defect: DefectReport) -> list[str]:
    lines = textwrap.wrap(
        f"{defect.cause} {defect.remedy}", _LINE_LENGTH - 4, initial_indent="  ", subsequent_indent="  "
    )
    return [f"{_SEVERITIES[defect.severity]}: {defect.affected}", *lines, f"  {defect.url}"]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return (" " * _GAP).join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _verdict(report: VersionsReported) -> str:
    differing = [package.name for package in report.packages if package.difference != "same"]
    return f"{report.stack}, " + (f"but for {', '.join(differing)}" if differing else "all as tested")
