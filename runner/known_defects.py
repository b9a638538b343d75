"""Library versions that are known to misbehave: which, why, where it is written down, and what we do about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from runner.reports import DefectReport, Severity

_TRANSFORMERS_5_NEEDS = (
    "https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/utils/import_utils.py"
)


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Some versions of one package; an open end where None."""

    package: str
    at_least: str | None = None
    below: str | None = None

    def holds(self, installed: Mapping[str, str]) -> bool:
        """Whether an installed version lies in it."""
        if self.package not in installed:
            return False
        version = release(installed[self.package])
        return (self.at_least is None or version >= release(self.at_least)) and (
            self.below is None or version < release(self.below)
        )

    def __str__(self) -> str:
        if self.at_least and self.below:
            *same, last = release(self.at_least)
            if release(self.below) == (*same, last + 1):
                return f"{self.package} {self.at_least}"
        ends = [f"≥ {self.at_least}"] if self.at_least else []
        ends += [f"< {self.below}"] if self.below else []
        return f"{self.package} {', '.join(ends)}"


@dataclass(frozen=True, slots=True)
class KnownDefect:
    """Versions that fail together."""

    code: str
    """Kebab-case, for machines."""
    severity: Severity
    affected: tuple[VersionRange, ...]
    """All of them have to hold. What mends it is another version of the last one's package."""
    cause: str
    """What goes wrong, and why."""
    remedy: str
    """What we do about it."""
    url: str
    """Where upstream has it written down."""
    build: str | None = None
    """Only with a torch whose version says so after the plus, such as `rocm`."""

    def applies(self, installed: Mapping[str, str]) -> bool:
        """Whether these installed versions have it."""
        build = installed.get("torch", "").partition("+")[2]
        return all(part.holds(installed) for part in self.affected) and (self.build is None or self.build in build)

    def report(self) -> DefectReport:
        """Put it into a record."""
        return DefectReport(
            code=self.code,
            severity=self.severity,
            affected=" with ".join(map(str, self.affected)) + (f" on {self.build}" if self.build else ""),
            cause=self.cause,
            remedy=self.remedy,
            url=self.url,
        )


KNOWN_DEFECTS = (
    KnownDefect(
        code="tokenizer-config-dict",
        severity="worked-around",
        affected=(VersionRange("transformers", "4.57.2", "4.57.3"),),
        cause=(
            "The tokenizer of a local model with more than 100 000 entries fails with \"'dict' object has no attribute "
            "'model_type'\": the loader reads config.json as a dict and asks it for an attribute."
        ),
        remedy="That tokenizer is loaded by a workaround that lasts for the one call.",
        url="https://github.com/huggingface/transformers/issues/42374",
    ),
    KnownDefect(
        code="resumed-epoch",
        severity="worked-around",
        affected=(VersionRange("accelerate", "1.12.0", "1.12.1"),),
        cause="A run that goes on in a later epoch would see the first epoch's rows again.",
        remedy="The epoch is set again before the rows that are done are skipped.",
        url="https://github.com/huggingface/accelerate/blob/v1.12.0/src/accelerate/data_loader.py",
    ),
    KnownDefect(
        code="quantized-parameters-auto-map",
        severity="worked-around",
        affected=(VersionRange("transformers", "5.0.0"), VersionRange("bitsandbytes", below="0.50.0")),
        cause='Quantized loading with device_map="auto" fails: parameters refuse the mark _is_hf_initialized.',
        remedy="A model is always loaded whole onto one device, which does not go that way.",
        url="https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1900",
    ),
    KnownDefect(
        code="int8-checkpoint",
        severity="informative",
        affected=(VersionRange("bitsandbytes", "0.48.0", "0.48.1"),),
        cause="Models whose files are stored in 8 bits give wrong answers.",
        remedy="Train on another version if your base model is such a one; quantizing while loading is not affected.",
        url="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1775",
    ),
    KnownDefect(
        code="blocks-of-64-on-cdna",
        severity="informative",
        build="rocm",
        affected=(VersionRange("bitsandbytes", below="0.49.2"),),
        cause="AMD's data centre GPUs (CDNA) cannot compute with 4-bit blocks of 64, which stored 4-bit models have.",
        remedy="The 4-bit rung fails there, and the ladder says so and goes on.",
        url="https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1856",
    ),
    KnownDefect(
        code="peft-hybrid-cache",
        severity="cannot-work",
        affected=(VersionRange("transformers", "5.0.0"), VersionRange("peft", below="0.18.0")),
        cause="peft cannot be imported: it asks for HybridCache, which transformers 5 no longer has.",
        remedy="No job is taken.",
        url="https://github.com/huggingface/transformers/issues/45278",
    ),
    KnownDefect(
        code="peft-weight-conversion",
        severity="cannot-work",
        affected=(VersionRange("transformers", "5.12.0"), VersionRange("peft", "0.18.0", "0.20.0")),
        cause=(
            "No saved adapter can be loaded: peft calls WeightConverter with arguments that it no longer takes, and "
            "transformers asks for peft 0.20 or newer."
        ),
        remedy="No job is taken.",
        url="https://github.com/huggingface/peft/issues/3372",
    ),
    KnownDefect(
        code="bitsandbytes-too-old",
        severity="cannot-work",
        affected=(VersionRange("transformers", "5.0.0"), VersionRange("bitsandbytes", below="0.46.1")),
        cause="transformers refuses this bitsandbytes, so neither the 4-bit nor the 8-bit rung can hold.",
        remedy="No job is taken.",
        url=_TRANSFORMERS_5_NEEDS,
    ),
    KnownDefect(
        code="accelerate-too-old",
        severity="cannot-work",
        affected=(VersionRange("transformers", "5.0.0"), VersionRange("accelerate", below="1.1.0")),
        cause="transformers refuses this accelerate, so nothing can be quantized or trained.",
        remedy="No job is taken.",
        url=_TRANSFORMERS_5_NEEDS,
    ),
)
"""Every one that applies is reported; one that cannot work keeps a worker from starting."""


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what says that it is a candidate or how it was built."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def find_defects(installed: Mapping[str, str]) -> list[KnownDefect]:
    """Look up what is known against installed versions, in the table's order."""
    return [defect for defect in KNOWN_DEFECTS if defect.applies(installed)]
