import re

import pytest

from runner.known_defects import KNOWN_DEFECTS, VersionRange, find_defects
from runner.versions import PACKAGES, format_known_defects, load_stacks

STACKS = load_stacks()


def codes(stack: str, **changes: str) -> list[str]:
    return [defect.code for defect in find_defects({**STACKS[stack], **changes})]


@pytest.mark.parametrize(
    ("version", "has_it"),
    [("4.57.1", False), ("4.57.2", True), ("4.57.2+local", True), ("4.57.3", False), ("5.0.0rc1", False)],
)
def test_the_tokenizer_defect_is_that_of_exactly_one_version(version: str, has_it: bool) -> None:
    assert ("tokenizer-config-dict" in codes("expected-2024-12-30", transformers=version)) is has_it


def test_nothing_is_known_against_the_current_stack() -> None:
    assert codes("current") == []


def test_what_is_known_against_the_older_stack_is_worked_around() -> None:
    found = find_defects(STACKS["expected-2024-12-30"])
    assert [defect.code for defect in found] == ["tokenizer-config-dict", "resumed-epoch"]
    assert {defect.severity for defect in found} == {"worked-around"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"peft": "0.17.1"}, "peft-hybrid-cache"),
        ({"transformers": "5.12.1", "peft": "0.19.1"}, "peft-weight-conversion"),
        ({"bitsandbytes": "0.46.0"}, "bitsandbytes-too-old"),
        ({"accelerate": "1.0.1"}, "accelerate-too-old"),
        ({"bitsandbytes": "0.49.2"}, "quantized-parameters-auto-map"),
        ({"bitsandbytes": "0.48.0"}, "int8-checkpoint"),
        ({"bitsandbytes": "0.49.1", "torch": "2.13.0+rocm7.0"}, "blocks-of-64-on-cdna"),
    ],
)
def test_versions_that_fail_together_are_found(changes: dict[str, str], code: str) -> None:
    assert code in codes("current", **changes)


def test_what_concerns_amd_gpus_is_told_to_their_torch_only() -> None:
    assert "blocks-of-64-on-cdna" not in codes("current", bitsandbytes="0.49.1", torch="2.13.0+cu130")


def test_a_missing_package_has_no_defect() -> None:
    assert find_defects({}) == []


@pytest.mark.parametrize(
    ("versions", "shown"),
    [
        (VersionRange("peft", below="0.18.0"), "peft < 0.18.0"),
        (VersionRange("transformers", "5.0.0"), "transformers ≥ 5.0.0"),
        (VersionRange("peft", "0.18.0", "0.20.0"), "peft ≥ 0.18.0, < 0.20.0"),
        (VersionRange("transformers", "4.57.2", "4.57.3"), "transformers 4.57.2"),
    ],
)
def test_a_range_reads_as_people_write_it(versions: VersionRange, shown: str) -> None:
    assert str(versions) == shown


@pytest.mark.parametrize("defect", KNOWN_DEFECTS, ids=lambda defect: defect.code)
def test_every_known_defect_can_be_told(defect: object) -> None:
    assert defect in KNOWN_DEFECTS
    (one,) = [known for known in KNOWN_DEFECTS if known is defect]
    report = one.report()
    assert re.fullmatch(r"[a-z0-9-]+", report.code)
    assert {part.package for part in one.affected} <= set(PACKAGES)
    told = format_known_defects()
    assert report.affected in told
    assert report.url in told


def test_no_code_is_used_twice() -> None:
    assert len({defect.code for defect in KNOWN_DEFECTS}) == len(KNOWN_DEFECTS)
